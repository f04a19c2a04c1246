"""AUROC, F1 and accuracy with bootstrap intervals over groups, equal to scikit-learn's.

A resample of groups is a weight for each image: how often its group was drawn (see `ssl_core.scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.config import Metric
from ssl_core.data.dataset import Task
from ssl_core.errors import DataError
from ssl_core.scores import EXACT, Floats, Scored, Weights, scorer, truth_of
from ssl_core.seeding import generator

Resample = Literal["groups", "images"]
Spread = Literal["score", "labels"]

_CHUNK_BYTES = 32 << 20  # of weights held together
_TRIES = 10  # draws made for each replicate asked for, before a score counts as too often undefined


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval.

    `low` and `high` are the 2.5th and 97.5th percentiles over resamples of groups. `paper_low` and `paper_high` are
    the paper's formula, mean -+ 1.96 sd / sqrt(replicates): it shrinks with the number of replicates, so it is no
    confidence interval and is kept for comparison alone. With `paper_spread` labels, and where the score is a mean over
    labels, sd is that of all labels' scores on all replicates thrown together, as the authors' code has it: the spread
    between labels, which no resample moves, goes in. All four are NaN where there are no replicates to speak of.
    """

    value: float
    low: float
    high: float
    paper_low: float
    paper_high: float
    n: int  # images scored
    replicates: int  # resamples on which the score was defined


def applicable(task: Task) -> tuple[Metric, ...]:
    """Metrics that are defined for the task."""
    match task:
        case "binary":
            return ("auroc", "f1", "f1_macro")
        case "multiclass":
            return ("auroc", "f1_macro")
        case "multilabel":
            return ("auroc", "f1")


def score(
    metric: Scored, labels: NDArray[Any], probabilities: NDArray[Any], task: Task, *, weights: Floats | None = None
) -> float:
    """The metric in [0, 1] of `probabilities` (N, K) for `labels` (N,) or (N, L), with `weights` (N,) >= 0 if given.

    auroc: area under the ROC curve, ties counted half; multiclass: mean over classes, each against the rest;
    multilabel: mean over labels. f1: of the positive class, called where its probability is above 0.5; multilabel:
    mean over labels. f1_macro: mean F1 over classes, called by the largest probability (binary: above 0.5).
    accuracy, for selection alone: share of images called right, the same way; multilabel: mean over labels.
    Raises DataError where auroc or f1 is undefined: a class (of a label: an outcome) has no image of positive weight.
    """
    _check(metric, labels, probabilities, task)
    given = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (len(labels),) or not (given >= 0).all() or not np.isfinite(given).all():
        raise DataError(f"weights {given.shape} must be one finite number, 0 or more, for each of {len(labels)} images")
    value = float(scorer(metric, labels, probabilities, task)(given[:, None]).mean())
    if np.isnan(value):
        absent = _absent(labels, given, probabilities.shape[1], task)
        raise DataError(
            f"{metric} is undefined on these {len(labels)} images: none of {absent}; score a set with every class"
        )
    return value


def bootstrap(
    metric: Metric,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    task: Task,
    *,
    groups: NDArray[Any],
    replicates: int,
    seed: int,
    resample: Resample = "groups",
    paper_spread: Spread = "score",
) -> Interval:
    """The score with percentile intervals over `replicates` resamples of `groups` (N,), drawn with replacement.

    With `resample` images each image is drawn for itself, whatever its group.

    A resample that lacks a class is drawn again; where fewer than a tenth of them hold every class the bounds are NaN,
    because the few that do are no picture of the spread. Raises DataError where the score itself is undefined.
    """
    value = score(metric, labels, probabilities, task)
    (by_part,) = _on_resamples((metric,), labels, probabilities, task, groups, replicates, seed, resample)
    return _interval(value, by_part, len(labels), replicates, mixed=_mixed(paper_spread, task))


def resampled_scores(
    metric: Metric,
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    task: Task,
    *,
    groups: NDArray[Any],
    replicates: int,
    seed: int,
    resample: Resample = "groups",
) -> Floats:
    """The score on each resample that `bootstrap` takes, (R,) with R <= `replicates`.

    Which resamples those are depends on `labels`, `groups` and `seed` alone. So two models' scores, tested on the same
    images in the same order, pair: their difference is that on the same resampled groups.
    """
    _check(metric, labels, probabilities, task)
    (by_part,) = _on_resamples((metric,), labels, probabilities, task, groups, replicates, seed, resample)
    scores: Floats = by_part.mean(axis=0)
    return scores


def _on_resamples(
    metrics: Sequence[Metric],
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    task: Task,
    groups: NDArray[Any],
    replicates: int,
    seed: int,
    resample: Resample,
) -> list[Floats]:
    """Of each metric its score's parts (K, R) on the first R <= `replicates` resamples that hold every class."""
    if len(groups) != len(labels):
        raise DataError(f"{len(groups)} groups for {len(labels)} images; give one for each")
    weighted, size = _weighting(np.arange(len(labels)) if resample == "images" else groups)
    evaluate = [scorer(metric, labels, probabilities, task) for metric in metrics]
    draws = resamples(size, replicates * _TRIES, seed)
    found: list[list[Floats]] = [[] for _ in metrics]  # of (K, r)
    while (have := min(sum(parts.shape[1] for parts in of_one) for of_one in found)) < replicates:
        drawn = list(islice(draws, min(_chunk(len(labels)), replicates - have)))
        if not drawn:
            break
        weights = weighted(drawn)  # (N, r)
        for of_one, parts in zip(found, (each(weights) for each in evaluate), strict=True):
            of_one.append(parts[:, ~np.isnan(parts).any(axis=0)])
    none = np.empty((1, 0))
    return [np.concatenate(of_one, axis=1)[:, :replicates] if of_one else none for of_one in found]


def resampled_weights(groups: NDArray[Any], replicates: int, seed: int) -> Iterator[Weights]:
    """How often each image's group was drawn in the resamples of `groups` (N,): (N, R) of some at a time."""
    weighted, size = _weighting(groups)
    draws = resamples(size, replicates, seed)
    while drawn := list(islice(draws, _chunk(len(groups)))):
        yield weighted(drawn)


def _weighting(groups: NDArray[Any]) -> tuple[Callable[[Sequence[NDArray[np.int64]]], Weights], int]:
    """What turns r draws of group numbers into how often each image's group was drawn (N, r); how many groups."""
    _, of_row, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    kind = np.float32 if len(sizes) * int(sizes.max()) <= EXACT else np.float64

    def weighted(drawn: Sequence[NDArray[np.int64]]) -> Weights:
        counts = np.empty((len(drawn), len(sizes)), kind)
        for row, draw in zip(counts, drawn, strict=True):
            row[:] = np.bincount(draw, minlength=len(sizes))
        return np.take(counts.T, of_row, axis=0)

    return weighted, len(sizes)


def _chunk(images: int) -> int:
    """Resamples whose weights are in memory at once."""
    return max(1, _CHUNK_BYTES // (8 * images))


def resamples(groups: int, replicates: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """`replicates` draws of `groups` group numbers with replacement, each (groups,)."""
    rng = generator(seed, "bootstrap")
    return (rng.integers(groups, size=groups) for _ in range(replicates))


def rows(
    labels: NDArray[Any],
    probabilities: NDArray[Any],
    task: Task,
    *,
    groups: NDArray[Any],
    metric: Metric,
    replicates: int,
    seed: int,
    resample: Resample = "groups",
    paper_spread: Spread = "score",
) -> list[dict[str, Any]]:
    """One tidy row for each metric that the task has, `metric` first; all are scored on the same resamples."""
    if metric not in applicable(task):
        raise DataError(f"metric {metric} is not defined for {task} labels; use {' or '.join(applicable(task))}")
    names = sorted(applicable(task), key=lambda m: m != metric)
    values = [score(name, labels, probabilities, task) for name in names]
    drawn = _on_resamples(names, labels, probabilities, task, groups, replicates, seed, resample)
    found = []
    for name, value, by_part in zip(names, values, drawn, strict=True):
        interval = _interval(value, by_part, len(labels), replicates, mixed=_mixed(paper_spread, task))
        found.append(
            {
                "metric": name,
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
                "paper_low": interval.paper_low,
                "paper_high": interval.paper_high,
                "n": interval.n,
            }
        )
    return found


def _mixed(paper_spread: Spread, task: Task) -> bool:
    """Whether the paper's deviation is that of all labels' scores thrown together."""
    return paper_spread == "labels" and task == "multilabel"


def _interval(value: float, by_part: Floats, n: int, replicates: int, *, mixed: bool) -> Interval:
    """From the score's parts (K, R) on R resamples; `mixed` takes the paper's sd over parts and resamples together."""
    values = by_part.mean(axis=0)  # (R,)
    if len(values) < max(replicates, 2):
        nan = float("nan")
        return Interval(value, nan, nan, nan, nan, n, len(values))
    low, high = np.percentile(values, [2.5, 97.5])
    spread = (by_part if mixed else values).std(ddof=1)
    mean, half = values.mean(), 1.96 * spread / np.sqrt(len(values))
    return Interval(value, float(low), float(high), float(mean - half), float(mean + half), n, len(values))


def _absent(labels: NDArray[Any], weights: Floats, outputs: int, task: Task) -> str:
    """The first output that lacks a side, in words."""
    truth = truth_of(labels, outputs, task)[weights > 0]
    what = "label" if task == "multilabel" else "class"
    for k, column in enumerate(truth.T):
        if not column.any():
            return f"{what} {1 if task == 'binary' else k}"
        if column.all():
            return "class 0" if task == "binary" else f"anything but {what} {k}"
    return "a class"


def _check(metric: Scored, labels: NDArray[Any], probabilities: NDArray[Any], task: Task) -> None:
    if metric not in (*applicable(task), "accuracy"):
        raise DataError(f"metric {metric} is not defined for {task} labels; use {' or '.join(applicable(task))}")
    if len(labels) == 0:
        raise DataError(f"{metric} of no images is undefined; score at least one of each class")
    expected = (len(labels), *labels.shape[1:]) if task == "multilabel" else (len(labels), None)
    if labels.ndim != (2 if task == "multilabel" else 1):
        raise DataError(
            f"{task} labels of shape {labels.shape}; expected {'(N, L)' if task == 'multilabel' else '(N,)'}"
        )
    if (
        probabilities.ndim != 2
        or len(probabilities) != len(labels)
        or expected[1] not in (None, probabilities.shape[1])
    ):
        raise DataError(f"probabilities of shape {probabilities.shape} do not fit labels of shape {labels.shape}")
    if task == "binary" and probabilities.shape[1] != 1:
        raise DataError(f"binary probabilities of shape {probabilities.shape}; expected (N, 1), that of class 1")
    top = probabilities.shape[1] - 1 if task == "multiclass" else 1
    if labels.min() < 0 or labels.max() > top:
        raise DataError(f"{task} labels {labels.min()} to {labels.max()}; expected 0 to {top}")
    if not np.isfinite(probabilities).all() or probabilities.min() < 0 or probabilities.max() > 1:
        raise DataError(
            f"probabilities from {probabilities.min():g} to {probabilities.max():g}; expected values in [0, 1]: "
            "apply the sigmoid or softmax, and look for a diverged model where they are not finite"
        )
