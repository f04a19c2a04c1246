"""Whether probabilities mean what they say: expected calibration error and Brier score.

Reported beside the KS distance, which mixes performance with calibration (paper section 3.4.3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import Task


def ece(labels: NDArray[Any], probabilities: NDArray[np.floating], task: Task, *, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: sum over bins of n_b / N |mean outcome - mean probability|.

    `bins` equal-width bins of [0, 1], closed on the left, the last one on both sides. Binary: of the positive class's
    probability, against the share of positives. Multi-class: of the largest probability, against the share of correct
    answers (Guo et al. 2017, equation 3). Multi-label: the binary one, averaged over labels.

    `labels` [N], or [N, L] for multi-label; `probabilities` [N, K], K = 1, classes or L.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    match task:
        case "binary":
            return _gap(labels.reshape(-1) == 1, p[:, 0], bins)
        case "multiclass":
            return _gap(p.argmax(axis=1) == labels, p.max(axis=1), bins)
        case "multilabel":
            return float(np.mean([_gap(labels[:, k] == 1, p[:, k], bins) for k in range(p.shape[1])]))


def reliability(
    labels: NDArray[Any], probabilities: NDArray[np.floating], task: Task, *, bins: int = 10
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """What `ece` compares, bin by bin: images, mean probability and mean outcome, each [bins]; NaN in an empty bin.

    Of a multi-label task the labels are pooled: an image counts once a label. Shapes as of `ece`.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    match task:
        case "binary":
            happened, confidence = labels.reshape(-1) == 1, p[:, 0]
        case "multiclass":
            happened, confidence = p.argmax(axis=1) == labels, p.max(axis=1)
        case "multilabel":
            happened, confidence = (labels == 1).ravel(), p.ravel()
    bin_of = _bins(confidence, bins)
    count = np.bincount(bin_of, minlength=bins)
    of = np.where(count > 0, count, np.nan)
    sums = (np.bincount(bin_of, weights=values, minlength=bins) for values in (confidence, happened))
    mean, outcome = (total / of for total in sums)
    return count, mean, outcome


def brier(labels: NDArray[Any], probabilities: NDArray[np.floating], task: Task) -> float:
    """Brier score, lower is better.

    Binary: mean (p - y)^2, in [0, 1]. Multi-class: the mean over images of the sum over classes, in [0, 2] (Brier 1950,
    equation 2; scikit-learn's with `scale_by_half=False`). Multi-label: the binary one, averaged over labels.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    match task:
        case "binary":
            return float(np.mean((p[:, 0] - labels.reshape(-1)) ** 2))
        case "multiclass":
            truth = labels[:, None] == np.arange(p.shape[1])  # (N, C)
            return float(((p - truth) ** 2).sum(axis=1).mean())
        case "multilabel":
            return float(np.mean((p - labels) ** 2))


def _gap(happened: NDArray[np.bool_], confidence: NDArray[np.float64], bins: int) -> float:
    bin_of = _bins(confidence, bins)
    # Within a bin n_b |mean outcome - mean confidence| = |sum of the differences|.
    difference = np.bincount(bin_of, weights=happened - confidence, minlength=bins)
    return float(np.abs(difference).sum() / len(confidence))


def _bins(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)
