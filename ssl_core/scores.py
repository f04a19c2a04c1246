"""Scores of weighted images for many resamples at once: the sums behind `ssl_core.metrics`.

Every score takes the weights of R resamples together, (N, R), so the sorting and matching that it needs happens once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.config import Metric
from ssl_core.data.dataset import Task

Floats = NDArray[np.float64]
Scored = Metric | Literal["accuracy"]  # accuracy selects, but is never reported: a rare class hardly moves it
Scorer = Callable[[Floats], Floats]  # weights (N, R) -> parts (K, R) whose mean over K is the score, NaN if undefined


def scorer(metric: Scored, labels: NDArray[Any], probabilities: NDArray[Any], task: Task) -> Scorer:
    """The metric's parts as a function of weights: one a label where multilabel, one a class for a mean over classes.

    A part is NaN where its class (of a label: an outcome) has no weight.
    """
    truth = truth_of(labels, probabilities.shape[1], task)  # (N, K)
    match metric:
        case "auroc":
            columns = [_ranked(t, p) for t, p in zip(truth.T, probabilities.T, strict=True)]
            return lambda weights: np.stack([_auroc(column, weights) for column in columns])
        case "accuracy":
            called = probabilities > 0.5
            right = called == truth if task != "multiclass" else (probabilities.argmax(axis=1) == labels)[:, None]
            correct = right.T.astype(np.float64)  # (K, N), one row where there are classes
            return lambda weights: _shares(correct @ weights, weights.sum(axis=0))
        case "f1":
            called = probabilities > 0.5
        case "f1_macro" if task == "binary":
            truth = np.concatenate([~truth, truth], axis=1)
            called = np.concatenate([probabilities <= 0.5, probabilities > 0.5], axis=1)
        case "f1_macro":
            called = probabilities.argmax(axis=1)[:, None] == np.arange(truth.shape[1])
    counted = np.concatenate([truth & called, truth, called, ~truth], axis=1).T.astype(np.float64)  # (4K, N)
    return lambda weights: _f1(counted @ weights)


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


def _shares(part: Floats, whole: Floats) -> Floats:
    """(K, R) / (R,), NaN where the whole is nothing."""
    shares: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares


def truth_of(labels: NDArray[Any], outputs: int, task: Task) -> NDArray[np.bool_]:
    """(N, K) of what each output should say."""
    wanted = np.arange(outputs) if task == "multiclass" else 1
    truth: NDArray[np.bool_] = (labels if task == "multilabel" else labels[:, None]) == wanted
    return truth


def sides(labels: NDArray[Any], p: Floats, task: Task) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(N, C) each: whether an image is of a class (has a label), and whether it is called so. Binary: both classes."""
    truth = truth_of(labels, p.shape[1], task)
    match task:
        case "binary":
            return np.concatenate([~truth, truth], axis=1), np.concatenate([p <= 0.5, p > 0.5], axis=1)
        case "multiclass":
            return truth, p.argmax(axis=1)[:, None] == np.arange(p.shape[1])
        case "multilabel":
            return truth, p > 0.5
