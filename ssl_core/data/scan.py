"""Which files a source's folders hold: one look at each folder, none at a file, so that 280,000 files take seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ssl_core.errors import DataError


def root(path: str | None, *, holds: str) -> Path:
    """The folder `path`; DataError says what it should hold where it is none."""
    folder = Path(path or "")
    if path is None or not folder.is_dir():
        what = "is missing" if path is None else "is a file" if folder.exists() else "does not exist"
        raise DataError(f"dataset.path {path or ''} {what}; name the folder that holds {holds}".replace("  ", " "))
    return folder


def folders(folder: Path) -> list[str]:
    """Sorted names of the subfolders that are not hidden."""
    return sorted(name for name, is_folder in _entries(folder) if is_folder)


def files(folder: Path) -> list[str]:
    """Sorted names of the files that are not hidden."""
    return sorted(name for name, is_folder in _entries(folder) if not is_folder)


def check_any(names: Sequence[str], present: int, *, looked_in: str) -> None:
    """DataError where not one of the images that a source names is there."""
    if not present:
        raise DataError(
            f"none of the {len(names)} images is there, e.g. {names[0]}; looked in {looked_in}. Unpack them "
            "there, or correct dataset.path"
        )


def _entries(folder: Path) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as found:
            return [(entry.name, entry.is_dir()) for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read ({error.strerror}); check its rights") from error
