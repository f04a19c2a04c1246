"""Orders of the training rows, or of whole groups, whose every prefix keeps to the classes' shares.

Rows are dealt one at a time, each from where the counts lag their shares most. Each order is generated as far as it is
asked for and never depends on how far that is, so that its prefixes are nested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_JOINT = 0.1  # weight of how labels come together, and in groups of which size, beside the labels' own counts
_CANDIDATES = 8, 1024  # the next group is the best of one in so many of those that are left, of so many at most


def by_class(labels: NDArray[np.int64], n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """The first n rows of the order by class, and how many of them are its classes' first rows.

    Which class comes next follows Tijdeman, The chairman assignment problem (Discrete Mathematics 32, 1980): of the
    classes far enough behind their share, the one that would soonest be a whole row late. Every prefix then stays
    within 1 - 1/(2C - 2) rows of every class's share from where each class's share is one row: it holds the share
    rounded down or up, as largest remainders do. Which of the two largest remainders decide anew at every n, so that
    a larger subset may hold less of a class; a nested order cannot follow them.
    """
    classes, of_row, count = np.unique(labels, return_inverse=True, return_counts=True)
    c = len(classes)
    members = _members(of_row, c, rng)
    share = count / len(labels)  # (C,)
    slack = 1 / (2 * c - 2) if c > 1 else 0.0
    taken = np.zeros(c, dtype=np.int64)
    order = np.empty(max(n, c), dtype=np.int64)
    start = rng.permutation(c)
    start = start[np.argsort(count[start], kind="stable")]  # the rarest first
    for t in range(len(order)):
        if t < c:
            chosen = int(start[t])
        else:
            behind = share * (t + 1) - taken
            urgency = np.where((behind >= slack - 1e-9) & (taken < count), (1 - slack - behind) / share, np.inf)
            chosen = int(urgency.argmin())
        order[t] = members[chosen][taken[chosen]]
        taken[chosen] += 1
    return order, c


def by_labels(labels: NDArray[np.uint8], n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """The first n rows of the order by labels (N, L), and how many of them it took to meet every outcome.

    Iterative stratification (Sechidis et al., ECML PKDD 2011) a row at a time: rarest outcome first until all are met,
    then the combination of labels that leaves the counts closest to their shares. Counted are the labels and, with a
    small weight, the images with 0, 1, 2, ... labels and those of each combination: the labels alone would be met best
    by images with exactly one finding, and images with many would never come.

    How far the counts are from their shares is measured, not proved: 0.91 at most on the 14 labels of NIH chest X-ray,
    and on small data up to 1.3 above fraction 0.95, where the rows that are left offer little choice.
    """
    combinations, of_row, count = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    of_row = of_row.reshape(-1)
    members = _members(of_row, len(combinations), rng)
    findings = combinations.sum(axis=1, dtype=np.int64)
    strata = np.sqrt(_JOINT) * (findings[:, None] == np.unique(findings))  # (U, S)
    counted = np.concatenate([combinations, strata], axis=1).astype(np.float64)  # (U, L+S)
    size = (counted**2).sum(axis=1)  # (U,)
    share = count / len(labels)  # (U,)
    counted_share = share @ counted  # (L+S,)
    excess = np.zeros(counted.shape[1])  # counts of the order so far beyond their shares
    joint_excess = rng.uniform(-0.5, 0.5, size=len(combinations))  # chance decides which rare combinations come early
    taken = np.zeros(len(combinations), dtype=np.int64)
    outcomes = np.concatenate([combinations, 1 - combinations], axis=1).astype(bool)  # (U, 2L)
    support = count @ outcomes  # (2L,) rows with each outcome
    held = support == 0  # there is nothing to hold
    order: list[int] = []
    needed = 0
    while len(order) < max(n, needed) or not held.all():
        excess -= counted_share
        joint_excess -= share
        growth = 2 * (counted @ excess + _JOINT * joint_excess) + size  # (U,) of the squared excess
        growth[taken == count] = np.inf
        if not held.all():
            rarest = int(np.where(held, np.inf, support).argmin())
            growth[~outcomes[:, rarest]] = np.inf
        chosen = int(growth.argmin())
        order.append(int(members[chosen][taken[chosen]]))
        taken[chosen] += 1
        excess += counted[chosen]
        joint_excess[chosen] += 1
        if not held.all():
            held |= outcomes[chosen]
            needed = len(order)
    return np.array(order, dtype=np.int64), needed


def by_group(
    labels: NDArray[Any], group: NDArray[np.int64], outcomes: NDArray[np.uint8], wanted: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """The first groups of the order by whole groups, for `wanted` images at least, and how many meet every outcome.

    `labels` is (N,) or (N, L), `group` (N,) numbers 0..G-1, `outcomes` (N, C) zeros and ones. The next group is, of a
    random eighth of those that are left (1,024 at most), the one that leaves the counts closest to their shares of the
    images so far. Counted are classes or labels and, with a small weight, the images with 0, 1, 2, ... labels and those
    in groups of 1, 2, 3, ... images: small groups keep the counts best, and large ones would never come.

    Chance decides who is looked at, so that seeds differ even where no two groups are alike; but a group whose images
    are unlike the rest comes later than its share. Measured on the 14 labels of NIH chest X-ray (21,528 patients), ten
    seeds: 0.5 to 2.2 images from the target at 1% and 6%, and 7.9 once, where a patient of many images came last.
    """
    sizes = np.bincount(group)  # (G,)
    held_by = _summed(outcomes, group) > 0  # (G, C)
    counted = [labels if labels.ndim == 2 else outcomes, np.sqrt(_JOINT) * _kinds(_size_class(sizes)[group])]
    if labels.ndim == 2:
        counted.append(np.sqrt(_JOINT) * _kinds(labels.sum(axis=1, dtype=np.int64)))
    each = np.concatenate(counted, axis=1)  # (N, F)
    drift = _summed(each, group) - sizes[:, None] * each.mean(axis=0)  # (G, F) what a group adds beyond its share
    growth = (drift**2).sum(axis=1)
    support = held_by.sum(axis=0)  # (C,) groups with each outcome
    held = support == 0  # there is nothing to hold
    excess = np.zeros(drift.shape[1])
    left = rng.permutation(len(sizes))
    place = np.argsort(left)  # of each group in `left`
    order: list[int] = []
    images = needed = 0
    while images < wanted or not held.all():
        candidates = left[: len(left) - len(order)]
        if not held.all():
            rarest = int(np.where(held, len(sizes) + 1, support).argmin())
            candidates = candidates[held_by[candidates, rarest]]
        count = min(-(-len(candidates) // _CANDIDATES[0]), _CANDIDATES[1])
        candidates = candidates[rng.choice(len(candidates), size=count, replace=False, shuffle=False)]
        chosen = int(candidates[(2 * drift[candidates] @ excess + growth[candidates]).argmin()])
        if not held.all():
            held |= held_by[chosen]
            needed = len(order) + 1
        excess += drift[chosen]
        images += int(sizes[chosen])
        order.append(chosen)
        last, at = len(left) - len(order), place[chosen]  # the chosen one swaps places with the last that is left
        left[at], place[left[last]] = left[last], at
    return np.array(order, dtype=np.int64), needed


def at_random(
    unit: NDArray[np.int64], outcomes: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """All units (numbers 0..U-1 of N rows) in any order, and how many of them it took to meet every outcome (N, C)."""
    held_by = _summed(outcomes, unit) > 0  # (U, C)
    order = rng.permutation(len(held_by))
    first = held_by[order].argmax(axis=0)  # (C,) where each outcome is first met
    return order, 1 + int(first[held_by.any(axis=0)].max(initial=0))


def _size_class(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sizes up to 8 are a class of their own, from there on each doubling has four."""
    classes: NDArray[np.int64] = np.floor(4 * np.log2(sizes)).astype(np.int64)
    return classes


def _kinds(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) -> (N, distinct values): which of them each row has."""
    kinds: NDArray[np.bool_] = values[:, None] == np.unique(values)
    return kinds


def _summed(counted: NDArray[Any], unit: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, F) -> (U, F): the sums over each unit's rows."""
    return np.stack([np.bincount(unit, weights=column) for column in counted.T], axis=1)


def _members(of_row: NDArray[np.int64], kinds: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows of each kind in a random order."""
    shuffled = rng.permutation(len(of_row))
    grouped = shuffled[np.argsort(of_row[shuffled], kind="stable")]
    return np.split(grouped, np.cumsum(np.bincount(of_row, minlength=kinds))[:-1])
