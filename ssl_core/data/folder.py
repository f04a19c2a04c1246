"""Reading a folder of image files: <root>/<class>/* or <root>/{train,val,test}/<class>/*."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.reading import SPLIT_WORDS, Raw, pixels
from ssl_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from ssl_core.data.config import DatasetConfig

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_DECODERS = 4  # threads; Pillow decodes outside Python's lock


@dataclass(frozen=True)
class File:
    id: str  # path below the root, with forward slashes
    path: Path
    label: str
    split: int | None


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
    images = [p for p in entries if p.suffix.lower() in _SUFFIXES]
    if not images:
        other = f" (it holds {', '.join(sorted({p.suffix or p.name for p in entries}))})" if entries else ""
        raise DataError(
            f"class folder {folder} is empty: it has no {', '.join(sorted(_SUFFIXES))} files{other}; "
            "fill it or remove it"
        )
    return images


def read(config: DatasetConfig, images_file: Path) -> Raw:
    """The folder's images, decoded into `images_file`. DataError names an image that is broken or unlike others."""
    files = find(config)
    names, labels = np.unique([file.label for file in files], return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{config.path} holds one class, {str(names[0])!r}; at least two class folders are needed")
    given = None if files[0].split is None else np.array([file.split for file in files], dtype=np.int8)
    return Raw(
        images=_decode_all([file.path for file in files], config.size, images_file),
        labels=labels.astype(np.int64),
        class_names=tuple(str(name) for name in names),
        task="binary" if len(names) == 2 else "multiclass",
        ids=np.array([file.id for file in files]),
        given=given,
    )


def _decode_all(paths: Sequence[Path], size: int | None, images_file: Path) -> NDArray[np.uint8]:
    first = _decode(paths[0], size)
    if first.shape[0] != first.shape[1]:
        raise DataError(f"{paths[0]} is {_pixels(first)} pixels; set dataset.size to make all images square")
    images = np.lib.format.open_memmap(images_file, mode="w+", dtype=np.uint8, shape=(len(paths), *first.shape))
    with ThreadPoolExecutor(_DECODERS) as decoders:
        for start in range(0, len(paths), 64):  # a batch at a time, so that decoded images never pile up
            batch = paths[start : start + 64]
            for i, image in enumerate(decoders.map(lambda p: _decode(p, size), batch)):
                if image.shape[2] != first.shape[2]:
                    raise DataError(
                        f"images of several channel counts: {paths[0]} has {first.shape[2]}, {batch[i]} has "
                        f"{image.shape[2]}; convert all to grey or all to RGB"
                    )
                if image.shape != first.shape:
                    raise DataError(
                        f"images of several sizes: {paths[0]} is {_pixels(first)}, {batch[i]} is {_pixels(image)} "
                        "pixels; set dataset.size to resize them"
                    )
                images[start + i] = image
    return images


def _decode(path: Path, size: int | None) -> NDArray[np.uint8]:
    """The file's pixels (H, W, C), upright, resized to `size` if given; C is 1 for grey, 3 for colour."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            upright = ImageOps.exif_transpose(image)  # decodes
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be read ({error}); replace or remove it") from error
    if frames > 1:
        raise DataError(f"image {path} holds {frames} frames; save each as a file of its own")
    return pixels(_grey_or_rgb(upright, path), size)


def _grey_or_rgb(image: Image, path: Path) -> Image:
    match image.mode:
        case "L" | "RGB":
            return image
        case "1":
            return image.convert("L")
        case "P":
            return _opaque(image.convert("RGBA"), path).convert("RGB")
        case "RGBA":
            return _opaque(image, path).convert("RGB")
        case "LA":
            return _opaque(image, path).convert("L")
        case mode:
            raise DataError(f"image {path} has pixel format {mode}; convert it to 8-bit grey or RGB")


def _opaque(image: Image, path: Path) -> Image:
    if np.asarray(image.getchannel("A")).min() < 255:
        raise DataError(f"image {path} has transparent pixels; flatten it onto a background")
    return image


def _pixels(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
