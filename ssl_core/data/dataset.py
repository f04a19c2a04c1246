"""A packed dataset: images as uint8 pixels with their labels, splits, groups and ids, in one folder of .npy files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.errors import DataError

TRAIN, VAL, TEST = 0, 1, 2
SPLITS = ("train", "val", "test")  # their names, at their numbers

Task = Literal["binary", "multiclass", "multilabel"]

_ARRAYS = ("images", "labels", "splits", "groups", "ids")
_CHUNK_BYTES = 64 << 20  # pixels looked at together, so that memory-mapped images never fill the memory


@dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no single yes or no to equality
class Dataset:
    """N square images and what is known of them; rows keep one order throughout.

    A group is what must not straddle a split (the patient, the slide); without one, each image is its own.
    """

    name: str
    images: NDArray[np.uint8]  # (N, H, W, C), in memory or memory-mapped; C is 1 or 3
    labels: NDArray[Any]  # (N,) int64: 0/1, or 0..C-1; (N, L) uint8 where the task is multilabel
    splits: NDArray[np.int8]  # (N,) TRAIN, VAL or TEST
    groups: NDArray[np.str_]  # (N,)
    ids: NDArray[np.str_]  # (N,) unique
    class_names: tuple[str, ...]
    task: Task
    mean: tuple[float, ...]  # of pixels / 255 over the training images, one a channel
    std: tuple[float, ...]
    fingerprint: str
    split_origin: str = "given"  # or how they were made

    def __post_init__(self) -> None:
        lengths = {key: len(getattr(self, key)) for key in _ARRAYS}
        if len(set(lengths.values())) != 1:
            raise DataError(f"dataset {self.name}: arrays differ in length ({lengths}); each holds one row an image")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return int(self.images.shape[3])

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.images.shape[1])

    @property
    def n_outputs(self) -> int:
        """Columns of a prediction: 1 for two classes, else one a class or label."""
        return 1 if self.task == "binary" else len(self.class_names)

    def rows(self, split: int) -> NDArray[np.int64]:
        """Ascending row numbers of `split`."""
        return np.flatnonzero(self.splits == split)

    @property
    def summary(self) -> dict[str, Any]:
        """Counts a reader wants before any array is opened; JSON-able. `classes` holds positives where multilabel."""
        rows = {name: self.rows(split) for split, name in enumerate(SPLITS)}
        return {
            "n": {name: len(r) for name, r in rows.items()},
            "groups": {name: len(np.unique(self.groups[r])) for name, r in rows.items()},
            "classes": {name: self._class_counts(r) for name, r in rows.items()},
            "channels": self.channels,
            "size": self.size,
            "task": self.task,
            "class_names": list(self.class_names),
            "fingerprint": self.fingerprint,
            "splits": self.split_origin,
        }

    def _class_counts(self, rows: NDArray[np.int64]) -> dict[str, int]:
        labels = self.labels[rows]
        if self.task == "multilabel":
            counts = labels.sum(axis=0, dtype=np.int64)  # (L,)
        else:
            counts = np.bincount(labels, minlength=len(self.class_names))  # (C,)
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """The dataset that `save` left in `folder`, its images memory-mapped; DataError where it cannot be read."""
        try:
            facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            arrays = {
                key: np.load(folder / f"{key}.npy", mmap_mode="r" if key == "images" else None, allow_pickle=False)
                for key in _ARRAYS
            }
            return cls(
                name=facts["name"],
                class_names=tuple(facts["class_names"]),
                task=facts["task"],
                mean=tuple(facts["mean"]),
                std=tuple(facts["std"]),
                fingerprint=facts["fingerprint"],
                split_origin=facts["summary"]["splits"],
                **arrays,
            )
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise DataError(
                f"packed dataset {folder}: cannot be read ({error}); remove it and pack it again"
            ) from error

    def save(self, folder: Path) -> None:
        """Write `<array>.npy` and, last, `dataset.json`. Images already mapped from `folder` are only flushed."""
        folder.mkdir(parents=True, exist_ok=True)
        for key in _ARRAYS:
            array, path = getattr(self, key), folder / f"{key}.npy"
            if isinstance(array, np.memmap) and array.filename is not None and _same_file(Path(array.filename), path):
                array.flush()
            else:
                np.save(path, array, allow_pickle=False)
        facts = {
            "name": self.name,
            "class_names": list(self.class_names),
            "task": self.task,
            "mean": list(self.mean),
            "std": list(self.std),
            "fingerprint": self.fingerprint,
            "summary": self.summary,
        }
        (folder / "dataset.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _same_file(a: Path, b: Path) -> bool:
    return b.exists() and a.samefile(b)


def pixel_statistics(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels / 255 over `rows` of `images` (N, H, W, C), one a channel.

    Exact: from counts of the 256 values. A channel that is constant has std 1, so that normalising leaves it at 0.
    """
    channels = images.shape[3]
    counts = np.zeros((channels, 256), dtype=np.int64)
    step = max(1, _CHUNK_BYTES // max(1, images[0].nbytes))
    for start in range(0, len(rows), step):
        chunk = images[rows[start : start + step]]  # (n, H, W, C)
        for c in range(channels):
            counts[c] += np.bincount(chunk[..., c].ravel(), minlength=256)
    values = np.arange(256) / 255  # (256,)
    share = counts / counts.sum(axis=1, keepdims=True)  # (C, 256)
    mean = share @ values  # (C,)
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    constant = (counts > 0).sum(axis=1) == 1
    return _floats(mean), _floats(np.where(constant, 1.0, std))


def _floats(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
