"""A packed dataset: images as uint8 pixels with their labels, splits, groups and ids, in one folder.

images/00000.npy ...   shards of uint8 (n, H, W, C), `shards.json` their lengths and digests
labels.npy, splits.npy, groups.npy, ids.npy
dataset.json           everything else; written last
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.sharding import IMAGES, SHARD_BYTES, channel_sums, write_array
from ssl_core.data.shards import Shards
from ssl_core.errors import DataError

TRAIN, VAL, TEST = 0, 1, 2
SPLITS = ("train", "val", "test")  # their names, at their numbers

Task = Literal["binary", "multiclass", "multilabel"]

SHARDS = "shards.json"

_ARRAYS = ("labels", "splits", "groups", "ids")
_CHUNK_BYTES = 16 << 20  # pixels looked at together, so that their sums, in wider numbers, never fill the memory


@dataclass(frozen=True, kw_only=True, eq=False)  # arrays have no single yes or no to equality
class Dataset:
    """N square images and what is known of them; rows keep one order throughout.

    A group is what must not straddle a split (the patient, the slide); without one, each image is its own.
    """

    name: str
    images: NDArray[np.uint8] | Shards  # (N, H, W, C), in memory or in mapped files; C is 1 or 3
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
    details: Mapping[str, Any] = field(default_factory=dict)  # what packing adds to the summary; JSON-able

    def __post_init__(self) -> None:
        lengths = {key: len(getattr(self, key)) for key in ("images", *_ARRAYS)}
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
            "name": self.name,
            "n": {name: len(r) for name, r in rows.items()},
            "groups": {name: len(np.unique(self.groups[r])) for name, r in rows.items()},
            "classes": {name: self._class_counts(r) for name, r in rows.items()},
            "channels": self.channels,
            "size": self.size,
            "task": self.task,
            "class_names": list(self.class_names),
            "fingerprint": self.fingerprint,
            "splits": self.split_origin,
            **self.details,
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
        """The dataset that `save` left in `folder`, its images mapped; DataError where it cannot be read."""
        try:
            facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
            shards = json.loads((folder / SHARDS).read_text(encoding="utf-8"))
            for shard in shards["files"]:
                if (folder / shard["file"]).parent != folder / IMAGES:  # somebody else's list
                    raise ValueError(f"{shard['file']} lies elsewhere")
                if (folder / shard["file"]).stat().st_size != shard["bytes"]:
                    raise ValueError(f"{shard['file']} is not of {shard['bytes']} bytes")
            return cls(
                name=facts["name"],
                images=Shards(
                    [folder / shard["file"] for shard in shards["files"]],
                    [shard["images"] for shard in shards["files"]],
                    shards["image_shape"],
                ),
                class_names=tuple(facts["class_names"]),
                task=facts["task"],
                mean=tuple(facts["mean"]),
                std=tuple(facts["std"]),
                fingerprint=facts["fingerprint"],
                split_origin=facts["summary"]["splits"],
                details=facts["details"],
                **{key: np.load(folder / f"{key}.npy", allow_pickle=False) for key in _ARRAYS},
            )
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise DataError(
                f"packed dataset {folder}: cannot be read ({error}); remove it and pack it again"
            ) from error

    def save(self, folder: Path) -> None:
        """Write the folder, `dataset.json` last. Images that lie in shards of this folder stay as they are."""
        folder.mkdir(parents=True, exist_ok=True)
        if not isinstance(self.images, Shards) or any(path.parent != folder / IMAGES for path in self.images.paths):
            _save_images(self.images, folder)
        for key in _ARRAYS:
            np.save(folder / f"{key}.npy", getattr(self, key), allow_pickle=False)
        facts = {
            "name": self.name,
            "class_names": list(self.class_names),
            "task": self.task,
            "mean": list(self.mean),
            "std": list(self.std),
            "fingerprint": self.fingerprint,
            "details": dict(self.details),
            "summary": self.summary,
        }
        (folder / "dataset.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_images(images: NDArray[np.uint8] | Shards, folder: Path) -> None:
    step = max(1, SHARD_BYTES // max(1, images[0].nbytes))
    files = []
    for index, start in enumerate(range(0, len(images), step)):
        part = np.ascontiguousarray(images[start : start + step])
        file = f"{IMAGES}/{index:05d}.npy"
        size, digest = write_array(folder / file, part)
        files.append({"file": file, "images": len(part), "bytes": size, "sha256": digest})
    save_shard_list(folder, files, images.shape[1:])


def save_shard_list(folder: Path, files: Sequence[Mapping[str, Any]], image_shape: Sequence[int]) -> None:
    """`shards.json`: each file's name below `folder`, images, bytes and sha256, in the dataset's order."""
    text = json.dumps({"image_shape": list(image_shape), "files": list(files)}, indent=1)
    (folder / SHARDS).write_text(text + "\n", encoding="utf-8")


def shard_digests(folder: Path) -> dict[str, str]:
    """The sha256 of each shard of a packed dataset, by its name below `folder`, as noted when it was written."""
    listed = json.loads((folder / SHARDS).read_text(encoding="utf-8"))
    return {shard["file"]: shard["sha256"] for shard in listed["files"]}


def pixel_statistics(
    images: NDArray[np.uint8] | Shards, rows: NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels / 255 over `rows` of `images` (N, H, W, C), one a channel."""
    step = max(1, _CHUNK_BYTES // max(1, images[0].nbytes))
    parts = [channel_sums(images[rows[start : start + step]]) for start in range(0, len(rows), step)]
    total, squares = (np.concatenate(sums) for sums in zip(*parts, strict=True))
    return mean_and_std(total, squares, int(np.prod(images.shape[1:3])))


def mean_and_std(
    total: NDArray[np.int64], squares: NDArray[np.int64], pixels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels / 255, one a channel, from sums (N, C) over the `pixels` of each image.

    Exact up to the last division: the sums are whole numbers. A channel that is constant has std 1, so that normalising
    leaves it at 0.
    """
    count = len(total) * pixels
    means, stds = [], []
    for s, q in zip(total.sum(axis=0).tolist(), squares.sum(axis=0).tolist(), strict=True):
        means.append(s / (255 * count))
        spread = count * q - s * s  # count^2 times the variance; Python's integers have no end
        stds.append(math.sqrt(Fraction(spread, (255 * count) ** 2)) if spread else 1.0)
    return tuple(means), tuple(stds)
