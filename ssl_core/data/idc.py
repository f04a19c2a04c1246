"""IDC as Janowczyk and Kaggle distribute it (paper section 4.2.3): 50 x 50 patches of breast tissue, by patient.

<path>/<patient>/<0 or 1>/<patient>_idx5_x<x>_y<y>_class<0 or 1>.png, or all of it below IDC_regular_ps50_idx5/. The
published archive holds 277,524 patches. It has no official split: the splits are made by patient, at the shares of
`dataset.validation` and `dataset.test` (the paper: 0.1 and 0.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssl_core.data import scan, tables
from ssl_core.data.dataset import SPLITS, TEST, TRAIN, VAL
from ssl_core.data.listing import Listing
from ssl_core.errors import DataError

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig

CLASS_NAMES = ("negative", "positive")

_NESTED = "IDC_regular_ps50_idx5"
_LABELS = ("0", "1")


def listing(config: DatasetConfig) -> Listing:
    """Patches sorted by id, the path below the folder of patients; the patient is the group.

    With `dataset.lists`, its lists of val and test decide those splits and all other patients train: the training list
    was not published in full. Patches of a listed patient that neither list names are left out, for in training they
    would leak.
    """
    root = scan.root(config.path, holds="one folder a patient, each with 0/ and 1/")
    root, patients, notes = _patients(root)
    ids = _patches(root, patients)
    if not ids:
        raise DataError(f"{root}: the folders 0 and 1 of {len(patients)} patients hold no .png; unpack the patches")
    given: NDArray[np.int8] | None = None
    shaped: dict[str, Path] = {}
    if config.lists is not None:
        split_of, shaped = _published(Path(config.lists))
        ids, given, more = _split(ids, split_of)
        notes = [*notes, f"val and test are {' and '.join(shaped)}; all other patients train", *more]
    return Listing(
        ids=np.array(ids),
        labels=np.array([int(i.split("/")[1]) for i in ids], dtype=np.int64),
        class_names=CLASS_NAMES,
        task="binary",
        groups=np.array([i.partition("/")[0] for i in ids]),
        given=given,
        paths=tuple(root / i for i in ids),
        tables=shaped,
        channels=3,
        notes=tuple(notes),
    )


def _patients(root: Path) -> tuple[Path, list[str], list[str]]:
    """The folder of the patients, their names, and notes."""
    names = scan.folders(root)
    patients = [name for name in names if set(_LABELS) & set(scan.folders(root / name))]
    nested = _NESTED in names
    if patients:  # Kaggle's archive holds everything twice: at the top, and below the folder
        return root, patients, [f"{_NESTED}/, a second copy in Kaggle's archive, is not used"] if nested else []
    if nested:
        return _patients(root / _NESTED)
    raise DataError(f"{root} has no folder of a patient with 0/ or 1/ in it; unpack the patches there")


def _patches(root: Path, patients: Sequence[str]) -> list[str]:
    ids = []
    for patient in patients:
        for label in sorted(set(_LABELS) & set(scan.folders(root / patient))):
            for name in scan.files(root / patient / label):
                if name.lower().endswith(".png"):
                    _check_class(name, label, root / patient / label / name)
                    ids.append(f"{patient}/{label}/{name}")
    return sorted(ids)


def _check_class(name: str, label: str, where: object) -> None:
    said = name.rpartition("_class")[2].partition(".")[0] if "_class" in name else label
    if said != label:
        raise DataError(f"{where} says class {said} but lies in folder {label}; move it to the right one")


def _published(folder: Path) -> tuple[dict[str, int], dict[str, Path]]:
    """The split of each patch that the lists name, and the lists by name."""
    split_of: dict[str, int] = {}
    shaped: dict[str, Path] = {}
    for split in (VAL, TEST):
        word = SPLITS[split]
        spellings = [f"{stem}.csv{end}" for stem in (f"idc_{word}", word) for end in ("", ".gz")]
        path = tables.one_of(folder, spellings, what=f"{word} list (dataset.lists)")
        shaped[path.name] = path
        table = tables.read(path)
        for i, (name, label) in enumerate(zip(table.column("img_path"), table.column("labels"), strict=True)):
            parts = name.split("/")
            if len(parts) != 3 or parts[1] not in _LABELS:
                raise table.error(i, f"img_path {name!r}; expected patient/0/name or patient/1/name")
            if label != parts[1]:
                raise table.error(i, f"label {label!r} of {name!r}, which lies in folder {parts[1]}; correct one")
            if name in split_of:
                raise table.error(i, f"{name!r} is listed twice, first in {SPLITS[split_of[name]]}; drop one")
            split_of[name] = split
    return split_of, shaped


def _split(ids: list[str], split_of: dict[str, int]) -> tuple[list[str], NDArray[np.int8], list[str]]:
    """All ids, those of the lists included, the split of each, and notes."""
    listed = {i.partition("/")[0] for i in split_of}
    on_disk = set(ids)
    missing = len(split_of.keys() - on_disk)
    if missing == len(split_of):
        raise DataError(
            f"none of the {missing} listed patches is on disk, e.g. {next(iter(split_of))}; correct the path"
        )
    training = [i for i in ids if i.partition("/")[0] not in listed]
    left_out = len(on_disk) - len(training) - (len(split_of) - missing)
    found = sorted([*training, *split_of])
    notes = [f"listed patches that are not on disk: {missing}"] if missing else []
    if left_out:
        notes.append(f"patches of listed patients in neither list, left out: {left_out}")
    return found, np.array([split_of.get(i, TRAIN) for i in found], dtype=np.int8), notes
