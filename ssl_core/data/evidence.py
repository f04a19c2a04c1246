"""What the audit works with: what packing wrote of each image beside its pixels, and the finding that comes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import Dataset
from ssl_core.data.likeness import THUMB, flat
from ssl_core.errors import DataError

EXAMPLES = 5  # named in a finding at most


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found, in a sentence or two that a reader of the report understands and can act on."""

    name: str
    count: int  # of images, groups, classes or pictures, as the text says
    examples: tuple[str, ...] = ()  # a few ids, or pairs of ids with their splits
    severity: Literal["stops", "note"] = "note"
    text: str

    def as_row(self) -> dict[str, Any]:
        return {**vars(self), "examples": list(self.examples)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """The dataset with what packing wrote of each row beside its pixels."""

    dataset: Dataset
    digest: NDArray[np.int64]  # (N,) one number for each different picture
    thumb: NDArray[np.uint8]  # (N, 32, 32)
    stored: NDArray[np.int64]  # (N,) shorter side as stored, px
    bits: NDArray[np.int64]  # (N,) a channel, as stored
    constant: NDArray[np.bool_]  # (N,) one value in all packed pixels
    unreadable: tuple[tuple[str, str], ...]  # id and reason

    @classmethod
    def open(cls, dataset: Dataset, folder: Path) -> Packed:
        try:
            with np.load(folder / "likeness.npz", allow_pickle=False) as file:
                digest, thumb = file["digest"], file["thumb"]
            with np.load(folder / "inventory.npz", allow_pickle=False) as file:
                inventory = {key: file[key].astype(np.int64) for key in ("width", "height", "bits", "low", "high")}
            unreadable = json.loads((folder / "unreadable.json").read_text(encoding="utf-8"))
            left_out = tuple((str(image["id"]), str(image["reason"])) for image in unreadable)
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise DataError(
                f"packed dataset {folder} lacks what the audit reads ({error}); remove the folder and pack it again"
            ) from error
        lengths = {len(digest), len(thumb), *(len(column) for column in inventory.values())}
        if lengths != {len(dataset)}:
            raise DataError(
                f"packed dataset {folder}: the audit's files describe {sorted(lengths)} images, the dataset holds "
                f"{len(dataset)}; remove the folder and pack it again"
            )
        as_one = np.ascontiguousarray(digest).view("V16").ravel()
        return cls(
            dataset=dataset,
            digest=np.unique(as_one, return_inverse=True)[1],
            thumb=thumb,
            stored=np.minimum(inventory["width"], inventory["height"]),
            bits=inventory["bits"],
            constant=inventory["low"] == inventory["high"],
            unreadable=left_out,
        )


def comparable(packed: Packed) -> NDArray[np.bool_]:
    """(N,): images with enough in them to tell copies from likes."""
    large = (packed.stored >= THUMB) & (packed.dataset.size >= THUMB)
    return large & ~packed.constant & ~flat(packed.thumb)


def stop(name: str, count: int, examples: tuple[str, ...], text: str) -> Finding:
    """A finding that stops a study whose `dataset.accept` does not name it."""
    return Finding(name=name, count=count, examples=examples, severity="stops", text=text)


def counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def are(count: int) -> str:
    return "is" if count == 1 else "are"


def listed(words: Sequence[str], of: int | None = None) -> str:
    """The first few words, and how many more there are of `of` (of these where not given)."""
    shown = words[:EXAMPLES]
    more = (len(words) if of is None else of) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
