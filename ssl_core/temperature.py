"""Temperature scaling: logits divided by one number, so that probabilities mean what they say (Guo et al. 2017).

The order of images and of classes stays as it is, so AUROC does too (multiclass: that of each class almost).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import Task

Floats = NDArray[np.float64]

_LEAST = np.finfo(np.float64).tiny  # a probability of 0 has no logarithm


def logits_of(probabilities: Floats, task: Task) -> Floats:
    """The logits [N, K] behind float64 probabilities [N, K]; multiclass: up to a number a row, which changes nothing.

    Where a sigmoid has rounded to 1 (logits above 36) or to 0 (below -708) the answer is the greatest or least that it
    can have been.
    """
    p = np.clip(np.asarray(probabilities, dtype=np.float64), _LEAST, 1.0)
    if task == "multiclass":
        return np.log(p)
    return np.log(p) - np.log(np.maximum(1.0 - p, np.finfo(np.float64).epsneg))


def tempered(probabilities: Floats, temperature: float, task: Task) -> Floats:
    """What probabilities [N, K] become where their logits are divided by `temperature`; at 1 they stay as they are."""
    if temperature == 1:
        return np.asarray(probabilities, dtype=np.float64)
    z = logits_of(probabilities, task) / temperature
    if task == "multiclass":
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))
    return np.asarray(np.exp(-np.logaddexp(0, -z)))
