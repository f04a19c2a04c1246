"""ChestX-ray14 is listed as NIH's table and lists, or published lists, have it; at its true size in seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_core.data.config import DatasetConfig
from ssl_core.data.cxr14 import LABELS, listing
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.data.leaks import groups_across
from ssl_core.errors import DataError
from tests.ssl_core.data import trees

PUBLISHED = Path(__file__).parents[3].parent / "shared" / "data" / "splits"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    trees.cxr14_tree(tmp_path / "nih")
    return tmp_path / "nih"


def config(root: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(source="cxr14", path=str(root), **settings)


def test_labels_patients_and_the_official_split_are_nihs(root: Path) -> None:
    found = listing(config(root))
    assert found.ids[:4].tolist() == ["00000001_000.png", "00000001_001.png", "00000001_002.png", "00000002_000.png"]
    assert (found.class_names, found.task, found.channels) == (LABELS, "multilabel", 1)
    assert tuple(name.replace(" ", "_") for name in LABELS) == trees.FINDINGS
    names = {i: [LABELS[c] for c in np.flatnonzero(row)] for i, row in zip(found.ids, found.labels, strict=True)}
    assert names["00000001_000.png"] == ["Atelectasis", "Cardiomegaly"]
    assert names["00000001_002.png"] == []
    assert names["00000004_000.png"] == ["Pleural Thickening", "Hernia"]
    assert found.groups is not None
    assert (found.groups == [i[:8] for i in found.ids]).all()
    assert found.given is not None
    assert (found.given == [TEST if int(g) > 20 else TRAIN for g in found.groups]).all()
    assert set(found.tables) == {"Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"}
    assert found.paths is not None
    assert all(p.is_file() and p.name == i for p, i in zip(found.paths, found.ids, strict=True))
    assert any("official split" in note for note in found.notes)


def test_where_the_images_lie_changes_no_id(root: Path, tmp_path: Path) -> None:
    trees.cxr14_tree(tmp_path / "flat", folders=0)
    apart, flat = listing(config(root)), listing(config(tmp_path / "flat"))
    assert (apart.ids == flat.ids).all()
    assert flat.paths is not None
    assert flat.paths[0] == tmp_path / "flat" / "images" / "00000001_000.png"
    assert flat.paths[0].is_file()


def test_the_second_edition_of_the_table_goes_before_the_first(root: Path) -> None:
    table = (root / "Data_Entry_2017.csv").read_text()
    changed = table.replace("Patient Gender", "Patient Sex").replace("058Y", "58").replace("Cardiomegaly", "Hernia", 1)
    (root / "Data_Entry_2017_v2020.csv").write_text(changed)
    found = listing(config(root))
    assert np.flatnonzero(found.labels[0]).tolist() == [0, 13]
    assert "Data_Entry_2017_v2020.csv" in found.tables
    assert any("the last is taken" in note for note in found.notes)


def test_without_the_official_lists_all_splits_are_to_be_made(root: Path) -> None:
    (root / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"no test_list.txt, but the other official list"):
        listing(config(root))
    (root / "train_val_list.txt").unlink()
    found = listing(config(root))
    assert found.given is None
    assert any("all three are made by patient" in note for note in found.notes)


def test_published_lists_decide_splits_and_labels(root: Path, tmp_path: Path) -> None:
    trees.cxr14_lists(root, tmp_path / "lists")
    path = tmp_path / "lists" / "cxr14_train.txt"
    lines = path.read_text().splitlines()
    assert lines[0].startswith("00000001_000.png 1 1 0")
    lines[0] = "00000001_000.png" + 13 * " 0" + " 1"
    path.write_text("\n".join(lines[:-3]))  # the last patient's three images are in no list
    (root / "Data_Entry_2017.csv").unlink()  # not needed then
    found = listing(config(root, lists=str(tmp_path / "lists")))
    assert np.flatnonzero(found.labels[0]).tolist() == [13]
    assert found.given is not None
    assert [int((found.given == s).sum()) for s in (TRAIN, VAL, TEST)] == [39, 18, 30]
    assert found.groups is not None
    assert all(int(g) % 3 == 0 for g in found.groups[found.given == VAL])
    assert set(found.tables) == {f"cxr14_{word}.txt" for word in ("train", "val", "test")}
    assert "images on disk that are in no list and left out: 3" in found.notes


def test_images_that_are_missing_keep_their_rows(root: Path) -> None:
    gone = next(root.glob("*/images/00000005_001.png"))
    gone.unlink()
    found = listing(config(root))
    assert found.paths is not None
    assert len(found.paths) == 90
    assert [p.name for p in found.paths if not p.is_file()] == ["00000005_001.png"]


TABLE = "Data_Entry_2017.csv"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (TABLE, "Atelectasis|", "Atelectasys|", r"row 2: unknown finding 'Atelectasys'; did you mean Atelectasis"),
        (TABLE, "Finding Labels", "Findings", r"no column 'Finding Labels'; did you mean Findings"),
        (TABLE, "00000001_001", "00000002_001", r"row 3: image '00000002_001.png' is named after another patient"),
        (TABLE, "00000001_001", "00000001_000", r"row 3: image '00000001_000.png' is there twice"),
        ("test_list.txt", "00000021_000", "00000001_000", r"row 1: '00000001_000.png' is in both official lists"),
    ],
)
def test_what_is_wrong_in_nihs_files_is_named(root: Path, file: str, old: str, new: str, message: str) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        listing(config(root))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("00000001_000.png 1", "00000001_000.png", "row 1: has 13 labels; expected an image and 14"),
        ("00000001_000.png 1", "00000001_000.png -1", "row 1: label '-1'; expected 0 or 1"),
        (
            "00000001_001.png",
            "00000001_000.png",
            "row 2: image '00000001_000.png' is already in cxr14_train.txt, row 1",
        ),
    ],
)
def test_what_is_wrong_in_published_lists_is_named(
    root: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    trees.cxr14_lists(root, tmp_path)
    path = tmp_path / "cxr14_train.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        listing(config(root, lists=str(tmp_path)))


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; name the folder that holds Data_Entry_2017.csv"):
        listing(config(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"has no train list \(dataset.lists\); looked for cxr14_train.txt, "):
        listing(config(root, lists=str(root)))
    for folder in root.glob("images_*"):
        folder.rename(tmp_path / folder.name)
    with pytest.raises(DataError, match=r"none of the 90 images is there, e.g. 00000001_000.png; looked in .*images"):
        listing(config(root))
    (root / TABLE).unlink()
    with pytest.raises(DataError, match=r"has no Data_Entry_2017.csv"):
        listing(config(root))


@pytest.mark.skipif(not (PUBLISHED / "cxr14_test.txt.gz").is_file(), reason="the published lists are not here")
def test_the_published_lists_at_their_true_size(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "00000001_000.png").touch()
    start = time.process_time()
    found = listing(config(tmp_path, lists=str(PUBLISHED)))
    assert time.process_time() - start < 10
    assert found.given is not None
    assert found.groups is not None
    assert np.bincount(found.given).tolist() == [78468, 11219, 22433]
    patients = [set(found.groups[found.given == split]) for split in (TRAIN, VAL, TEST)]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 30805
    counts = [11535, 2772, 13307, 19870, 5746, 6323, 1353, 5298, 4667, 2303, 2516, 1686, 3385, 227]
    assert found.labels.sum(axis=0).tolist() == counts
    printed = [10416, 2532, 12015, 17852, 5121, 5710, 1220, 4794, 4220, 2103, 2308, 1520, 3013, 186]  # section 4.2.1
    assert np.corrcoef(counts, printed)[0, 1] > 0.9999  # so the lists' columns are in the paper's order

    # The same images through NIH's own tables.
    words = [[trees.FINDINGS[c] for c in np.flatnonzero(row)] for row in found.labels]
    rows = [f"{i},{'|'.join(w) or 'No Finding'},{int(i[:8])}" for i, w in zip(found.ids, words, strict=True)]
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join(["Image Index,Finding Labels,Patient ID", *rows]))
    for name, chosen in {"train_val_list.txt": found.given != TEST, "test_list.txt": found.given == TEST}.items():
        (tmp_path / name).write_text("\n".join(found.ids[chosen]))
    start = time.process_time()
    official = listing(config(tmp_path))
    assert time.process_time() - start < 10
    assert (official.ids == found.ids).all()
    assert (official.labels == found.labels).all()
    assert official.given is not None
    assert (official.given == np.where(found.given == TEST, TEST, TRAIN)).all()


@pytest.mark.skipif(not (PUBLISHED / "cxr14_test.txt.gz").is_file(), reason="the published lists are not here")
def test_one_patient_moved_between_the_published_lists_is_found_and_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "00000001_000.png").touch()
    found = listing(config(tmp_path, lists=str(PUBLISHED)))
    assert found.given is not None
    assert found.groups is not None
    dataset = Dataset(
        name="cxr14",
        images=np.zeros((len(found.ids), 1, 1, 1), dtype=np.uint8),
        labels=found.labels,
        splits=found.given,
        groups=found.groups,
        ids=found.ids,
        class_names=found.class_names,
        task=found.task,
        mean=(0.0,),
        std=(1.0,),
        fingerprint="",
    )
    assert groups_across(dataset) is None
    names, counts = np.unique(found.groups[found.given == TRAIN], return_counts=True)
    patient = names[counts > 1][0]
    dataset.splits[np.flatnonzero(found.groups == patient)[0]] = TEST
    finding = groups_across(dataset)
    assert finding is not None
    assert finding.severity == "stops"
    assert finding.examples == (f"{patient} (train and test)",)
