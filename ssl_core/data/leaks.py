"""Images that are where they must not be: a group or a picture in two splits, a picture twice in one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import SPLITS, Dataset
from ssl_core.data.evidence import EXAMPLES, Finding, Packed, are, comparable, counted, listed, stop
from ssl_core.data.likeness import near_duplicates


def groups_across(dataset: Dataset) -> Finding | None:
    names, group = np.unique(dataset.groups, return_inverse=True)
    seen = np.zeros((len(names), len(SPLITS)), dtype=bool)
    seen[group, dataset.splits] = True
    straddling = np.flatnonzero(seen.sum(axis=1) > 1)
    if not len(straddling):
        return None
    images = int(np.isin(group, straddling).sum())
    examples = tuple(
        f"{names[g]} ({' and '.join(SPLITS[s] for s in np.flatnonzero(seen[g]))})" for g in straddling[:EXAMPLES]
    )
    return stop(
        "groups_across_splits",
        len(straddling),
        examples,
        f"{counted(len(straddling), 'group')} (patients) with {counted(images, 'image')} {are(len(straddling))} in "
        f"more than one split, so scores on them are too good: {listed(examples, len(straddling))}. "
        "Correct the splits, or leave them out to have them made by group.",
    )


def duplicates_across(packed: Packed) -> Finding | None:
    splits = packed.dataset.splits
    rows, start, end = _sets(packed.digest, ~packed.constant, splits)
    spanning = splits[rows[start]] != splits[rows[end - 1]]  # rows of a set are in the order of their splits
    if not spanning.any():
        return None
    start, end = start[spanning], end[spanning]
    count = len(start)
    apart = int((_other(_kinds(packed.dataset), rows, start, end) < end).sum())
    examples = _pairs(packed.dataset, np.stack([rows[start], rows[end - 1]], axis=1))
    more = f" In {apart} of them the copies have different labels." if apart else ""
    return stop(
        "duplicates_across_splits",
        count,
        examples,
        f"{counted(count, 'picture')} {are(count)} in more than one split as exact copies, {int((end - start).sum())} "
        f"images in all, so scores on them are too good: {listed(examples, count)}.{more} Remove all copies but one.",
    )


def near_duplicates_across(packed: Packed) -> Finding | None:
    splits = packed.dataset.splits
    clear = np.flatnonzero(comparable(packed))
    # One row of each picture and split: exact copies are another finding, and would crowd out the near ones.
    _, first = np.unique(packed.digest[clear] * len(SPLITS) + splits[clear], return_index=True)
    rows = clear[np.sort(first)]
    pairs = rows[near_duplicates(packed.thumb[rows], splits[rows])]  # (P, 2), most alike first
    pairs = pairs[packed.digest[pairs[:, 0]] != packed.digest[pairs[:, 1]]]
    pairs = np.take_along_axis(pairs, np.argsort(splits[pairs], axis=1), axis=1)  # train is named first
    if not len(pairs):
        return None
    examples = _pairs(packed.dataset, pairs, sign="~")
    images = len(np.unique(pairs))
    return stop(
        "near_duplicates_across_splits",
        len(pairs),
        examples,
        f"{counted(len(pairs), 'pair')} of images in two splits ({images} images) look like one picture that was "
        f"saved, resized, cropped or brightened again: {listed(examples, len(pairs))}. "
        "Look at them; where they are copies, remove one of each pair or move both into one split.",
    )


def duplicates_within(packed: Packed) -> Iterable[Finding]:
    data = packed.dataset
    rows, start, end = _sets(packed.digest * len(SPLITS) + data.splits, ~packed.constant, data.splits)
    other = _other(np.unique(data.groups, return_inverse=True)[1], rows, start, end)
    several = other < end
    if several.any():
        count = int(several.sum())
        extra = int((end - start - 1)[several].sum())
        examples = _pairs(data, np.stack([rows[start[several]], rows[other[several]]], axis=1))
        yield Finding(
            name="duplicates_within_split",
            count=count,
            examples=examples,
            text=f"{counted(count, 'picture')} {are(count)} more than once in one split under different groups "
            f"({extra} copies too many): {listed(examples, count)}. They count twice; the groups may be one patient.",
        )
    other = _other(_kinds(data), rows, start, end)
    apart = other < end
    if apart.any():
        count = int(apart.sum())
        examples = _pairs(data, np.stack([rows[start[apart]], rows[other[apart]]], axis=1))
        yield Finding(
            name="contradicting_labels",
            count=count,
            examples=examples,
            text=f"{counted(count, 'picture')} {are(count)} in one split more than once with different labels: "
            f"{listed(examples, count)}. At most one of them is right: check the labels before anything else.",
        )


def _sets(
    key: NDArray[np.int64], which: NDArray[np.bool_], splits: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows in an order where those of equal keys stand together, by split; first and past-last place of each set of two
    or more."""
    rows = np.flatnonzero(which)
    rows = rows[np.lexsort((splits[rows], key[rows]))]
    start = np.flatnonzero(np.r_[True, key[rows][1:] != key[rows][:-1]][: len(rows)])
    end = np.r_[start[1:], len(rows)][: len(start)]
    several = end - start > 1
    return rows, start[several], end[several]


def _other(
    values: NDArray[np.int64], rows: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Of each set, the place of its first row with another value than its first one; `end` where all are equal."""
    changes = np.flatnonzero(values[rows][1:] != values[rows][:-1]) + 1  # ascending places
    after = np.append(changes, len(rows))[np.searchsorted(changes, start, side="right")]
    places: NDArray[np.int64] = np.minimum(after, end)
    return places


def _kinds(dataset: Dataset) -> NDArray[np.int64]:
    """(N,) one number for each different label or row of labels."""
    kinds: NDArray[np.int64] = np.unique(dataset.labels, axis=0, return_inverse=True)[1].reshape(-1)
    return kinds


def _pairs(dataset: Dataset, pairs: NDArray[np.int64], *, sign: str = "=") -> tuple[str, ...]:
    """Examples that name both ids with their splits."""
    named = [[f"{dataset.ids[row]} ({SPLITS[dataset.splits[row]]})" for row in pair] for pair in pairs[:EXAMPLES]]
    return tuple(f" {sign} ".join(pair) for pair in named)
