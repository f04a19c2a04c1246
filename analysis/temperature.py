"""Fitting the temperature of a model on its validation split (Guo et al. 2017, section 4.2)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import Task
from ssl_core.errors import DataError
from ssl_core.temperature import logits_of, tempered

log = logging.getLogger(__name__)

#: Least and greatest temperature that is looked for.
BOUNDS = (0.05, 20.0)

_LEAST_GAIN = 1e-9  # of the mean loss: below it the temperature stays at 1


def nll(labels: NDArray[Any], probabilities: NDArray[np.floating], task: Task, temperature: float = 1.0) -> float:
    """Mean negative log likelihood, natural logarithm, of labels under probabilities whose logits were divided.

    Multiclass: of the true class. Binary and multilabel: of each outcome. `labels` [N], or [N, L] for multilabel;
    `probabilities` [N, K], K = 1, classes or L.
    """
    z = logits_of(np.asarray(probabilities, dtype=np.float64), task) / temperature
    if task == "multiclass":
        rows = np.arange(len(z))
        return float(np.mean(np.logaddexp.reduce(z, axis=1) - z[rows, labels]))
    truth = np.asarray(labels).reshape(z.shape)
    return float(np.mean(np.logaddexp(0, z) - truth * z))


def fit_temperature(labels: NDArray[Any], probabilities: NDArray[np.floating], task: Task) -> float:
    """The temperature in `BOUNDS` of least `nll`, one for all classes or labels; 1 where none is better than it.

    Give validation labels and probabilities, never those of a test split. The loss in 1 / T is convex, so what is
    found is the least of all. Where it lies on a bound (every image called right: the colder the better) the bound is
    returned and a warning logged. Raises DataError where there is nothing to fit, or numbers are not finite.
    """
    from scipy.optimize import minimize_scalar

    p = np.asarray(probabilities, dtype=np.float64)
    if len(p) == 0 or len(labels) != len(p):
        raise DataError(f"{len(labels)} labels for {len(p)} predictions; a temperature needs one for each, and some")
    if not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
        raise DataError("probabilities must be finite and lie in [0, 1]; the predictions are damaged")
    low, high = BOUNDS
    found = minimize_scalar(  # over 1 / T, in which the loss is convex
        lambda inverse: nll(labels, p, task, 1 / inverse),
        bounds=(1 / high, 1 / low),
        method="bounded",
        options={"xatol": 1e-8},
    )
    temperature = float(1 / found.x)
    for bound in BOUNDS:
        if abs(temperature / bound - 1) < 1e-3:
            log.warning(
                "the temperature ends at %g, the bound of the search: these %d images do not say how sure to be "
                "(every one is called right, or none better than by chance); validate on more images",
                bound,
                len(p),
            )
            temperature = bound
    gain = nll(labels, p, task) - nll(labels, p, task, temperature)
    return temperature if gain > _LEAST_GAIN else 1.0


__all__ = ["BOUNDS", "fit_temperature", "nll", "tempered"]
