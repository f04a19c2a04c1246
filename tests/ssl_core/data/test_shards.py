"""Images in several files answer every index as one array does."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssl_core.data import shards as module
from ssl_core.data.shards import Shards
from ssl_core.errors import DataError

COUNTS = (3, 1, 5, 2)
ALL = np.random.default_rng(0).integers(256, size=(sum(COUNTS), 2, 3, 3), dtype=np.uint8)


def write(folder: Path) -> Shards:
    paths, start = [], 0
    for i, n in enumerate(COUNTS):
        paths.append(folder / f"{i:05d}.npy")
        np.save(paths[-1], ALL[start : start + n])
        start += n
    return Shards(paths, COUNTS, ALL.shape[1:])


def same(found: Any, expected: np.ndarray) -> None:
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found == expected).all()


row = st.integers(-len(ALL), len(ALL) - 1)
bound = st.none() | st.integers(-15, 15)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    index=row
    | st.lists(row, max_size=30).map(lambda rows: np.array(rows, dtype=np.int64))
    | st.builds(slice, bound, bound, bound.filter(lambda step: step != 0))
    | st.lists(st.booleans(), min_size=len(ALL), max_size=len(ALL)).map(np.array)
)
def test_every_index_answers_as_one_array_does(tmp_path_factory: pytest.TempPathFactory, index: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "shards"
    if not folder.exists():
        folder.mkdir()
        write(folder)
    paths = sorted(folder.iterdir())
    same(Shards(paths, COUNTS, ALL.shape[1:])[index], ALL[index])


def test_shape_length_and_bytes_are_those_of_one_array(tmp_path: Path) -> None:
    shards = write(tmp_path)
    assert (len(shards), shards.shape, shards.dtype, shards.nbytes, shards.ndim) == (
        len(ALL), ALL.shape, ALL.dtype, ALL.nbytes, ALL.ndim,
    )  # fmt: skip
    same(np.asarray(shards), ALL)


@pytest.mark.parametrize("index", [11, -12, np.array([0, 11]), np.array([-12]), np.array([0.5]), np.zeros((2, 2), int)])
def test_rows_that_are_not_there_are_refused(tmp_path: Path, index: Any) -> None:
    with pytest.raises(IndexError):
        write(tmp_path)[index]


def test_what_comes_out_is_a_copy(tmp_path: Path) -> None:
    shards = write(tmp_path)
    for index in (0, slice(0, 2), np.array([1, 2])):
        shards[index][...] = 7
    same(shards[:], ALL)


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN", 2)
    shards = write(tmp_path)
    same(shards[:], ALL)
    same(shards[::-1], ALL[::-1])
    assert len(shards._maps) == 2


def test_nothing_is_opened_before_it_is_needed_and_pickles_hold_paths_alone(tmp_path: Path) -> None:
    shards = write(tmp_path)
    for i in (1, 3):
        shards.paths[i].unlink()
    same(shards[[8, 0]], ALL[[8, 0]])
    sent = pickle.dumps(shards)
    assert len(sent) < 2000
    same(pickle.loads(sent)[4:9], ALL[4:9])
    with pytest.raises(DataError, match=r"00001.npy cannot be read"):
        shards[3]


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    shards = write(tmp_path)
    np.save(shards.paths[0], ALL[:2])
    with pytest.raises(DataError, match=r"00000.npy are uint8 \(2, 2, 3, 3\); expected"):
        shards[0]
