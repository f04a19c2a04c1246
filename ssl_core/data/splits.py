"""Who trains, who validates, who tests. Pure functions of a seed.

Whole groups are dealt one at a time, each to the split whose counts lag their targets most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import SPLITS, TEST, TRAIN, VAL
from ssl_core.data.labels import outcomes_of
from ssl_core.errors import DataError
from ssl_core.seeding import generator

_ATTEMPTS = 20  # deals tried before a class is said not to fit into every split


def make_splits(
    labels: NDArray[Any],
    groups: NDArray[np.str_],
    *,
    validation: float,
    test: float,
    seed: int,
    class_names: Sequence[str] = (),
) -> NDArray[np.int8]:
    """TRAIN, VAL or TEST for each row: (N,) int8, seeded, stratified, no group in two splits.

    `labels` is (N,) classes or (N, L) zeros and ones, `groups` (N,), `validation` and `test` are shares of the rows
    (0 leaves a split out). Groups are dealt from the largest down, each to the split whose counts it brings closest to
    their targets: without groups every class is within a sample or so of its share in every split.
    Raises DataError where a class (of a label: an outcome) occurs in too few groups to be in every split.
    """
    shares = np.array([1 - validation - test, validation, test])
    used = [s for s in (TRAIN, VAL, TEST) if shares[s] > 0]
    outcomes, names = outcomes_of(labels, class_names)  # (N, C) of 0/1
    _, unit = np.unique(groups, return_inverse=True)  # (N,) group numbers
    units = int(unit.max(initial=-1)) + 1
    sizes = np.bincount(unit, minlength=units)  # (G,)
    counts = np.stack([np.bincount(unit, weights=column, minlength=units) for column in outcomes.T], axis=1)  # (G, C)
    _check_enough(counts, names, used)
    scarce = np.zeros(len(names), dtype=bool)
    for attempt in range(_ATTEMPTS):
        rng = generator(seed, "splits", attempt)
        of_unit = _deal(counts, sizes, shares, scarce, rng)
        present = np.stack([(counts[of_unit == s] > 0).any(axis=0) for s in used])  # (splits, C)
        if present.all():
            return of_unit[unit]
        scarce |= ~present.all(axis=0)
    raise DataError(
        f"no way was found to have {', '.join(n for n, s in zip(names, scarce, strict=True) if s)} in each of the "
        f"splits {', '.join(SPLITS[s] for s in used)}; merge or drop that class, or give the splits yourself"
    )


def _deal(
    counts: NDArray[Any],
    sizes: NDArray[np.int64],
    shares: NDArray[np.float64],
    scarce: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    """The split of each group, from its class counts (G, C) and size (G,)."""
    features = np.column_stack([counts, sizes])  # (G, C+1): what is balanced
    weight = 1 / np.maximum(features.sum(axis=0), 1)  # a rare class counts as much as a common one
    excess = np.zeros((3, features.shape[1]))  # rows dealt to each split beyond its share of all rows dealt so far
    split = np.full(len(sizes), -1, dtype=np.int8)
    shuffled = rng.permutation(len(sizes))
    first = _seed_scarce(counts, shares, scarce, shuffled)
    rest = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    for g, fixed in [*first.items(), *((int(g), None) for g in rest if int(g) not in first)]:
        row = features[g]
        excess -= shares[:, None] * row
        # The least growth of the weighted squared excess; never a split of share 0, whose excess stays at 0 while the
        # others' add up to less.
        s = int(np.argmin(excess @ (weight * row))) if fixed is None else fixed
        excess[s] += row
        split[g] = s
    return split


def _seed_scarce(
    counts: NDArray[Any], shares: NDArray[np.float64], scarce: NDArray[np.bool_], shuffled: NDArray[np.int64]
) -> dict[int, int]:
    """One group of every scarce class for each split, the rarest class first: group -> split."""
    first: dict[int, int] = {}
    holders = (counts > 0).sum(axis=0)  # (C,)
    for c in sorted(np.flatnonzero(scarce), key=lambda c: holders[c]):
        for s in np.flatnonzero(shares > 0):
            if any(counts[g, c] > 0 for g, at in first.items() if at == s):
                continue
            free = next((int(g) for g in shuffled if counts[g, c] > 0 and int(g) not in first), None)
            if free is not None:
                first[free] = int(s)
    return first


def _check_enough(counts: NDArray[Any], names: Sequence[str], used: Sequence[int]) -> None:
    holders = (counts > 0).sum(axis=0)
    for name, n in zip(names, holders, strict=True):
        if n < len(used):
            raise DataError(
                f"{name} occurs in {n} groups (patients, or images where no group is given), too few to be in each of "
                f"the splits {', '.join(SPLITS[s] for s in used)}; merge or drop that class, or add data"
            )


def check_splits(labels: NDArray[Any], splits: NDArray[np.int8], *, class_names: Sequence[str] = ()) -> None:
    """DataError where a split is empty or lacks a class. Groups in two splits are the audit's to judge."""
    outcomes, names = outcomes_of(labels, class_names)
    for s, split in enumerate(SPLITS):
        rows = splits == s
        if not rows.any():
            raise DataError(f"split {split} is empty; mark some images {split}, or mark none to have it made")
        present = outcomes[rows].any(axis=0)
        if not present.all():
            absent = [n for n, there in zip(names, present, strict=True) if not there]
            only = [n for n, there in zip(names, present, strict=True) if there]
            more = f" (it holds {only[0]} alone)" if labels.ndim == 1 and len(only) == 1 else ""
            raise DataError(
                f"split {split} has no image of {', '.join(absent)}{more}, so no score is defined on it; "
                "move groups between the splits, or merge or drop the class"
            )
