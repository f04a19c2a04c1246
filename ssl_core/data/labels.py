"""Which training labels a small fraction may see (paper section 3.3). Pure functions of a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.config import LabelsConfig
from ssl_core.data import label_orders
from ssl_core.data.dataset import TRAIN
from ssl_core.errors import DataError
from ssl_core.seeding import generator

_ALIKE = LabelsConfig()  # stratified, by image, the same for every arm


def label_subset(
    labels: NDArray[Any],
    splits: NDArray[np.int8],
    *,
    fraction: float,
    seed: int,
    config: LabelsConfig = _ALIKE,
    groups: NDArray[Any] | None = None,
) -> NDArray[np.int64]:
    """Ascending row numbers of the training images whose labels a `fraction` in (0, 1] of them may see: (n,) int64.

    All fractions of a seed (and salt) are prefixes of one order, so smaller ones lie inside larger ones. n is
    `fraction` of the training rows, rounded, at least 1. With unit `group` the order is of whole `groups` (N,), and
    its prefix is the one whose number of images comes closest to `fraction` of the rows, at least one group.

    Stratified, the order starts with what brings every class (each outcome of every label), the rarest first, and goes
    on with whatever keeps the class counts closest to their shares: see `label_orders` for how close that is. Random,
    it is any order, and nothing is done for a rare class.

    Raises DataError where the chosen rows lack a class that training rows have and `config.missing` is refuse, naming
    the smallest fraction that does hold every class (for warn see `absent_outcomes`); and where nothing can be drawn.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"label fraction {fraction} must lie in (0, 1]")
    rows = np.flatnonzero(splits == TRAIN)
    if len(rows) == 0:
        raise DataError("there are no training images to take a label fraction of; mark some images train")
    whole = config.unit == "group"
    if whole and groups is None:
        raise DataError("labels.unit is group and no groups were given; give one for each image, or use unit image")
    unit = np.unique(groups[rows], return_inverse=True)[1] if whole and groups is not None else np.arange(len(rows))
    wanted = fraction * len(rows) if whole else max(1, round(fraction * len(rows)))
    if wanted == len(rows):
        return rows
    rng = generator(seed, "label fraction", *([config.salt] if config.salt else []))
    order, needed = _order(labels[rows], unit, wanted, config, rng)
    sizes = np.bincount(unit)
    end = np.cumsum(sizes[order])  # images of the order's first unit, first two units, ...
    taken = 1 + int(np.abs(end - wanted).argmin())
    if taken < needed and config.missing == "refuse":
        least, kept = int(end[needed - 1]), int(end[taken - 1])
        raise DataError(
            f"label fraction {fraction} keeps {kept} of {len(rows)} training images, too few to hold every class; "
            f"the smallest fraction that does is {_fraction(least, len(rows))} ({least} images)"
        )
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[:taken]] = True
    return rows[chosen[unit]]


def absent_outcomes(labels: NDArray[Any], rows: NDArray[np.int64], class_names: Sequence[str] = ()) -> list[str]:
    """What the chosen `rows` of `labels` lack, in words: `class sick`, or `label mass positive`."""
    found, names = outcomes_of(labels, class_names)
    there = found[rows].sum(axis=0)  # (C,)
    return [name for name, n in zip(names, there, strict=True) if n == 0]


def _order(
    labels: NDArray[Any], unit: NDArray[np.int64], wanted: float, config: LabelsConfig, rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """(units in their order, for `wanted` images at least; how many of them it takes to meet every outcome)."""
    if config.draw == "random":
        return label_orders.at_random(unit, outcomes_of(labels)[0], rng)
    if config.unit == "group":
        return label_orders.by_group(labels, unit, outcomes_of(labels)[0], wanted, rng)
    return (label_orders.by_class if labels.ndim == 1 else label_orders.by_labels)(labels, int(wanted), rng)


def _fraction(n: int, of: int) -> float:
    """A fraction with few digits, hardly above n / of, that rounds to at least n of `of` rows."""
    for digits in range(1, 16):
        scale = 10.0**digits
        fraction = math.ceil(n / of * scale) / scale
        if n <= round(fraction * of) <= 1.1 * n:
            return fraction
    return 1.0


def outcomes_of(labels: NDArray[Any], class_names: Sequence[str] = ()) -> tuple[NDArray[np.uint8], list[str]]:
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
