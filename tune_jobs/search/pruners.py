"""Who stops a trial that does badly: Optuna's pruners over the score alone, whatever the objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tune_jobs.search.config import SchedulerConfig
from tune_jobs.search.views import Snapshot

#: Completed trials before the median prunes.
_MEDIAN_OF = 5


def make_pruner(config: SchedulerConfig, trials: Sequence[FrozenTrial], epochs: int) -> BasePruner:
    """The study's pruner. `epochs`: of the longest trial; in seconds, the first trial to complete says how long."""
    longest = epochs if config.on == "epochs" else _first_length(trials)
    match config.kind:
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=config.first, reduction_factor=config.reduction)
        case "hyperband" if longest is not None:
            return optuna.pruners.HyperbandPruner(
                min_resource=config.first, max_resource=longest, reduction_factor=config.reduction
            )
        case "median":
            return MedianSoFar(config.first)
        case _:
            return optuna.pruners.NopPruner()


def _first_length(trials: Sequence[FrozenTrial]) -> int | None:
    """Last step of the trial that completed first: the same from then on, whatever completes later."""
    done = [t for t in trials if t.state == TrialState.COMPLETE and t.last_step is not None]
    return min(done, key=lambda t: (t.datetime_complete, t.number)).last_step if done else None


class MedianSoFar(BasePruner):  # type: ignore[misc]
    """Stops a trial whose best score so far is below the median of the completed trials' best by then.

    Optuna's compares what was reported at the very same step, which seconds never are.
    """

    def __init__(self, first: int) -> None:
        self._first = first

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or step < self._first:
            return False
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [best for t in done if (best := _best_by(t, step)) is not None]
        own = _best_by(trial, step)
        return len(others) >= _MEDIAN_OF and own is not None and own < median(others)


def _best_by(trial: FrozenTrial, step: int) -> float | None:
    values = [value for at, value in trial.intermediate_values.items() if at <= step and not math.isnan(value)]
    return max(values, default=None)


def decide(
    pruner: BasePruner, name: str, study_id: int, trials: Sequence[FrozenTrial], trial: FrozenTrial
) -> tuple[bool, dict[str, Any]]:
    """Whether to stop the trial at its last step, and what the pruner notes about it (system attributes to store).

    A score that is no number stops the trial, unless there is no pruner.
    """
    if isinstance(pruner, optuna.pruners.NopPruner):
        return False, {}
    if math.isnan(trial.intermediate_values[trial.last_step]):
        return True, {}
    view = Snapshot(name, study_id, [StudyDirection.MAXIMIZE], trials, {})
    prune = bool(pruner.prune(view.study(pruner=pruner), trial))
    return prune, view.noted.get(trial._trial_id, {})
