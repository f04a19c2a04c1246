"""Reading a source into arrays, whichever it is; scikit-learn's digits are read here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import TEST, TRAIN, VAL, Task
from ssl_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

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


@dataclass(frozen=True, kw_only=True)
class Raw:
    """What a source holds, N images; not yet split."""

    images: NDArray[np.uint8]  # (N, H, H, C)
    labels: NDArray[Any]  # (N,) int64 or (N, L) uint8
    class_names: tuple[str, ...]
    task: Task
    ids: NDArray[np.str_]  # (N,) unique
    groups: NDArray[np.str_] | None = None  # (N,); None: each image is its own
    given: NDArray[np.int8] | None = None  # (N,) splits; None: the source names none


def source_files(config: DatasetConfig) -> dict[str, Path]:
    """The files that a source is made of, by their names within it. DataError where they are missing."""
    from ssl_core.data import folder, npz

    match config.source:
        case "digits":
            return {"digits": _digits_file()}
        case "npz":
            return {"npz": npz.find(config)}
        case "folder":
            return {file.id: file.path for file in folder.find(config)}


def read(config: DatasetConfig, images_file: Path) -> Raw:
    """The source's content. A folder's images, which may exceed the memory, are written to `images_file` and mapped."""
    from ssl_core.data import folder, npz

    match config.source:
        case "digits":
            return _read_digits(config)
        case "npz":
            return npz.read(config)
        case "folder":
            return folder.read(config, images_file)


def _digits_file() -> Path:
    spec = importlib.util.find_spec("sklearn")  # found, not imported: that would take a second
    roots = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(roots[0] if roots else "sklearn") / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DataError(f"scikit-learn's digits are not at {path}; reinstall scikit-learn")
    return path


def _read_digits(config: DatasetConfig) -> Raw:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)  # 0..16
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)  # (1797, 8, 8, 1)
    return Raw(
        images=resized(pixels, config.size),
        labels=labels.astype(np.int64),
        class_names=tuple("0123456789"),
        task="multiclass",
        ids=numbered(len(pixels)),
    )


def numbered(n: int) -> NDArray[np.str_]:
    """Row numbers of equal width."""
    return np.array([f"{i:0{len(str(n - 1))}d}" for i in range(n)])


def pixels(image: Image, size: int | None) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of a grey or RGB image, resized to `size` a side if given."""
    from PIL.Image import Resampling

    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8)
    return array.reshape(*array.shape[:2], -1)


def resized(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Images (N, H, W, C) at `size` pixels a side."""
    from PIL import Image

    if size is None or images.shape[1:3] == (size, size):
        return images
    return np.stack([pixels(Image.fromarray(i[..., 0] if i.shape[2] == 1 else i), size) for i in images])
