"""AUROC and F1 with bootstrap intervals over groups, equal to scikit-learn's, for many resamples at once.

A resample of groups is a weight for each image: how often its group was drawn. Every score here takes the weights of
R resamples together, (N, R), so the sorting and matching that a score needs happens once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.config import Metric
from ssl_core.data.dataset import Task
from ssl_core.errors import DataError
from ssl_core.seeding import generator

Floats = NDArray[np.float64]

_CHUNK_BYTES = 32 << 20  # of weights held together
_TRIES = 10  # draws made for each replicate asked for, before a score counts as too often undefined


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval.

    `low` and `high` are the 2.5th and 97.5th percentiles over resamples of groups. `paper_low` and `paper_high` are
    the paper's formula, mean -+ 1.96 sd / sqrt(replicates): it shrinks with the number of replicates, so it is no
    confidence interval and is kept for comparison alone. All four are NaN where there are no replicates to speak of.
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
    metric: Metric, labels: NDArray[Any], probabilities: NDArray[Any], task: Task, *, weights: Floats | None = None
) -> float:
    """The metric in [0, 1] of `probabilities` (N, K) for `labels` (N,) or (N, L), with `weights` (N,) >= 0 if given.

    auroc: area under the ROC curve, ties counted half; multiclass: mean over classes, each against the rest;
    multilabel: mean over labels. f1: of the positive class, called where its probability is above 0.5; multilabel:
    mean over labels. f1_macro: mean F1 over classes, called by the largest probability (binary: above 0.5).
    Raises DataError where the score is undefined: a class (of a label: an outcome) has no image of positive weight.
    """
    _check(metric, labels, probabilities, task)
    given = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (len(labels),) or not (given >= 0).all() or not np.isfinite(given).all():
        raise DataError(f"weights {given.shape} must be one finite number, 0 or more, for each of {len(labels)} images")
    value = float(_scorer(metric, labels, probabilities, task)(given[:, None])[0])
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
) -> Interval:
    """The score with percentile intervals over `replicates` resamples of `groups` (N,), drawn with replacement.

    A resample that lacks a class is drawn again; where fewer than a tenth of them hold every class the bounds are NaN,
    because the few that do are no picture of the spread. Raises DataError where the score itself is undefined.
    """
    value = score(metric, labels, probabilities, task)
    names, of_row = np.unique(np.asarray(groups), return_inverse=True)
    if len(of_row) != len(labels):
        raise DataError(f"{len(of_row)} groups for {len(labels)} images; give one for each")
    evaluate = _scorer(metric, labels, probabilities, task)
    draws = resamples(len(names), replicates * _TRIES, seed)
    chunk = max(1, _CHUNK_BYTES // (8 * len(labels)))
    values = np.empty(0)
    while len(values) < replicates:
        drawn = islice(draws, min(chunk, replicates - len(values)))
        counts = [np.bincount(draw, minlength=len(names)) for draw in drawn]  # R of (G,)
        if not counts:
            break
        found = evaluate(np.stack(counts, axis=1)[of_row].astype(np.float64))  # (R,)
        values = np.concatenate([values, found[~np.isnan(found)]])
    return _interval(value, values, len(labels), replicates)


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
) -> list[dict[str, Any]]:
    """One tidy row for each metric that the task has, `metric` first; all are scored on the same resamples."""
    if metric not in applicable(task):
        raise DataError(f"metric {metric} is not defined for {task} labels; use {' or '.join(applicable(task))}")
    found = []
    for name in sorted(applicable(task), key=lambda m: m != metric):
        interval = bootstrap(name, labels, probabilities, task, groups=groups, replicates=replicates, seed=seed)
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


def _interval(value: float, values: Floats, n: int, replicates: int) -> Interval:
    if len(values) < max(replicates, 2):
        nan = float("nan")
        return Interval(value, nan, nan, nan, nan, n, len(values))
    low, high = np.percentile(values, [2.5, 97.5])
    mean, half = values.mean(), 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(value, float(low), float(high), float(mean - half), float(mean + half), n, len(values))


Scorer = Callable[[Floats], Floats]  # weights (N, R) -> scores (R,), NaN where a class has no weight


def _scorer(metric: Metric, labels: NDArray[Any], probabilities: NDArray[Any], task: Task) -> Scorer:
    truth = _truth(labels, probabilities.shape[1], task)  # (N, K)
    match metric:
        case "auroc":
            columns = [_ranked(t, p) for t, p in zip(truth.T, probabilities.T, strict=True)]
            return lambda weights: _mean([_auroc(column, weights) for column in columns])
        case "f1":
            called = probabilities > 0.5
        case "f1_macro" if task == "binary":
            truth = np.concatenate([~truth, truth], axis=1)
            called = np.concatenate([probabilities <= 0.5, probabilities > 0.5], axis=1)
        case "f1_macro":
            called = probabilities.argmax(axis=1)[:, None] == np.arange(truth.shape[1])
    counted = np.concatenate([truth & called, truth, called, ~truth], axis=1).T.astype(np.float64)  # (4K, N)
    return lambda weights: _mean(_f1(counted @ weights))


def _mean(scores: Sequence[Floats] | Floats) -> Floats:
    """(K, R) -> (R,); NaN where one of the K is."""
    mean: Floats = np.mean(np.asarray(scores), axis=0)
    return mean


@dataclass(frozen=True)
class _Ranked:
    """One output's images, sorted once."""

    negatives: NDArray[np.int64]  # rows, by ascending score
    positives: NDArray[np.int64]  # rows
    below: NDArray[np.int64]  # for each positive: negatives that score lower
    up_to: NDArray[np.int64]  # for each positive: negatives that score lower or the same


def _ranked(truth: NDArray[np.bool_], scores: NDArray[Any]) -> _Ranked:
    negatives, positives = np.flatnonzero(~truth), np.flatnonzero(truth)
    negatives = negatives[np.argsort(scores[negatives])]
    below, up_to = (np.searchsorted(scores[negatives], scores[positives], side=side) for side in ("left", "right"))
    return _Ranked(negatives, positives, below, up_to)


def _auroc(of: _Ranked, weights: Floats) -> Floats:
    """Mann and Whitney's form: the share of (positive, negative) pairs in the right order, a tie counting half."""
    positive = weights[of.positives]  # (P, R)
    passed = np.zeros((len(of.negatives) + 1, weights.shape[1]))  # weight of the k lowest negatives
    np.cumsum(weights[of.negatives], axis=0, out=passed[1:])
    pairs = np.einsum("pr,pr->r", positive, passed[of.below] + passed[of.up_to]) / 2
    total = positive.sum(axis=0) * passed[-1]
    auroc: Floats = np.divide(pairs, total, out=np.full(len(total), np.nan), where=total > 0)
    return auroc


def _f1(weights: Floats) -> Floats:
    """(4K, R) weights of hits, true, called and false for K outputs -> (K, R) of 2 hits / (true + called)."""
    hits, true, called, false = np.split(weights, 4)
    f1: Floats = np.divide(2 * hits, true + called, out=np.full(hits.shape, np.nan), where=(true > 0) & (false > 0))
    return f1


def _truth(labels: NDArray[Any], outputs: int, task: Task) -> NDArray[np.bool_]:
    """(N, K) of what each output should say."""
    wanted = np.arange(outputs) if task == "multiclass" else 1
    truth: NDArray[np.bool_] = (labels if task == "multilabel" else labels[:, None]) == wanted
    return truth


def _absent(labels: NDArray[Any], weights: Floats, outputs: int, task: Task) -> str:
    """The first output that lacks a side, in words."""
    truth = _truth(labels, outputs, task)[weights > 0]
    what = "label" if task == "multilabel" else "class"
    for k, column in enumerate(truth.T):
        if not column.any():
            return f"{what} {1 if task == 'binary' else k}"
        if column.all():
            return "class 0" if task == "binary" else f"anything but {what} {k}"
    return "a class"


def _check(metric: Metric, labels: NDArray[Any], probabilities: NDArray[Any], task: Task) -> None:
    if metric not in applicable(task):
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
