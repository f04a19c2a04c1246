"""A CSV that lists images: their files, labels, and if they are known groups and splits."""

from __future__ import annotations

import math
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data import scan, tables
from ssl_core.data.dataset import Task
from ssl_core.data.listing import SPLIT_WORDS, Listing
from ssl_core.data.tables import Table
from ssl_core.errors import DataError

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig

_MISSING = ("", "nan", "na", "n/a", "none", "null")  # what programs write for "no value"


def listing(config: DatasetConfig) -> Listing:
    """The images in the CSV's order; ids are its paths as written, but with forward slashes.

    One label column holds words or numbers, which become classes in natural order; several hold 0 or 1 each, one label
    a column. DataError names file, row, column and value.
    """
    path = Path(config.path or "")
    if path.is_dir():
        raise DataError(f"dataset.path {path} is a folder; name the CSV file")
    table = tables.read(path)
    ids = _ids(table, config.path_column)
    folder = path.parent
    paths = tuple(folder / name for name in ids)
    scan.check_any(
        ids,
        int(any(map(os.path.exists, paths))),
        looked_in=f"{folder.resolve()}, the folder that paths in {path.name} are relative to",
    )
    labels, names, task = _labels(table, config.label_columns)
    return Listing(
        ids=np.array(ids),
        labels=labels,
        class_names=names,
        task=task,
        groups=_groups(table, config.group_column),
        given=_splits(table, config.split_column),
        paths=paths,
        tables={"manifest": path},
    )


def _ids(table: Table, column: str) -> list[str]:
    ids = [value.replace("\\", "/") for value in table.column(column, setting="dataset.path_column")]
    seen: dict[str, int] = {}
    for i, name in enumerate(ids):
        if not name:
            raise table.error(i, f"column {column!r} is empty; name an image file")
        first = seen.setdefault(posixpath.normpath(name), i)
        if first != i:
            raise table.error(i, f"{column} {name!r} is there twice, first in row {table.numbers[first]}; drop one")
    return ids


def _labels(table: Table, columns: tuple[str, ...]) -> tuple[NDArray[Any], tuple[str, ...], Task]:
    """Labels as the task has them, the classes' names, and the task."""
    values = {name: table.column(name, setting="dataset.label_columns") for name in columns}
    if len(values) < len(columns):
        raise DataError(f"dataset.label_columns {list(columns)} names a column twice; drop one")
    for name, column in values.items():
        for i, value in enumerate(column):
            if value.casefold() in _MISSING:
                raise table.error(i, f"label {name!r} is {value!r}; label this image or leave it out")
    if len(columns) == 1:
        return _classes(table, columns[0], values[columns[0]])
    zeros_and_ones = [[_zero_or_one(table, i, name, v) for i, v in enumerate(values[name])] for name in columns]
    return np.array(zeros_and_ones, dtype=np.uint8).T.copy(), columns, "multilabel"


def _classes(table: Table, column: str, values: list[str]) -> tuple[NDArray[np.int64], tuple[str, ...], Task]:
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):  # 1 and 1.0 are one class, 10 comes after 2
        values = [f"{number:g}" if number % 1 else f"{number:.0f}" for number in numbers if number is not None]
        names = sorted(set(values), key=float)
    else:
        names = sorted(set(values), key=_natural)
    if len(names) < 2:
        raise DataError(f"{table.path}: column {column!r} holds one class, {names[0]!r}; at least two are needed")
    at = {name: c for c, name in enumerate(names)}
    task: Task = "binary" if len(names) == 2 else "multiclass"
    return np.array([at[value] for value in values], dtype=np.int64), tuple(names), task


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _natural(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """A key that puts `grade 2` before `grade 10`."""
    parts = re.split(r"([0-9]+)", text)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts if p], text


def _zero_or_one(table: Table, index: int, column: str, value: str) -> int:
    number = _number(value)
    if number not in (0, 1):
        raise table.error(index, f"label {column!r} is {value!r}; expected 0 or 1 where several columns are labels")
    return int(number)


def _groups(table: Table, column: str | None) -> NDArray[np.str_] | None:
    name = column or "group"
    if column is None and not table.has(name):
        return None
    values = table.column(name, setting="dataset.group_column")
    for i, value in enumerate(values):
        if value.casefold() in _MISSING:
            raise table.error(i, f"group {name!r} is {value!r}; fill it in, e.g. with the patient")
    return np.array(values)


def _splits(table: Table, column: str | None) -> NDArray[np.int8] | None:
    name = column or "split"
    if column is None and not table.has(name):
        return None
    values = table.column(name, setting="dataset.split_column")
    for i, value in enumerate(values):
        if value.lower() not in SPLIT_WORDS:
            raise table.error(i, f"split {name!r} is {value!r}; expected {', '.join(SPLIT_WORDS)}")
    return np.array([SPLIT_WORDS[value.lower()] for value in values], dtype=np.int8)
