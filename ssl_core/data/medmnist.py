"""MedMNIST's two-dimensional datasets: an .npz file as the package ships it, read here or fetched by the package.

The arrays are {train,val,test}_images, uint8 (n, side, side) or (n, side, side, 3), and {train,val,test}_labels, (n, 1)
classes or (n, L) zeros and ones.
"""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import SPLITS, Task
from ssl_core.data.listing import Listing
from ssl_core.errors import DataError, nearest

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig

SIDES = (28, 64, 128, 224)  # pixels a side that each dataset is shipped at

_BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
_CHUNK_BYTES = 64 << 20
_NO_PATIENTS = "MedMNIST ships no patient ids: whether images of one patient are in two splits cannot be checked"


def listing(config: DatasetConfig) -> Listing:
    """The images with MedMNIST's own three splits; ids are `train/00000` and so on. There are no groups.

    With `dataset.path` that file is read, else the package fetches `dataset.flag` into its own folder, at the least of
    its sides that is not below `dataset.size`. Classes have the package's names if it is installed, else numbers.
    """
    path = Path(config.path) if config.path is not None else _fetched(config)
    flag = config.flag or re.split(r"_[0-9]+$", path.stem)[0]
    _refuse_volumes(flag)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"dataset.path {path} {what}; name an .npz file of MedMNIST")
    shapes = {word: _shape(path, f"{word}_images") for word in SPLITS}
    labels = _labels(path, {word: shape[0] for word, shape in shapes.items()})
    lengths = [len(part) for part in labels.values()]
    together = np.concatenate(list(labels.values()))  # (N, L)
    names, task, notes = _classes(together, flag)
    return Listing(
        ids=np.array(
            [f"{word}/{i:0{len(str(n))}d}" for word, n in zip(SPLITS, lengths, strict=True) for i in range(n)]
        ),
        labels=together.astype(np.uint8) if task == "multilabel" else together[:, 0].astype(np.int64),
        class_names=names,
        task=task,
        given=np.repeat(np.arange(len(SPLITS), dtype=np.int8), lengths),
        pixels=_Pixels(path=path, shapes=shapes),
        tables={"npz": path},
        channels=3 if len(shapes[SPLITS[0]]) == 4 else 1,
        notes=(*notes, _NO_PATIENTS),
    )


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """Decompresses the splits' images one after the other into one array, so that none is held twice."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    def __call__(self) -> NDArray[np.uint8]:
        first = self.shapes[SPLITS[0]]
        total = sum(shape[0] for shape in self.shapes.values())
        images = np.empty((total, *first[1:3], first[3] if len(first) == 4 else 1), dtype=np.uint8)  # (N, H, W, C)
        start = 0
        for word, shape in self.shapes.items():
            _fill(images[start : start + shape[0]], self.path, f"{word}_images")
            start += shape[0]
        return images


def _fill(images: NDArray[np.uint8], path: Path, key: str) -> None:
    into, done = images.reshape(-1), 0  # a view: images are contiguous
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            _header(cast(io.BufferedIOBase, file))
            while done < len(into) and (chunk := file.read(min(_CHUNK_BYTES, len(into) - done))):
                into[done : done + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
                done += len(chunk)
    except _BROKEN as error:
        raise DataError(f"{path}: array {key!r} cannot be read ({error}); copy the file again") from error
    if done < len(into):
        raise DataError(f"{path}: array {key!r} is cut short; copy the file again")


def _shape(path: Path, key: str) -> tuple[int, ...]:
    """The shape of images, without reading them."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{key}.npy" not in archive.namelist():
                arrays = [name.removesuffix(".npy") for name in archive.namelist()]
                raise DataError(f"{path} has no array {key!r}, so it is no file of MedMNIST{nearest(key, arrays)}")
            with archive.open(f"{key}.npy") as file:
                shape, fortran, dtype = _header(cast(io.BufferedIOBase, file))
    except _BROKEN as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as .npz ({error}); copy it or download it again") from error
    if dtype != np.uint8 or fortran or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3) or 0 in shape:
        raise DataError(
            f"{path}: {key!r} is {dtype} of shape {shape}; expected uint8 (n, side, side) or (n, side, side, 3). "
            "Volumes (3D) are not supported"
        )
    return shape


def _header(file: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type of the array that follows in `file`."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _labels(path: Path, lengths: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """The labels (n, L) of each split."""
    found: dict[str, NDArray[np.int64]] = {}
    with np.load(path, allow_pickle=False) as archive:
        for word, n in lengths.items():
            key = f"{word}_labels"
            try:
                array = archive[key]
            except _BROKEN as error:
                raise DataError(f"{path}: array {key!r} cannot be read ({error}); copy the file again") from error
            if array.ndim != 2 or len(array) != n or array.dtype.kind not in "iub" or array.min(initial=0) < 0:
                raise DataError(
                    f"{path}: {key!r} is {array.dtype} of shape {array.shape}; expected ({n}, 1) classes or ({n}, L) "
                    "zeros and ones"
                )
            found[word] = array.astype(np.int64)
    widths = {word: array.shape[1] for word, array in found.items()}
    if len(set(widths.values())) > 1:
        raise DataError(f"{path}: labels a row differ between splits ({widths}); copy the file again")
    return found


def _classes(labels: NDArray[np.int64], flag: str) -> tuple[tuple[str, ...], Task, list[str]]:
    """Names, the task and notes, from labels (N, L)."""
    several = labels.shape[1] > 1
    if several and labels.max() > 1:
        raise DataError(
            f"{flag}: a label is {labels.max()}; expected 0 or 1 where an image has {labels.shape[1]} labels"
        )
    count = labels.shape[1] if several else int(labels.max()) + 1
    if not several and count < 2:
        raise DataError(f"{flag} holds one class; at least two are needed")
    named = _package_names(flag)
    fits = len(named) >= count if not several else len(named) == count
    names, notes = (named, []) if fits else (tuple(map(str, range(count))), ["classes have numbers for names"])
    return names, "multilabel" if several else "binary" if len(names) == 2 else "multiclass", notes


def _info() -> Mapping[str, Any]:
    """What the package says of each dataset; empty where it is not installed."""
    try:
        from medmnist import INFO
    except ImportError:
        return {}
    return cast(Mapping[str, Any], INFO)


def _package_names(flag: str) -> tuple[str, ...]:
    known = _info().get(flag, {}).get("label", {})
    return tuple(str(known[key]) for key in sorted(known, key=int))


def _refuse_volumes(flag: str) -> None:
    if flag.lower().endswith("3d"):
        raise DataError(f"{flag} holds volumes (3D), which are not supported; choose a dataset of images")


def _fetched(config: DatasetConfig) -> Path:
    """The package's file of `dataset.flag`, downloaded if it is not there yet."""
    flag = (config.flag or "").lower()
    _refuse_volumes(flag)
    known = _info()
    if not known:
        raise DataError(
            f"dataset.flag {flag} needs the medmnist package; install it with pip install 'intermoco[medmnist]', or "
            "download the .npz file yourself and name it in dataset.path"
        )
    if flag not in known:
        raise DataError(f"dataset.flag {flag}: no such dataset{nearest(flag, (k for k in known if '3d' not in k))}")
    import medmnist

    side = next((s for s in SIDES if s >= (config.size or 0)), SIDES[-1])
    folder = Path(medmnist.info.DEFAULT_ROOT or Path.home() / ".medmnist")
    path = folder / (f"{flag}.npz" if side == SIDES[0] else f"{flag}_{side}.npz")
    if not path.is_file():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its progress has no place in a table or a log
                getattr(medmnist, known[flag]["python_class"])(split="val", download=True, size=side)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"dataset.flag {flag}: the medmnist package could not download it ({error}); download {path.name} "
                "yourself and name it in dataset.path"
            ) from error
    return path
