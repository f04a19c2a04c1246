"""NIH's ChestX-ray14 as distributed (Wang et al. 2017; paper section 4.2.1): 112,120 chest x-rays of 30,805 patients.

<path>/Data_Entry_2017.csv or its second edition Data_Entry_2017_v2020.csv, the images in images_001/images/ ...
images_012/images/ or in images/, and the official train_val_list.txt and test_list.txt.

Lists published elsewhere (`dataset.lists`) decide splits and labels. Those of the paper's code hold 80,988 positive
labels: about a tenth more than the counts that section 4.2.1 prints, and within 0.3% of NIH's own table (81,176).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssl_core.data import scan, tables
from ssl_core.data.dataset import SPLITS, TEST, TRAIN
from ssl_core.data.listing import Listing
from ssl_core.errors import DataError, nearest

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig

#: The labels, in the order of section 4.2.1.
LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural Thickening",
    "Hernia",
)

_NO_FINDING = "no finding"
_COLUMN = {name.casefold(): i for i, name in enumerate(LABELS)}
_ZERO_OR_ONE = {"0": 0, "1": 1}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """What the tables say of N images."""

    names: list[str]  # image file names
    labels: NDArray[np.uint8]  # (N, 14)
    given: NDArray[np.int8] | None  # (N,)
    tables: Mapping[str, Path]
    notes: tuple[str, ...]


def listing(config: DatasetConfig) -> Listing:
    """Images by name, which are their ids; the patient, the number before the underscore, is the group.

    Without `dataset.lists`: labels of NIH's table, TRAIN and TEST of its two lists; validation is still to be made from
    TRAIN, by patient. With them: labels and all three splits are the lists'. Images that no list names are left out.
    Grey throughout: a few of NIH's files hold RGBA, but no colour.
    """
    root = scan.root(config.path, holds="Data_Entry_2017.csv and the folders of images")
    rows = _published(Path(config.lists)) if config.lists is not None else _official(root)
    on_disk = _images(root)
    scan.check_any(
        rows.names,
        sum(name in on_disk for name in rows.names),
        looked_in=f"{root / 'images'} and {root / 'images_*' / 'images'}",
    )
    left_out = len(on_disk.keys() - set(rows.names)) if config.lists is not None else 0
    return Listing(
        ids=np.array(rows.names),
        labels=rows.labels,
        class_names=LABELS,
        task="multilabel",
        groups=np.array([name.partition("_")[0] for name in rows.names]),
        given=rows.given,
        paths=tuple(on_disk.get(name) or root / "images" / name for name in rows.names),
        tables=rows.tables,
        channels=1,
        notes=rows.notes + ((f"images on disk that are in no list and left out: {left_out}",) if left_out else ()),
    )


def _images(root: Path) -> dict[str, Path]:
    """Image files by name, wherever among the distributed folders they lie."""
    found: dict[str, Path] = {}
    for part in (name for name in scan.folders(root) if name == "images" or name.startswith("images_")):
        folder = root / part
        inner = [folder / "images"] if "images" in scan.folders(folder) else []
        for place in [folder, *inner]:
            for name in scan.files(place):
                found.setdefault(name, place / name)
    return found


def _official(root: Path) -> _Rows:
    editions = [name for name in scan.files(root) if name.startswith("Data_Entry_2017") and name.endswith(".csv")]
    if not editions:
        raise DataError(f"{root} has no Data_Entry_2017.csv or Data_Entry_2017_v2020.csv; download NIH's table into it")
    table = tables.read(root / editions[-1])
    notes = [] if len(editions) == 1 else [f"of {', '.join(editions)}, the last is taken"]
    names, patients = table.column("Image Index"), table.column("Patient ID")
    seen: set[str] = set()
    for i, (name, patient) in enumerate(zip(names, patients, strict=True)):
        if name.partition("_")[0].lstrip("0") != patient.lstrip("0"):
            raise table.error(i, f"image {name!r} is named after another patient than Patient ID {patient!r}")
        if name in seen:
            raise table.error(i, f"image {name!r} is there twice; drop one")
        seen.add(name)
    labels = np.zeros((len(names), len(LABELS)), dtype=np.uint8)
    for i, findings in enumerate(table.column("Finding Labels")):
        for finding in findings.split("|"):
            known = finding.strip().replace("_", " ").casefold()
            if known in _COLUMN:
                labels[i, _COLUMN[known]] = 1
            elif known != _NO_FINDING:
                raise table.error(i, f"unknown finding {finding!r}{nearest(finding, (*LABELS, 'No Finding'))}")
    rows = _Rows(names=names, labels=labels, given=None, tables={table.path.name: table.path}, notes=tuple(notes))
    return _with_official_split(root, rows)


def _with_official_split(root: Path, rows: _Rows) -> _Rows:
    files = {TRAIN: root / "train_val_list.txt", TEST: root / "test_list.txt"}
    missing = [path.name for path in files.values() if not path.is_file()]
    if len(missing) == 1:
        raise DataError(f"{root} has no {missing[0]}, but the other official list; download both, or remove the other")
    if missing:
        note = f"no {' and '.join(missing)}: the official split is not used, all three are made by patient"
        return _Rows(names=rows.names, labels=rows.labels, given=None, tables=rows.tables, notes=(*rows.notes, note))
    split_of: dict[str, int] = {}
    for split, path in files.items():
        for number, words in tables.words(path):
            if split_of.setdefault(words[0], split) != split:
                raise DataError(f"{path}, row {number}: {words[0]!r} is in both official lists; drop one")
    keep = [i for i, name in enumerate(rows.names) if name in split_of]
    if not keep:
        raise DataError(f"{files[TRAIN]} and {files[TEST].name} name none of the {len(rows.names)} images of the table")
    notes = [*rows.notes, "official split: train_val_list.txt and test_list.txt; validation from the first, by patient"]
    if len(keep) < len(rows.names):
        notes.append(f"images of the table in neither official list, left out: {len(rows.names) - len(keep)}")
    return _Rows(
        names=[rows.names[i] for i in keep],
        labels=rows.labels[keep],
        given=np.array([split_of[rows.names[i]] for i in keep], dtype=np.int8),
        tables={**rows.tables, **{path.name: path for path in files.values()}},
        notes=tuple(notes),
    )


def _published(folder: Path) -> _Rows:
    """The lists `name l1 ... l14`, train, val and test in turn."""
    names: list[str] = []
    labels: list[list[int]] = []
    given: list[int] = []
    first: dict[str, str] = {}
    shaped: dict[str, Path] = {}
    for split, word in enumerate(SPLITS):
        path = tables.one_of(folder, _spellings(word), what=f"{word} list (dataset.lists)")
        shaped[path.name] = path
        for number, words in tables.words(path):
            where = f"{path}, row {number}"
            if len(words) != 1 + len(LABELS):
                raise DataError(f"{where}: has {len(words) - 1} labels; expected an image and {len(LABELS)} labels")
            if words[0] in first:
                raise DataError(f"{where}: image {words[0]!r} is already in {first[words[0]]}; drop one")
            wrong = next((w for w in words[1:] if w not in _ZERO_OR_ONE), None)
            if wrong is not None:
                raise DataError(f"{where}: label {wrong!r}; expected 0 or 1")
            first[words[0]] = f"{path.name}, row {number}"
            names.append(words[0])
            labels.append([_ZERO_OR_ONE[w] for w in words[1:]])
            given.append(split)
    if not names:
        raise DataError(f"the lists in {folder} are empty; expected an image and {len(LABELS)} labels a line")
    return _Rows(
        names=names,
        labels=np.array(labels, dtype=np.uint8),
        given=np.array(given, dtype=np.int8),
        tables=shaped,
        notes=(f"splits and labels are those of {_and(shaped)}, not of NIH's table and official lists",),
    )


def _spellings(word: str) -> tuple[str, ...]:
    return tuple(f"{stem}.txt{end}" for stem in (f"cxr14_{word}", word) for end in ("", ".gz"))


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}"
