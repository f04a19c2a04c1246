"""EyePACS is listed as Kaggle's tables have it: referable or not, by patient, train and test."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import TEST, TRAIN
from ssl_core.data.eyepacs import listing
from ssl_core.errors import DataError
from tests.ssl_core.data import trees


def config(root: Path) -> DatasetConfig:
    return DatasetConfig(source="eyepacs", path=str(root))


def levels(root: Path) -> dict[str, int]:
    """The level of each id, as the CSVs have it."""
    found = {}
    for part, name in {"train": "trainLabels.csv", "test": "retinopathy_solution.csv"}.items():
        for line in (root / name).read_text().splitlines()[1:]:
            image, level, *_ = line.split(",")
            found[f"{part}/{image}.jpeg"] = int(level)
    return found


def test_levels_of_two_and_more_are_referable(tmp_path: Path) -> None:
    trees.eyepacs_tree(tmp_path)
    found = listing(config(tmp_path))
    known = levels(tmp_path)
    assert found.ids.tolist() == list(known)
    assert found.labels.tolist() == [int(level >= 2) for level in known.values()]
    assert set(known.values()) == {0, 1, 2, 3, 4}
    assert (found.class_names, found.task, found.channels) == (("not referable", "referable"), "binary", 3)
    assert found.given is not None
    assert found.given.tolist() == [TEST if i.startswith("test") else TRAIN for i in known]
    assert found.groups is not None
    assert found.groups.tolist() == [i.split("/")[1].split("_")[0] for i in known]
    assert found.paths is not None
    assert all(p.is_file() for p in found.paths)
    assert set(found.tables) == {"trainLabels.csv", "retinopathy_solution.csv"}


def test_test_labels_may_have_their_other_name(tmp_path: Path) -> None:
    trees.eyepacs_tree(tmp_path)
    (tmp_path / "retinopathy_solution.csv").rename(tmp_path / "testLabels15.csv")
    found = listing(config(tmp_path))
    assert set(found.tables) == {"trainLabels.csv", "testLabels15.csv"}
    assert len(found.ids) == 60


def test_without_test_labels_or_images_only_train_is_used(tmp_path: Path) -> None:
    trees.eyepacs_tree(tmp_path / "a", solution=False)
    trees.eyepacs_tree(tmp_path / "b")
    (tmp_path / "b" / "test").rename(tmp_path / "elsewhere")
    for root, why in ((tmp_path / "a", "no test labels"), (tmp_path / "b", "test/ has no image")):
        found = listing(config(root))
        assert found.given is None
        assert set(found.tables) == {"trainLabels.csv"}
        assert all(i.startswith("train/") for i in found.ids)
        assert any(why in note for note in found.notes)


def test_what_is_without_a_label_or_an_image_is_counted(tmp_path: Path) -> None:
    trees.eyepacs_tree(tmp_path)
    (tmp_path / "train" / "2_left.jpeg").rename(tmp_path / "train" / "999_left.jpeg")
    (tmp_path / "train" / "4_left.jpeg").rename(tmp_path / "train" / "4_left.png")  # a copy that somebody converted
    found = listing(config(tmp_path))
    assert found.paths is not None
    assert [p.name for p in found.paths if not p.is_file()] == ["2_left.jpeg"]
    assert "train/4_left.png" in found.ids
    assert "images in train/ without a label, left out: 1" in found.notes
    assert "labelled images that are not in train/: 1" in found.notes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1_left,", "1left,", r"row 2: image '1left'; expected the patient's number"),
        ("1_left,1", "1_left,5", r"row 2: level '5' of 1_left; expected 0, 1, 2, 3, 4"),
        ("1_right", "1_left", r"row 3: image '1_left' is there twice"),
        ("image,level", "image,grade", r"no column 'level'"),
    ],
)
def test_what_is_wrong_in_the_table_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    trees.eyepacs_tree(tmp_path)
    text = (tmp_path / "trainLabels.csv").read_text()
    assert old in text
    (tmp_path / "trainLabels.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        listing(config(tmp_path))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no table of training labels; looked for trainLabels.csv, "):
        listing(config(tmp_path))
    trees.eyepacs_tree(tmp_path)
    (tmp_path / "train").rename(tmp_path / "Train set")
    with pytest.raises(DataError, match=r"none of the 40 images is there, e.g. 1_left; looked in .*train"):
        listing(config(tmp_path))
