"""EyePACS as Kaggle distributes it (2015; paper section 4.2.2): 88,702 photographs of the retina, graded 0 to 4.

<path>/trainLabels.csv (image, level) with train/*.jpeg, and retinopathy_solution.csv or testLabels*.csv (image, level,
Usage) with test/*.jpeg. Levels 2 to 4 are referable.

The paper took 57,146 images to train and validate and 8,790 to test (the counts of Voets et al. 2019); which ones is
not published, so that its split cannot be had here: the split is Kaggle's, 35,126 to train and 53,576 to test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_core.data import scan, tables
from ssl_core.data.dataset import TEST, TRAIN
from ssl_core.data.listing import Listing

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig

CLASS_NAMES = ("not referable", "referable")

_REFERABLE = 2  # the least level that is
_LEVELS = tuple("01234")
_IMAGE = re.compile(r"([0-9]+)_(left|right)")
_SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff")  # Kaggle's own first; others are copies that someone made


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The images of one of Kaggle's two parts, in the order of its table."""

    names: list[str]  # e.g. 10_left
    labels: list[int]
    paths: list[Path]
    unlabelled: int  # images on disk that the table does not name
    missing: int  # images of the table that are not on disk


def listing(config: DatasetConfig) -> Listing:
    """Referable against not. Ids are paths below the root (`train/10_left.jpeg`), the group is the patient.

    Kaggle's data page: "Images are labeled with a subject id as well as either left or right". Subjects are numbered
    once over both parts (17,563 and 26,788 of them, the training numbers scattered over 10 to 44,349), so the number
    alone is the group. Should one be in both parts, the audit reports a leak.
    Validation is still to be made from TRAIN, by patient. Without test labels or images, TRAIN is all there is and all
    three splits are to be made.
    """
    root = scan.root(config.path, holds="trainLabels.csv, train/ and test/")
    train_table = tables.one_of(root, ("trainLabels.csv", "trainLabels15.csv"), what="table of training labels")
    train = _part(root / "train", train_table)
    scan.check_any(train.names, len(train.names) - train.missing, looked_in=str(root / "train"))
    parts, shaped, notes = {TRAIN: train}, {train_table.name: train_table}, _counts("train", train)
    test_table = _test_table(root)
    if test_table is None:
        notes.append("no test labels (retinopathy_solution.csv): all splits are made from train, by patient")
    else:
        test = _part(root / "test", test_table)
        if test.missing < len(test.names):
            parts[TEST], shaped[test_table.name] = test, test_table
            notes += [*_counts("test", test), "split: Kaggle's train and test; validation from train, by patient"]
        else:
            notes.append(f"test/ has no image of {test_table.name}: all splits are made from train, by patient")
    names = [name for part in parts.values() for name in part.names]
    paths = tuple(path for part in parts.values() for path in part.paths)
    splits = [split for split, part in parts.items() for _ in part.names]
    return Listing(
        ids=np.array([path.relative_to(root).as_posix() for path in paths]),
        labels=np.array([label for part in parts.values() for label in part.labels], dtype=np.int64),
        class_names=CLASS_NAMES,
        task="binary",
        groups=np.array([name.partition("_")[0] for name in names]),
        given=np.array(splits, dtype=np.int8) if TEST in parts else None,
        paths=paths,
        tables=shaped,
        channels=3,
        notes=(*notes, "the paper's own 57,146 and 8,790 images are not published"),
    )


def _test_table(root: Path) -> Path | None:
    known = [name for name in scan.files(root) if name.startswith("testLabels") and name.endswith(".csv")]
    names = ["retinopathy_solution.csv", *known]
    return next((root / name for name in names if (root / name).is_file()), None)


def _part(folder: Path, path: Path) -> _Part:
    table = tables.read(path)
    names, levels = table.column("image"), table.column("level")
    on_disk = _images(folder)
    seen: set[str] = set()
    for i, (name, level) in enumerate(zip(names, levels, strict=True)):
        if not _IMAGE.fullmatch(name):
            raise table.error(i, f"image {name!r}; expected the patient's number with _left or _right, e.g. 10_left")
        if name in seen:
            raise table.error(i, f"image {name!r} is there twice; drop one")
        if level not in _LEVELS:
            raise table.error(i, f"level {level!r} of {name}; expected {', '.join(_LEVELS)}")
        seen.add(name)
    return _Part(
        names=names,
        labels=[int(int(level) >= _REFERABLE) for level in levels],
        paths=[on_disk.get(name) or folder / f"{name}.jpeg" for name in names],
        unlabelled=len(on_disk.keys() - seen),
        missing=sum(name not in on_disk for name in names),
    )


def _images(folder: Path) -> dict[str, Path]:
    """Image files by their names without suffix."""
    if not folder.is_dir():
        return {}
    found: dict[str, tuple[int, Path]] = {}
    for file in scan.files(folder):
        stem, dot, suffix = file.rpartition(".")
        if (end := f"{dot}{suffix.lower()}") in _SUFFIXES:
            found[stem] = min(found.get(stem, (len(_SUFFIXES), folder)), (_SUFFIXES.index(end), folder / file))
    return {stem: path for stem, (_, path) in found.items()}


def _counts(word: str, part: _Part) -> list[str]:
    notes = []
    if part.unlabelled:
        notes.append(f"images in {word}/ without a label, left out: {part.unlabelled}")
    if part.missing:
        notes.append(f"labelled images that are not in {word}/: {part.missing}")
    return notes
