"""Scores of weighted images for many resamples at once: the sums behind `ssl_core.metrics`.

Every score takes the weights of R resamples together, (N, R), so the sorting and matching that it needs happens once.
Weights that are whole numbers may come as float32, which halves what is read: sums are exact up to `EXACT`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.config import Metric
from ssl_core.data.dataset import Task

Floats = NDArray[np.float64]
Weights = NDArray[np.float32] | Floats
Scored = Metric | Literal["accuracy"]  # accuracy selects, but is never reported: a rare class hardly moves it
Scorer = Callable[[Weights], Floats]  # weights (N, R) -> parts (K, R) whose mean over K is the score, NaN if undefined

EXACT = 2**23  # greatest sum of a resample's whole weights that float32 may carry; twice it is exact too


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
            correct = right.T.astype(np.float32)  # (K, N), one row where there are classes
            return lambda weights: _shares(_sums(correct, weights), weights.sum(axis=0, dtype=np.float64))
        case "f1":
            called = probabilities > 0.5
        case "f1_macro" if task == "binary":
            truth = np.concatenate([~truth, truth], axis=1)
            called = np.concatenate([probabilities <= 0.5, probabilities > 0.5], axis=1)
        case "f1_macro":
            called = probabilities.argmax(axis=1)[:, None] == np.arange(truth.shape[1])
    counted = np.concatenate([truth & called, truth, called, ~truth], axis=1).T.astype(np.float32)  # (4K, N)
    return lambda weights: _f1(_sums(counted, weights))


@dataclass(frozen=True)
class _Ranked:
    """One output's images, sorted once."""

    negatives: NDArray[np.int64]  # rows, by ascending score
    positives: NDArray[np.int64]  # rows
    below: NDArray[np.int64]  # for each positive: negatives that score lower
    up_to: NDArray[np.int64]  # for each positive: negatives that score lower or the same
    images: int

    @cached_property
    def sums(self) -> tuple[Any, Any]:
        """Sparse (S + 1, N) and (S, N), to be multiplied with weights (N, R): each row of weights is read just once.

        A cut is a place among the sorted negatives where positives stand. The first sums the negatives from one cut to
        the next; the second twice the positives at each cut, or once at either cut where they tie with negatives.
        """
        from scipy.sparse import csr_array

        cuts, placed = np.unique(np.concatenate([self.below, self.up_to]), return_inverse=True)
        ends, ones = np.r_[0, cuts, len(self.negatives)], np.ones(max(len(self.negatives), len(placed)), np.float32)
        between = csr_array((ones[: len(self.negatives)], self.negatives, ends), shape=(len(cuts) + 1, self.images))
        at = csr_array((ones[: len(placed)], (placed, np.tile(self.positives, 2))), shape=(len(cuts), self.images))
        return between, at


def _ranked(truth: NDArray[np.bool_], scores: NDArray[Any]) -> _Ranked:
    negatives, positives = np.flatnonzero(~truth), np.flatnonzero(truth)
    negatives = negatives[np.argsort(scores[negatives])]
    below, up_to = (np.searchsorted(scores[negatives], scores[positives], side=side) for side in ("left", "right"))
    return _Ranked(negatives, positives, below, up_to, len(truth))


def _auroc(of: _Ranked, weights: Weights) -> Floats:
    """Mann and Whitney's form: the share of (positive, negative) pairs in the right order, a tie counting half."""
    if weights.shape[1] == 1:  # to set the sparse matrices up would take longer than they save
        positive = weights[of.positives]  # (P, 1)
        passed = np.zeros((len(of.negatives) + 1, 1))  # weight of the k lowest negatives
        np.cumsum(weights[of.negatives], axis=0, out=passed[1:])
        pairs = (positive * (passed[of.below] + passed[of.up_to])).sum(axis=0)  # twice their weight
        total = 2 * positive.sum(axis=0) * passed[-1]
    else:
        between, at = of.sums
        passed = np.cumsum(between @ weights, axis=0)  # (S + 1, R): weight of the negatives below a cut, and of all
        doubled = at @ weights  # (S, R)
        pairs = np.einsum("sr,sr->r", doubled, passed[:-1], dtype=np.float64)
        total = doubled.sum(axis=0, dtype=np.float64) * passed[-1]
    auroc: Floats = np.divide(pairs, total, out=np.full(len(total), np.nan), where=total > 0)
    return auroc


def _sums(counted: NDArray[np.float32], weights: Weights) -> Floats:
    """(K, N) of 0 and 1, (N, R) -> (K, R)."""
    return (counted @ weights).astype(np.float64, copy=False)


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
