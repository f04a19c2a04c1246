"""Pruners decide on a snapshot as they decide in Optuna's own loop, whatever the objectives."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from ledgers import EPOCHS, EVALUATED, opened, outcome, search

from tune_jobs.search.config import SchedulerConfig
from tune_jobs.search.pruners import MedianSoFar, make_pruner

#: The paper's settings, which come first and run to their ends.
STARTS = 2


def _curves(count: int) -> list[list[float]]:
    chance = random.Random(0)
    return [[chance.random() * (1 - 0.5 / e) for e in EVALUATED] for _ in range(count)]


def _lengths(ledger: Any, curves: list[list[float]]) -> list[int]:
    """Epochs that each trial was trained for."""
    lengths = []
    for curve in curves:
        trial = ledger.next()
        for epoch, score in zip(EVALUATED, curve, strict=True):
            if ledger.report(trial.number, epoch, score, {}):
                break
        else:
            ledger.complete(trial.number, outcome(trial.params, curve[-1]))
        lengths.append(epoch)
    return lengths


@pytest.mark.parametrize("kind", ["asha", "hyperband"])
def test_decisions_are_optunas(kind: str, tmp_path: Path) -> None:
    curves = _curves(14)
    config = SchedulerConfig(kind=kind)  # type: ignore[arg-type]
    study = optuna.create_study(study_name="toy", direction="maximize", pruner=make_pruner(config, [], EPOCHS))
    expected = []
    for at, curve in enumerate(curves):
        trial = study.ask()
        for epoch, score in zip(EVALUATED, curve, strict=True):
            trial.report(score, epoch)
            if trial.should_prune() and at >= STARTS:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, curve[-1])
        expected.append(epoch)
    given: dict[str, Any] = {"scheduler": kind, "trials": 14, "seeds": (1, 2)}  # two seeds: the last epoch prunes too
    assert _lengths(opened(search(**given), tmp_path / "one"), curves) == expected
    assert min(expected) < EPOCHS
    several = search(**given, objectives=("seconds", "score"))
    assert _lengths(opened(several, tmp_path / "two"), curves) == expected


def test_a_trial_that_has_nothing_left_to_train_is_not_pruned(tmp_path: Path) -> None:
    falling = [[1.0, 0.8, 0.6 - i / 10] for i in range(5)]
    assert _lengths(opened(search(), tmp_path / "one"), falling) == [EPOCHS] * 5
    ledger = opened(search(seeds=(1, 2)), tmp_path / "two")
    _lengths(ledger, falling)
    assert ledger.counts["pruned"] == 3  # another seed is left to train


def _trial(curve: dict[int, float], number: int = 0, *, complete: bool = True) -> Any:
    state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.RUNNING
    trial = optuna.trial.create_trial(state=state, value=1.0 if complete else None, intermediate_values=curve)
    trial.number = number
    return trial


def test_the_median_compares_at_what_was_spent() -> None:
    """Seconds are never the same: what others had reached by then counts, and a bad moment does not."""
    study = optuna.create_study(direction="maximize")
    for i in range(5):
        study.add_trial(_trial({10 + i: 0.1 * i, 20 + i: 0.5 + 0.1 * i}))
    pruner = MedianSoFar(first=12)
    cases = [
        ({11: 0.0}, False),  # before the first decision
        ({16: 0.19}, True),  # the others had 0, 0.1, ..., 0.4 by then
        ({16: 0.21}, False),
        ({25: 0.69}, True),  # 0.5, ..., 0.9
        ({16: 0.71, 25: 0.0}, False),  # it was there once
        ({25: math.nan}, False),  # no score at all: the ledger decides that
        ({13: 0.0}, False),  # four had said anything by then
    ]
    for curve, stops in cases:
        assert pruner.prune(study, _trial(curve, complete=False)) is stops, curve


def test_hyperband_in_seconds_lasts_as_long_as_the_first_trial_did() -> None:
    config = SchedulerConfig(kind="hyperband", on="seconds")
    assert isinstance(make_pruner(config, [], 5), optuna.pruners.NopPruner)
    first, later = _trial({30: 0.5}, 1), _trial({90: 0.5}, 0)
    first.datetime_complete, later.datetime_complete = sorted([first.datetime_complete, later.datetime_complete])
    for trials in ([first], [later, first], [first, later]):
        assert make_pruner(config, trials, 5)._max_resource == 30


def test_no_scheduler_lets_everything_go_on(tmp_path: Path) -> None:
    ledger = opened(search(scheduler="none"), tmp_path)
    assert _lengths(ledger, [*_curves(3), [math.nan] * 3]) == [EPOCHS] * 4
