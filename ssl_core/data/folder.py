"""Reading a folder of image files: <root>/<class>/* or <root>/{train,val,test}/<class>/*."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_core.data.decoding import SUFFIXES
from ssl_core.data.listing import SPLIT_WORDS, Listing
from ssl_core.errors import DataError

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig


@dataclass(frozen=True)
class File:
    id: str  # path below the root, with forward slashes
    path: Path
    label: str
    split: int | None


def listing(config: DatasetConfig) -> Listing:
    """The folder's images, their classes, and their splits where folders name them. DataError for any other layout."""
    files = find(config)
    names, labels = np.unique([file.label for file in files], return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{config.path} holds one class, {str(names[0])!r}; at least two class folders are needed")
    return Listing(
        ids=np.array([file.id for file in files]),
        labels=labels.astype(np.int64),
        class_names=tuple(str(name) for name in names),
        task="binary" if len(names) == 2 else "multiclass",
        given=None if files[0].split is None else np.array([file.split for file in files], dtype=np.int8),
        paths=tuple(file.path for file in files),
    )


def find(config: DatasetConfig) -> list[File]:
    """The folder's image files, ordered by id. DataError where a class or the folder itself holds none."""
    root = Path(config.path or "")
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"dataset.path {root} {what}; name a folder with one subfolder a class")
    parts = _subfolders(root)
    splits = {p: SPLIT_WORDS[p.name.lower()] for p in parts if p.name.lower() in SPLIT_WORDS}
    if splits and len(splits) < len(parts):
        other = next(p.name for p in parts if p not in splits)
        raise DataError(f"{root} holds the splits {', '.join(p.name for p in splits)} beside {other!r}; move it away")
    found: list[File] = []
    for above, split in splits.items() if splits else [(root, None)]:
        for folder in _subfolders(above):
            found += [File(p.relative_to(root).as_posix(), p, folder.name, split) for p in _images_in(folder)]
    return sorted(found, key=lambda file: file.id)


def _subfolders(folder: Path) -> list[Path]:
    found = sorted(p for p in _entries(folder) if p.is_dir() and not p.name.startswith((".", "__")))
    if not found:
        raise DataError(f"{folder} has no subfolders; sort its images into one subfolder a class")
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read ({error.strerror}); check its rights") from error


def _images_in(folder: Path) -> list[Path]:
    entries = sorted(p for p in _entries(folder) if not p.name.startswith("."))
    deeper = next((p for p in entries if p.is_dir()), None)
    if deeper is not None:
        raise DataError(f"class folder {folder} holds the folder {deeper.name!r}; images must lie in it directly")
    images = [p for p in entries if p.suffix.lower() in SUFFIXES]
    if not images:
        other = f" (it holds {', '.join(sorted({p.suffix or p.name for p in entries}))})" if entries else ""
        raise DataError(
            f"class folder {folder} is empty: it has no {', '.join(sorted(SUFFIXES))} files{other}; "
            "fill it or remove it"
        )
    return images
