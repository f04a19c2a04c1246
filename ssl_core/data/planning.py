"""What is decided before the first image is decoded: channels and size of what is packed, and where shards begin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.config import DatasetConfig
from ssl_core.data.decoding import look
from ssl_core.data.form import Form, Unreadable
from ssl_core.data.listing import Listing
from ssl_core.data.sharding import SHARD_BYTES
from ssl_core.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

PLAN = "plan.json"
_LOOKED_TOGETHER = 4096  # headers read by one task


class Run(Protocol):
    """Calls a function of this package on every task, somewhere; results come in any order."""

    def __call__(self, function: Callable[[T], R], tasks: Sequence[T], /) -> Iterable[R]: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every shard must agree on."""

    fingerprint: str
    shape: tuple[int, int, int]  # (H, W, C) of every packed image
    a_shard: int  # images
    notes: tuple[str, ...]  # what a reader should know

    @property
    def image_bytes(self) -> int:
        height, width, channels = self.shape
        return height * width * channels

    def form(self, config: DatasetConfig) -> Form:
        channels: Literal[1, 3] = 1 if self.shape[2] == 1 else 3
        return Form(size=config.size, crop=config.crop, channels=channels, intensity=config.intensity)

    def save(self, folder: Path) -> None:
        partial = folder / f".{PLAN}.tmp"
        partial.write_text(json.dumps(vars(self)))
        partial.replace(folder / PLAN)

    @classmethod
    def open(cls, folder: Path) -> Plan | None:
        """The plan of an interrupted run; None where there is none."""
        try:
            said: dict[str, Any] = json.loads((folder / PLAN).read_text())
            height, width, channels = said["shape"]
            return cls(
                fingerprint=said["fingerprint"],
                shape=(height, width, channels),
                a_shard=said["a_shard"],
                notes=tuple(said["notes"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def plan(config: DatasetConfig, found: Listing, fingerprint: str, pixels: NDArray[np.uint8] | None, run: Run) -> Plan:
    """Looks at the headers of image files where the settings do not say enough.

    Raises DataError where images differ in size and none is set, or none can be read.
    """
    channels, notes = config.channels or found.channels, found.notes
    if pixels is not None:
        stored: tuple[int, int] | None = (pixels.shape[1], pixels.shape[2])
        channels = channels or int(pixels.shape[3])
    elif channels is None or config.size is None:
        looks = _look_at_all(found, run)  # (N, 3): width, height, grey
        stored = _common_size(looks, found) if config.size is None else None
        grey = looks[looks[:, 0] > 0, 2] == 1
        channels = channels or (1 if grey.all() else 3)
        if channels == 3 and grey.any():
            notes = (*notes, f"{int(grey.sum())} of {len(looks)} images are grey; they fill all three channels")
    else:
        stored = None
    height, width = _packed_size(config, stored, found)
    shape = (height, width, int(channels))
    return Plan(
        fingerprint=fingerprint, shape=shape, a_shard=max(1, SHARD_BYTES // (height * width * channels)), notes=notes
    )


def _packed_size(config: DatasetConfig, stored: tuple[int, int] | None, found: Listing) -> tuple[int, int]:
    """Height and width of packed images, from those as stored."""
    if config.size is not None:
        stored = (config.size, config.size)
    assert stored is not None
    first = str(found.paths[0]) if found.paths else "an image"
    height, width = stored
    if config.crop is not None:
        if config.crop > min(stored):
            raise DataError(f"dataset.crop {config.crop}: images are {width} x {height} pixels; crop less, or set size")
        return config.crop, config.crop
    if height != width:
        raise DataError(f"{first} is {width} x {height} pixels; set dataset.size to make all images square")
    return height, width


@dataclass(frozen=True, kw_only=True)
class _LookTask:
    start: int
    paths: tuple[Path, ...]


def _look_at_all(found: Listing, run: Run) -> NDArray[np.int64]:
    """Width, height and greyness (N, 3) of each file; zeros where the header cannot be read."""
    paths = found.paths or ()
    starts = range(0, len(paths), _LOOKED_TOGETHER)
    tasks = [_LookTask(start=s, paths=paths[s : s + _LOOKED_TOGETHER]) for s in starts]
    looks = np.zeros((len(paths), 3), dtype=np.int64)
    for start, some in run(_look_at, tasks):
        looks[start : start + len(some)] = some
    if not looks.any():
        raise DataError(f"none of the {len(paths)} images can be read, e.g. {paths[0]} {_why(paths[0])}")
    return looks


def _look_at(task: _LookTask) -> tuple[int, NDArray[np.int64]]:
    looks = np.zeros((len(task.paths), 3), dtype=np.int64)
    for i, path in enumerate(task.paths):
        try:
            header = look(path)
        except Unreadable:
            continue  # decoding will say why
        looks[i] = header.width, header.height, header.grey
    return task.start, looks


def _why(path: Path) -> str:
    try:
        look(path)
    except Unreadable as error:
        return str(error)
    return "could not be read a moment ago"


def _common_size(looks: NDArray[np.int64], found: Listing) -> tuple[int, int]:
    """Height and width of all; DataError names the first two that differ."""
    readable = np.flatnonzero(looks[:, 0])
    sizes = looks[readable, :2]
    other = np.flatnonzero((sizes != sizes[0]).any(axis=1))
    paths = found.paths or ()
    if len(other):
        a, b = (f"{paths[readable[i]]} is {sizes[i][0]} x {sizes[i][1]}" for i in (0, other[0]))
        raise DataError(f"images of several sizes: {a}, {b} pixels; set dataset.size to resize them")
    return int(sizes[0][1]), int(sizes[0][0])
