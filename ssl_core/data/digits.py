"""Scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, read from its file without importing it."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.listing import Listing, numbered
from ssl_core.errors import DataError

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig


def listing(_config: DatasetConfig) -> Listing:
    """The digits, in scikit-learn's order. DataError where its file is not there."""
    path = _file()
    table = _table(path)
    return Listing(
        ids=numbered(len(table)),
        labels=table[:, -1].astype(np.int64),
        class_names=tuple("0123456789"),
        task="multiclass",
        pixels=lambda: _pixels(path),
        tables={"digits": path},
        channels=1,
    )


def _file() -> Path:
    spec = importlib.util.find_spec("sklearn")  # found, not imported: that would take a second
    roots = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(roots[0] if roots else "sklearn") / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DataError(f"scikit-learn's digits are not at {path}; reinstall scikit-learn")
    return path


@functools.lru_cache(maxsize=1)
def _table(path: Path) -> NDArray[Any]:
    """(1797, 65): 64 values of 0..16, then the class."""
    return np.loadtxt(path, delimiter=",")


def _pixels(path: Path) -> NDArray[np.uint8]:
    values = _table(path)[:, :-1]
    return np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
