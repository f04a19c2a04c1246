"""The temperature that was planted is found; ranks stay; the validation loss never grows."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import log_loss

from analysis.temperature import BOUNDS, fit_temperature, nll, tempered
from ssl_core.data.dataset import Task
from ssl_core.errors import DataError
from ssl_core.temperature import logits_of

TASKS: tuple[Task, ...] = ("binary", "multiclass", "multilabel")


def drawn(task: Task, n: int = 20_000, seed: int = 0) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Labels drawn from the very probabilities that these logits [n, K] give."""
    rng = np.random.default_rng(seed)
    z = rng.normal(scale=2.0, size=(n, {"binary": 1, "multiclass": 4, "multilabel": 3}[task]))
    if task == "multiclass":
        return (softmax(z, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), z
    labels = (rng.random(z.shape) < expit(z)).astype(np.int64)
    return (labels[:, 0] if task == "binary" else labels), z


def probabilities(z: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    return np.asarray(softmax(z, axis=1) if task == "multiclass" else expit(z))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("planted", [0.4, 3.0])
def test_a_planted_temperature_is_found(task: Task, planted: float) -> None:
    labels, z = drawn(task)
    p = probabilities(z * planted, task)
    found = fit_temperature(labels, p, task)
    assert found == pytest.approx(planted, rel=0.05)
    grid = [nll(labels, p, task, t) for t in found * np.linspace(0.8, 1.25, 41)]
    assert nll(labels, p, task, found) <= min(grid)


@pytest.mark.parametrize("task", TASKS)
def test_calibrated_probabilities_stay(task: Task) -> None:
    labels, z = drawn(task)
    assert fit_temperature(labels, probabilities(z, task), task) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_is_the_formula(task: Task) -> None:
    labels, z = drawn(task, n=50)
    p = probabilities(z, task)
    if task == "multiclass":
        expected = log_loss(labels, softmax(z / 1.7, axis=1), labels=range(4))
        assert -log_softmax(z / 1.7, axis=1)[np.arange(50), labels].mean() == pytest.approx(expected)
    else:
        truth, q = labels.ravel(), expit(z / 1.7).ravel()
        expected = -np.mean(truth * np.log(q) + (1 - truth) * np.log(1 - q))
    assert nll(labels, p, task, 1.7) == pytest.approx(expected, rel=1e-12)
    assert nll(labels, tempered(p, 1.7, task), task) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_ranks_stay_and_the_loss_never_grows(task: Task) -> None:
    for seed in range(20):
        labels, z = drawn(task, n=12, seed=seed)
        p = probabilities(z * 5, task)
        t = fit_temperature(labels, p, task)
        assert BOUNDS[0] <= t <= BOUNDS[1]
        assert nll(labels, p, task, t) <= nll(labels, p, task)
        axis = 1 if task == "multiclass" else 0
        assert (tempered(p, t, task).argsort(axis=axis) == p.argsort(axis=axis)).all()


def test_perfect_separation_ends_at_the_bound_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.array([0, 1] * 10)
    p = np.where(labels == 1, 0.6, 0.4)[:, None]
    with caplog.at_level(logging.WARNING):
        assert fit_temperature(labels, p, "binary") == BOUNDS[0]
    assert "ends at 0.05, the bound" in caplog.text
    assert fit_temperature(1 - labels, p, "binary") == BOUNDS[1]  # always wrong: the warmer the better


def test_certain_probabilities_have_finite_losses() -> None:
    z = np.array([[40.0], [-800.0], [900.0]])
    p = probabilities(z, "binary")
    assert np.isfinite(logits_of(p, "binary")).all()
    assert np.isfinite(nll(np.array([0, 1, 1]), p, "binary"))
    assert 1 < fit_temperature(np.array([0, 1, 1]), p, "binary") <= BOUNDS[1]
    assert (tempered(p, 1.0, "binary") == p).all()


def test_nothing_to_fit_is_refused() -> None:
    with pytest.raises(DataError, match="0 labels for 0 predictions"):
        fit_temperature(np.zeros(0), np.zeros((0, 1)), "binary")
    with pytest.raises(DataError, match="must be finite"):
        fit_temperature(np.zeros(1), np.full((1, 1), np.nan), "binary")
