"""Pareto ranks against their definition written out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tune_jobs.search.records import pareto_ranks

LOSSES = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(0, 4))


def _ranks(rows: list[list[float]]) -> list[int]:
    ranks: dict[int, int] = {}
    while left := [i for i in range(len(rows)) if i not in ranks]:
        rank = max(ranks.values(), default=-1) + 1
        ranks |= {i: rank for i in left if not any(_better(rows[j], rows[i]) for j in left)}
    return [ranks[i] for i in range(len(rows))]


def _better(a: list[float], b: list[float]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@given(LOSSES)
def test_ranks_are_as_defined(losses: np.ndarray) -> None:
    assert pareto_ranks(losses).tolist() == _ranks(losses.tolist())


@given(LOSSES)
def test_ranks_follow_their_rows_and_know_no_scale(losses: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(len(losses))
    assert (pareto_ranks(losses[order]) == pareto_ranks(losses)[order]).all()
    assert (pareto_ranks(np.exp(losses) * 3 - 1) == pareto_ranks(losses)).all()


def test_one_objective_ranks_by_value() -> None:
    assert pareto_ranks(np.array([[3.0], [1.0], [2.0], [1.0]])).tolist() == [2, 0, 1, 0]
