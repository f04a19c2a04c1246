"""One shard of a packed dataset: its images decoded, described and written, with nothing else held in memory.

    images/00007.npy   uint8 (n, H, W, C): the readable ones of the task's images, in the listing's order
    facts/00007.npz    what is known of all of them, readable or not; written last, so it marks the shard as finished

Both appear by a rename. The same task leaves the same bytes wherever and whenever it runs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ssl_core.data.decoding import Decoded, decode
from ssl_core.data.form import Form, Unreadable, from_array
from ssl_core.data.likeness import describe
from ssl_core.errors import DataError

#: Packed pixels of a shard. Memory of a worker is about this and a few decoded images more.
SHARD_BYTES = 64 << 20

IMAGES, FACTS = "images", "facts"  # folders
_EXACT_LINES = 256  # whose squares, of 255 at most, sum to less than 2^24: float32 holds every whole number up to it
_CACHED = 1 << 16  # values summed together, so that they stay in the processor's cache
_ROWS = ("readable", "width", "height", "bits", "source_bytes")  # of all images of a task
_LIKE = "like_"  # before the names of what `describe` says


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTask:
    """Some consecutive images of the listing, in files or in an array that is there already."""

    index: int
    folder: Path  # of the packed dataset
    source: tuple[Path, ...] | NDArray[np.uint8]
    form: Form
    shape: tuple[int, int, int]  # (H, W, C) that every image must come to
    threads: int = 1

    @property
    def images_file(self) -> Path:
        return self.folder / IMAGES / f"{self.index:05d}.npy"

    @property
    def facts_file(self) -> Path:
        return self.folder / FACTS / f"{self.index:05d}.npz"

    @property
    def finished(self) -> bool:
        """Whether an earlier run made this shard. What a crash of the machine cut short does not count."""
        try:
            facts = ShardFacts.open(self.facts_file)
            return facts.bytes == 0 or self.images_file.stat().st_size == facts.bytes
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardFacts:
    """What is known of a task's n images, m of them readable."""

    rows: dict[str, NDArray[Any]]  # (n,) each: `readable`, `width`, `height`, `bits`, `source_bytes`
    known: dict[str, NDArray[Any]]  # (m,) `low`, `high`; (m, C) `total`, `squares`: sums of pixels, of their squares;
    # (m, ...) `like_...`: what `describe` says
    reasons: dict[int, str]  # of the unreadable, by place in the task
    bytes: int  # of the shard's file; 0: there is none, as none is readable
    sha256: str

    @property
    def likeness(self) -> dict[str, NDArray[Any]]:
        return {key.removeprefix(_LIKE): array for key, array in self.known.items() if key.startswith(_LIKE)}

    @classmethod
    def open(cls, path: Path) -> ShardFacts:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            rest = json.loads(bytes(file["rest"]))
            return cls(
                rows={key: file[key] for key in _ROWS},
                known={key: file[key] for key in file.files if key not in (*_ROWS, "rest")},
                reasons={int(place): why for place, why in rest["reasons"].items()},
                bytes=rest["bytes"],
                sha256=rest["sha256"],
            )

    def save(self, path: Path) -> None:
        rest = {"reasons": self.reasons, "bytes": self.bytes, "sha256": self.sha256}
        arrays: dict[str, Any] = {
            **self.rows,
            **self.known,
        }
        buffer = io.BytesIO()
        np.savez(buffer, rest=np.frombuffer(json.dumps(rest).encode(), dtype=np.uint8), **arrays)
        _appear(path, [buffer.getbuffer()])


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a finished task tells whoever waits for it."""

    index: int
    images: int
    source_bytes: int


def make_shard(task: ShardTask) -> Made:
    """Decode, describe and write. DataError where an image comes to another shape, or the file system fails."""
    n = len(task.source)
    pixels = np.empty((n, *task.shape), dtype=np.uint8)
    rows: dict[str, NDArray[Any]] = {key: np.zeros(n, dtype=np.int64) for key in _ROWS}
    rows["readable"] = np.zeros(n, dtype=np.bool_)
    reasons: dict[int, str] = {}
    described: dict[int, dict[str, NDArray[Any]]] = {}

    def fill(i: int) -> None:
        try:
            image, rows["source_bytes"][i] = _decoded(task, i)
        except Unreadable as error:
            reasons[i] = str(error)
            return
        if image.pixels.shape != task.shape:
            raise DataError(f"{_name(task, i)} comes to {_size(image.pixels)} pixels, others to {_side(task.shape)}")
        pixels[i] = image.pixels
        for key in ("width", "height", "bits"):
            rows[key][i] = getattr(image, key)
        described[i] = _described(pixels[i : i + 1])  # at once, in its thread, while it is in the processor's cache
        rows["readable"][i] = True

    # `describe` multiplies small matrices: threads of the library's own would spin for most of each image
    with threadpool_limits(1, user_api="blas"):
        _each(fill, range(n), task.threads)
    kept = pixels if rows["readable"].all() else pixels[rows["readable"]]
    parts = [described[i] for i in sorted(described)] or [_described(kept)]
    known = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    size, digest = write_array(task.images_file, kept) if len(kept) else (0, "")
    ordered = dict(sorted(reasons.items()))
    ShardFacts(
        rows=rows, known=known, reasons=ordered, bytes=size, sha256=digest
    ).save(task.facts_file)  # fmt: skip
    return Made(index=task.index, images=n, source_bytes=int(rows["source_bytes"].sum()))


def _decoded(task: ShardTask, i: int) -> tuple[Decoded, int]:
    """The task's image `i`, and how many bytes its file has."""
    source = task.source
    if isinstance(source, tuple):
        return decode(source[i], task.form), source[i].stat().st_size
    height, width = source.shape[1:3]
    return Decoded(pixels=from_array(source[i], task.form), width=width, height=height, bits=8), source[i].nbytes


def _each(function: Any, items: Iterable[int], threads: int) -> None:
    """Call for every item; the first error ends it."""
    if threads == 1:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(threads) as pool:  # Pillow decodes outside Python's lock
        try:
            for _ in pool.map(function, items):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _described(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Statistics and likeness of images (m, H, W, C)."""
    total, squares = channel_sums(images)
    return {
        "low": images.min(axis=(1, 2, 3)),
        "high": images.max(axis=(1, 2, 3)),
        "total": total,
        "squares": squares,
        **{f"{_LIKE}{key}": array for key, array in describe(images).items()},
    }


def channel_sums(images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sums of the pixels, and of their squares, of each image and channel: (n, C) int64 each, exact."""
    n, height, width, channels = images.shape
    total, squares = np.zeros((2, n, channels), dtype=np.int64)
    lines = max(1, min(_EXACT_LINES, _CACHED // (width * channels)))
    for i, image in enumerate(images):
        for top in range(0, height, lines):
            values = image[top : top + lines].reshape(-1, width * channels).astype(np.float32)
            for sums, of_columns in ((total, values.sum(axis=0)), (squares, np.einsum("hw,hw->w", values, values))):
                sums[i] += of_columns.astype(np.int64).reshape(width, channels).sum(axis=0)
    return total, squares


def write_array(path: Path, array: NDArray[np.uint8]) -> tuple[int, str]:
    """Save as .npy; its size in bytes and its sha256."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    digest = hashlib.sha256(header.getvalue())
    digest.update(array.data)
    _appear(path, [header.getbuffer(), array.data.cast("B")])
    return header.tell() + array.nbytes, digest.hexdigest()


def _appear(path: Path, parts: Iterable[Any]) -> None:
    """Write a file that is there whole or not at all, even if the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with partial.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _name(task: ShardTask, i: int) -> str:
    return f"image {task.source[i]}" if isinstance(task.source, tuple) else f"image {i} of shard {task.index}"


def _size(pixels: NDArray[np.uint8]) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _side(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} x {shape[0]}"
