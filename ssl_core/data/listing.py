"""What a source says of its images before any of them is decoded: which there are, their labels, groups and splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import TEST, TRAIN, VAL, Task

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig

SPLIT_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "test": TEST,
    "testing": TEST,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """N images that a source names, in one order. They lie in files (`paths`) or come at once (`pixels`)."""

    ids: NDArray[np.str_]  # (N,) unique: of files, the path below the source's root, with forward slashes
    labels: NDArray[Any]  # (N,) int64 classes, or (N, L) uint8 where the task is multilabel
    class_names: tuple[str, ...]
    task: Task
    groups: NDArray[np.str_] | None = None  # (N,) the patient, the slide; None: each image is its own
    given: NDArray[np.int8] | None = None  # (N,) splits; None: the source names none
    paths: tuple[Path, ...] | None = None  # (N,) image files; one that is missing counts as unreadable
    pixels: Callable[[], NDArray[np.uint8]] | None = None  # -> (N, H, W, C), as stored
    tables: Mapping[str, Path] = field(default_factory=dict)  # other files that shaped the listing (CSVs), by name
    channels: int | None = None  # 1 or 3 where the source is known to hold just that
    notes: tuple[str, ...] = ()  # what a reader of the audit should know, e.g. which official split was taken


def listing(config: DatasetConfig) -> Listing:
    """The source's images. DataError, with the value and the remedy, where it is missing or its tables are wrong."""
    from ssl_core.data import cxr14, digits, eyepacs, folder, idc, manifest, medmnist, npz

    match config.source:
        case "digits":
            return digits.listing(config)
        case "npz":
            return npz.listing(config)
        case "folder":
            return folder.listing(config)
        case "manifest":
            return manifest.listing(config)
        case "cxr14":
            return cxr14.listing(config)
        case "eyepacs":
            return eyepacs.listing(config)
        case "idc":
            return idc.listing(config)
        case "medmnist":
            return medmnist.listing(config)


def numbered(n: int) -> NDArray[np.str_]:
    """Row numbers of equal width, as ids of images that have no names."""
    return np.array([f"{i:0{len(str(n - 1))}d}" for i in range(n)])
