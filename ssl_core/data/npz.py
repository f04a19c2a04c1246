"""Reading an .npz file: images, labels, and if they are there splits, groups, ids and class names."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from ssl_core.data.dataset import TEST, TRAIN, VAL, Task
from ssl_core.data.listing import SPLIT_WORDS, Listing, numbered
from ssl_core.errors import DataError, nearest

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig

_SPLIT_VALUES = {**SPLIT_WORDS, str(TRAIN): TRAIN, str(VAL): VAL, str(TEST): TEST}
_BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def find(config: DatasetConfig) -> Path:
    """The file. DataError where there is none."""
    path = Path(config.path or "")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"dataset.path {path} {what}; name an .npz file")
    return path


def listing(config: DatasetConfig) -> Listing:
    """The file's arrays, checked. DataError names the array that is missing, broken or of the wrong shape.

    Of the images only the header is read; the pixels come when they are asked for.
    """
    path = find(config)
    with _opened(path) as archive:
        return _from_arrays(config, archive, path)


def _opened(path: Path) -> NpzFile:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no .npz file, or is cut short; copy it again, or save it with np.savez")
    try:
        archive = np.load(path, allow_pickle=False)
    except _BROKEN as error:
        raise DataError(f"{path} cannot be read as .npz ({error}); copy it or save it again") from error
    assert isinstance(archive, NpzFile)
    return archive


def _from_arrays(config: DatasetConfig, archive: NpzFile, path: Path) -> Listing:
    def key_of(setting: str) -> str:
        return getattr(config, setting) or setting.removesuffix("_key")

    def take(setting: str) -> NDArray[Any]:
        return _array(archive, path, key_of(setting), setting)

    def take_rows(setting: str) -> NDArray[Any] | None:
        """One value an image; None where the default key is not there."""
        if getattr(config, setting) is None and key_of(setting) not in archive:
            return None
        array = take(setting)
        if array.shape != (n,):
            raise DataError(f"{path}: {key_of(setting)!r} has shape {array.shape}; expected one value for {n} images")
        return array

    images_key = key_of("images_key")
    shape = _checked_images(*_header(archive, path, images_key), config, f"{path}: {images_key!r}")
    n = shape[0]
    labels = take("labels_key")
    if len(np.atleast_1d(labels)) != n:
        raise DataError(f"{path}: {key_of('labels_key')!r} has {len(np.atleast_1d(labels))} rows for {n} images")
    names_key = key_of("class_names_key")
    names = take("class_names_key") if config.class_names_key or names_key in archive else None
    labels, class_names, task = _classes(labels, names, f"{path}: {key_of('labels_key')!r}", names_key)
    ids, groups, split = take_rows("ids_key"), take_rows("group_key"), take_rows("split_key")
    return Listing(
        labels=labels,
        class_names=class_names,
        task=task,
        ids=numbered(n) if ids is None else _unique(_texts(ids, f"{path}: {key_of('ids_key')!r}"), path),
        groups=None if groups is None else _texts(groups, f"{path}: {key_of('group_key')!r}"),
        given=None if split is None else _split_numbers(split, f"{path}: {key_of('split_key')!r}"),
        pixels=lambda: _pixels(path, images_key, shape),
        tables={"npz": path},
        channels=1 if shape[3] == 1 else 3,
    )


def _array(archive: NpzFile, path: Path, key: str, setting: str) -> NDArray[Any]:
    _require(archive, path, key, setting)
    try:
        array: NDArray[Any] = archive[key]
    except _BROKEN as error:  # truncated, or Python objects, whose unpickling would run their code
        raise DataError(f"{path}: array {key!r} cannot be read ({error}); save it again as a plain array") from error
    return array


def _require(archive: NpzFile, path: Path, key: str, setting: str) -> None:
    if key not in archive:
        raise DataError(f"{path} has no array {key!r} (dataset.{setting}){nearest(key, archive)}")


def _header(archive: NpzFile, path: Path, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, its values left where they are."""
    _require(archive, path, key, "images_key")
    assert archive.zip is not None  # it is open
    try:
        with archive.zip.open(f"{key}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
    except _BROKEN as error:
        raise DataError(f"{path}: array {key!r} cannot be read ({error}); save it again as a plain array") from error
    return shape, dtype


def _pixels(path: Path, key: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    with _opened(path) as archive:
        return _array(archive, path, key, "images_key").reshape(shape)


def _checked_images(
    shape: tuple[int, ...], dtype: np.dtype[Any], config: DatasetConfig, where: str
) -> tuple[int, int, int, int]:
    """(N, H, W, C)."""
    if dtype != np.uint8:
        raise DataError(f"{where} is {dtype}; scale it to 0..255 and save it as uint8")
    full = (*shape, 1) if len(shape) == 3 else shape
    if len(full) != 4 or full[3] not in (1, 3) or 0 in full:
        raise DataError(f"{where} has shape {full}; expected (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    n, height, width, channels = full
    if config.size is None and config.crop is None and height != width:
        raise DataError(f"{where} is {height} x {width} pixels; set dataset.size to make it square")
    return n, height, width, channels


def _classes(
    labels: NDArray[Any], given: NDArray[Any] | None, where: str, names_key: str
) -> tuple[NDArray[Any], tuple[str, ...], Task]:
    """Labels as the task has them, the classes' names, and the task."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2):
        raise DataError(f"{where} has shape {labels.shape}; expected (N,) classes or (N, L) zeros and ones")
    if labels.dtype.kind in "US" and labels.ndim == 1:
        given, labels = np.unique(labels.astype(str), return_inverse=True)
    if labels.dtype.kind == "f":
        missing = int((~np.isfinite(labels)).reshape(len(labels), -1).any(axis=1).sum())
        if missing:
            raise DataError(f"{where} is NaN or infinite in {missing} rows; label these images or leave them out")
    if labels.dtype.kind not in "biuf" or (labels != np.rint(labels)).any():
        raise DataError(f"{where} ({labels.dtype}) holds values that are no whole numbers; save classes as integers")
    numbers = labels.astype(np.int64)
    count = labels.shape[1] if labels.ndim == 2 else len(np.unique(numbers)) if given is None else len(given)
    top = 1 if labels.ndim == 2 else count - 1
    if numbers.min() < 0 or numbers.max() > top:
        raise DataError(f"{where} holds values {numbers.min()} to {numbers.max()}; expected 0 to {top}, without gaps")
    names = tuple(str(name) for name in (range(count) if given is None else given))
    if len(names) != count or len(set(names)) != count:
        raise DataError(
            f"{where} has {count} columns, {names_key!r} names {', '.join(names)}; set dataset.class_names_key to an "
            "array of as many different names"
        )
    if labels.ndim == 2:
        return numbers.astype(np.uint8), names, "multilabel"
    if count < 2:
        raise DataError(f"{where} holds one class; at least two are needed")
    return numbers, names, "binary" if count == 2 else "multiclass"


def _texts(values: NDArray[Any], where: str) -> NDArray[np.str_]:
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise DataError(f"{where} is NaN in {int(np.isnan(values).sum())} rows; fill them in or leave these images out")
    texts: NDArray[np.str_] = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values.astype(str)
    if (texts == "").any():
        raise DataError(f"{where} is empty in {int((texts == '').sum())} rows; fill them in or leave these images out")
    return texts


def _unique(ids: NDArray[np.str_], path: Path) -> NDArray[np.str_]:
    known, counts = np.unique(ids, return_counts=True)
    if len(known) < len(ids):
        some = ", ".join(str(i) for i in known[counts > 1][:3])
        raise DataError(f"{path}: {int((counts > 1).sum())} ids name several images, e.g. {some}; ids must be unique")
    return ids


def _split_numbers(values: NDArray[Any], where: str) -> NDArray[np.int8]:
    words, of_row = np.unique(_texts(values, where), return_inverse=True)
    unknown = [str(w) for w in words if w.lower() not in _SPLIT_VALUES]
    if unknown:
        raise DataError(f"{where} holds {unknown[0]!r}; expected train, val, test or 0, 1, 2")
    return np.array([_SPLIT_VALUES[w.lower()] for w in words], dtype=np.int8)[of_row]
