"""Who trains, who validates, who tests, and which training labels a small fraction may see. Pure functions of a seed.

Both questions are answered by the same idea: rows (or whole groups) are dealt one at a time, each to where the counts
lag their targets most, so that counts keep to their targets at every moment and a prefix of the deal is stratified too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import SPLITS, TEST, TRAIN, VAL
from ssl_core.errors import DataError
from ssl_core.seeding import generator

_ATTEMPTS = 20  # deals tried before a class is said not to fit into every split
_JOINT = 0.1  # weight of how labels come together, beside the labels' own counts, in the multi-label order


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
    outcomes, names = _outcomes(labels, class_names)  # (N, C) of 0/1
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


def check_splits(
    labels: NDArray[Any], groups: NDArray[np.str_], splits: NDArray[np.int8], *, class_names: Sequence[str] = ()
) -> None:
    """DataError where a split is empty or lacks a class, or a group is in two splits."""
    outcomes, names = _outcomes(labels, class_names)
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
    pairs = np.unique(np.stack([np.unique(groups, return_inverse=True)[1], splits.astype(np.int64)], axis=1), axis=0)
    straddling = np.unique(groups)[np.unique(pairs[1:, 0][pairs[1:, 0] == pairs[:-1, 0]])]
    if len(straddling):
        raise DataError(
            f"{len(straddling)} group{' is' if len(straddling) == 1 else 's are'} in more than one split, e.g. "
            f"{', '.join(str(g) for g in straddling[:3])}; a group (patient) must stay in one: correct the splits, or "
            "leave them out to have them made"
        )


def label_subset(labels: NDArray[Any], splits: NDArray[np.int8], *, fraction: float, seed: int) -> NDArray[np.int64]:
    """Ascending row numbers of the training images whose labels a `fraction` in (0, 1] of them may see: (n,) int64.

    n is `fraction` of the training rows, rounded. All fractions of a seed are prefixes of one order, so smaller ones
    lie inside larger ones. The order starts with one row of every class (each outcome of every label) and goes on with
    whichever row keeps the class counts closest to their shares (paper section 3.3: the class distribution matches).
    From where every class has a share of one row on, each class is within 1 row of its share. With several labels this
    is measured, not proved: 0.91 at most on the 14 labels of NIH chest X-ray, and on small data up to 1.3 above
    fraction 0.95, where little choice is left.
    Raises DataError where n rows cannot hold every class, naming the smallest fraction that does.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"label fraction {fraction} must lie in (0, 1]")
    rows = np.flatnonzero(splits == TRAIN)
    n = round(fraction * len(rows))
    if len(rows) == 0:
        raise DataError("there are no training images to take a label fraction of; mark some images train")
    if n == len(rows):
        return rows
    rng = generator(seed, "label fraction")
    order, needed = (_order_classes if labels.ndim == 1 else _order_labels)(labels[rows], n, rng)
    if n < needed:
        raise DataError(
            f"label fraction {fraction} keeps {n} of {len(rows)} training images, too few to hold every class; "
            f"the smallest fraction that does is {_fraction(needed, len(rows))} ({needed} images)"
        )
    return np.sort(rows[order[:n]])


def _fraction(n: int, of: int) -> float:
    """A fraction with few digits, hardly above n / of, that rounds to at least n of `of` rows."""
    for digits in range(1, 16):
        scale = 10.0**digits
        fraction = math.ceil(n / of * scale) / scale
        if n <= round(fraction * of) <= 1.1 * n:
            return fraction
    return 1.0


def _order_classes(labels: NDArray[np.int64], n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """The first n rows of the order by class, and how many of them are its classes' first rows.

    Which class comes next follows Tijdeman, The chairman assignment problem (Discrete Mathematics 32, 1980): of the
    classes far enough behind their share, the one that would soonest be a whole row late. Every prefix then stays
    within 1 - 1/(2C - 2) rows of every class's share.
    """
    classes, of_row, count = np.unique(labels, return_inverse=True, return_counts=True)
    c = len(classes)
    members = _members(of_row, c, rng)
    share = count / len(labels)  # (C,)
    slack = 1 / (2 * c - 2) if c > 1 else 0.0
    taken = np.zeros(c, dtype=np.int64)
    order = np.empty(max(n, c), dtype=np.int64)
    start = rng.permutation(c)
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


def _order_labels(labels: NDArray[np.uint8], n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """The first n rows of the order by labels (N, L), and how many of them it took to meet every outcome.

    Iterative stratification (Sechidis et al., ECML PKDD 2011) a row at a time: rarest outcome first until all are met,
    then the combination of labels that leaves the counts closest to their shares. Counted are the labels and, with a
    small weight, the images with 0, 1, 2, ... labels and those of each combination: the labels alone would be met best
    by images with exactly one finding, and images with many would never come.
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


def _members(of_row: NDArray[np.int64], kinds: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows of each kind in a random order."""
    shuffled = rng.permutation(len(of_row))
    grouped = shuffled[np.argsort(of_row[shuffled], kind="stable")]
    return np.split(grouped, np.cumsum(np.bincount(of_row, minlength=kinds))[:-1])


def _outcomes(labels: NDArray[Any], class_names: Sequence[str]) -> tuple[NDArray[np.uint8], list[str]]:
    """Zeros and ones (N, C) of what every split and subset must hold, and their names for messages.

    One class each; with several labels, each label's positives and its negatives.
    """
    if labels.ndim == 1:
        c = max(int(labels.max(initial=0)) + 1, len(class_names))
        names = [f"class {name}" for name in (class_names or range(c))]
        return (labels[:, None] == np.arange(c)).astype(np.uint8), names
    names = [str(name) for name in (class_names or range(labels.shape[1]))]
    both = np.concatenate([labels, 1 - labels], axis=1).astype(np.uint8)
    return both, [f"label {n} positive" for n in names] + [f"label {n} negative" for n in names]
