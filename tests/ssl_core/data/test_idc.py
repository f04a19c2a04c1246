"""IDC's patches are listed by patient; published lists decide who validates and who tests."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_core.data import tables
from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL
from ssl_core.data.idc import listing
from ssl_core.errors import DataError
from tests.ssl_core.data import trees

PUBLISHED = Path(__file__).parents[3].parent / "shared" / "data" / "splits"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    trees.idc_tree(tmp_path / "idc")
    return tmp_path / "idc"


def config(root: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(source="idc", path=str(root), **settings)


def test_patches_have_the_label_of_their_folder_and_the_patient_as_group(root: Path) -> None:
    found = listing(config(root))
    assert len(found.ids) == 120
    assert found.ids.tolist() == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    assert found.labels.tolist() == [int(i[-5]) for i in found.ids]  # ..._class1.png
    assert (found.class_names, found.task, found.channels) == (("negative", "positive"), "binary", 3)
    assert found.groups is not None
    assert (found.groups == [i[:5] for i in found.ids]).all()
    assert found.given is None
    assert found.paths is not None
    assert all(p.is_file() for p in found.paths)
    assert not found.tables


def test_patients_may_lie_one_folder_deeper(root: Path, tmp_path: Path) -> None:
    trees.idc_tree(tmp_path / "deep", nested=True)
    assert (listing(config(tmp_path / "deep")).ids == listing(config(root)).ids).all()


def test_the_archives_second_copy_is_not_listed_twice(root: Path) -> None:
    shutil.copytree(root, root / "IDC_regular_ps50_idx5")
    found = listing(config(root))
    assert len(found.ids) == 120
    assert any("second copy" in note for note in found.notes)


def test_published_lists_decide_who_validates_and_tests(root: Path, tmp_path: Path) -> None:
    trees.idc_lists(root, tmp_path)
    missing = root / "10018" / "1" / "10018_idx5_x51_y851_class1.png"
    missing.unlink()
    path = tmp_path / "idc_val.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))  # the last patch of a patient who validates is in no list
    found = listing(config(root, lists=str(tmp_path)))
    assert found.given is not None
    assert found.groups is not None
    patients = {s: sorted(set(found.groups[found.given == s])) for s in (TRAIN, VAL, TEST)}
    assert patients == {
        TRAIN: [str(p) for p in range(10001, 10015)],
        VAL: ["10015", "10016", "10017"],
        TEST: ["10018", "10019", "10020"],
    }
    assert np.bincount(found.given).tolist() == [84, 17, 18]
    assert found.ids.tolist() == sorted(found.ids)
    assert found.paths is not None
    assert [p for p in found.paths if not p.is_file()] == [missing]
    assert "listed patches that are not on disk: 1" in found.notes
    assert "patches of listed patients in neither list, left out: 1" in found.notes
    assert set(found.tables) == {"idc_val.csv", "idc_test.csv"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class0.png,0", "class0.png,1", r"row 2: label '1' of '10015/0/.*', which lies in folder 0"),
        ("10015/0/", "10015/", r"row 2: img_path '10015/10015_.*'; expected patient/0/name"),
        ("img_path", "path", r"no column 'img_path'; did you mean path"),
    ],
)
def test_what_is_wrong_in_a_list_is_named(root: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    trees.idc_lists(root, tmp_path)
    path = tmp_path / "idc_val.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        listing(config(root, lists=str(tmp_path)))


def test_a_patch_in_both_lists_is_named(root: Path, tmp_path: Path) -> None:
    trees.idc_lists(root, tmp_path)
    shutil.copy(tmp_path / "idc_val.csv", tmp_path / "idc_test.csv")
    with pytest.raises(DataError, match=r"idc_test.csv, row 2: '10015/.*' is listed twice, first in val"):
        listing(config(root, lists=str(tmp_path)))


def test_what_is_misplaced_or_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of a patient with 0/ or 1/ in it"):
        listing(config(tmp_path))
    with pytest.raises(DataError, match=r"has no val list \(dataset.lists\); looked for idc_val.csv"):
        listing(config(root, lists=str(tmp_path)))
    patch = sorted((root / "10003" / "1").iterdir())[0]
    patch.rename(root / "10003" / "0" / patch.name)
    with pytest.raises(DataError, match=r"10003/0/.*says class 1 but lies in folder 0"):
        listing(config(root))
    shutil.rmtree(root)
    (root / "10001" / "0").mkdir(parents=True)
    with pytest.raises(DataError, match=r"the folders 0 and 1 of 1 patients hold no .png"):
        listing(config(root))


@pytest.mark.skipif(not (PUBLISHED / "idc_test.csv.gz").is_file(), reason="the published lists are not here")
def test_the_published_lists(tmp_path: Path) -> None:
    first = tables.read(PUBLISHED / "idc_val.csv.gz").column("img_path")[0]
    for path in (first, "10253/0/10253_idx5_x1001_y1001_class0.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    start = time.perf_counter()
    found = listing(config(tmp_path, lists=str(PUBLISHED)))
    assert time.perf_counter() - start < 10
    assert found.given is not None
    assert found.groups is not None
    assert np.bincount(found.given).tolist() == [1, 53922, 49458]
    patients = [set(found.groups[found.given == split]) for split in (TRAIN, VAL, TEST)]
    assert [len(p) for p in patients] == [1, 56, 56]
    assert len(set.union(*patients)) == 113
    assert [int(found.labels[found.given == s].sum()) for s in (VAL, TEST)] == [13283, 13088]
    assert "listed patches that are not on disk: 103379" in found.notes
