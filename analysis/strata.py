"""A model's test scores by class and by group: where it does worse than its mean says, with bootstrap intervals.

The interval resamples groups, as that of the whole score does (`ssl_core.metrics.bootstrap`), on the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import Task
from ssl_core.metrics import resampled_weights, resamples
from ssl_core.scores import Weights, scorer, sides

Floats = NDArray[np.float64]
#: Groups by how many images they have, in words and by their bounds.
SIZES = (("1 image", 1, 1), ("2 to 5 images", 2, 5), ("6 or more images", 6, math.inf))


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] with its 95% percentile interval; NaN where the images do not define it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OfClass:
    """How one class, or label, fares."""

    name: str
    images: int  # of the class, or with the label
    recall: Estimate  # called by the largest probability; of one output, above 0.5
    auroc: Estimate  # against all the rest; of two classes the same for both


@dataclass(frozen=True)
class OfSize:
    """Groups of about one size."""

    name: str
    groups: int
    images: int
    accuracy: Estimate  # of their images


@dataclass(frozen=True)
class Groups:
    """How accuracy spreads over groups (patients), each counted once however many images it has."""

    groups: int
    images: int
    accuracy: Estimate  # mean over groups of the share of a group's images that are called right
    worst_decile: float  # that share in the worst tenth of the groups reaches this at most
    none_right: int  # groups of which no image is called right
    sizes: tuple[OfSize, ...]  # none where each image is its own group


def by_class(
    labels: NDArray[Any],
    probabilities: Floats,
    task: Task,
    *,
    groups: NDArray[Any],
    names: Sequence[str],
    replicates: int,
    seed: int,
) -> list[OfClass]:
    """Of `probabilities` (N, K) for `labels` (N,) or (N, L): recall and AUROC of every class or label, as named.

    A resample without an image of the class says nothing of it; bounds are NaN where more than half of them lack it.
    """
    truth, called = sides(labels, probabilities, task)
    evaluate = scorer("auroc", labels, probabilities, task)
    hits, true = (truth & called).T.astype(np.float64), truth.T.astype(np.float64)  # (C, N)

    def shares(weights: Weights) -> Floats:  # (N, R) -> (2, C, R)
        recall = np.divide(
            hits @ weights,
            true @ weights,
            out=np.full((len(true), weights.shape[1]), math.nan),
            where=true @ weights > 0,
        )
        return np.stack([recall, np.broadcast_to(evaluate(weights), recall.shape)])

    value = shares(np.ones((len(labels), 1)))[:, :, 0]
    drawn = np.concatenate(
        [shares(w) for w in resampled_weights(groups, replicates, seed)] or [value[..., None]], axis=2
    )
    return [
        OfClass(name, int(truth[:, c].sum()), *(_estimate(value[i, c], drawn[i, c]) for i in range(2)))
        for c, name in enumerate(names)
    ]


def by_group(
    labels: NDArray[Any], probabilities: Floats, task: Task, *, groups: NDArray[Any], replicates: int, seed: int
) -> Groups:
    """How the share of images called right (multi-label: of outcomes) spreads over the groups (N,)."""
    truth, called = sides(labels, probabilities, task)
    right = (truth == called).mean(axis=1) if task == "multilabel" else (truth & called).any(axis=1).astype(np.float64)
    _, of_row, count = np.unique(groups, return_inverse=True, return_counts=True)
    share = np.bincount(of_row, weights=right) / count  # (G,)
    drawn = np.array([share[draw].mean() for draw in resamples(len(share), replicates, seed)])
    sizes = []
    for name, least, most in SIZES if len(count) < len(labels) else ():
        within = (count >= least) & (count <= most)
        if within.any():
            sums, size = np.bincount(of_row, weights=right)[within], count[within]
            draws = [(sums[d].sum() / size[d].sum()) for d in resamples(len(size), replicates, seed)]
            accuracy = _estimate(sums.sum() / size.sum(), np.array(draws))
            sizes.append(OfSize(name, int(within.sum()), int(size.sum()), accuracy))
    return Groups(
        groups=len(share),
        images=len(labels),
        accuracy=_estimate(float(share.mean()), drawn),
        worst_decile=float(np.percentile(share, 10)),
        none_right=int((share == 0).sum()),
        sizes=tuple(sizes),
    )


def _estimate(value: float, drawn: Floats) -> Estimate:
    known = drawn[~np.isnan(drawn)]
    if len(known) < max(2, len(drawn) / 2):
        return Estimate(float(value), math.nan, math.nan)
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))
