"""Drawing the next trial: the sampler's suggestion, whole and not stored yet, and what makes it the same as another."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Any

from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ssl_core.errors import ConfigError
from tune_jobs.plan import as_config
from tune_jobs.search.config import SearchConfig
from tune_jobs.search.records import ABANDONED, ARM, DUPLICATE, ERROR, START
from tune_jobs.search.samplers import Combinations, check_sampler, make_sampler, seed_of
from tune_jobs.search.views import Snapshot
from tune_jobs.stage import canonical

#: Suggestions in a row that were there before: after so many they are drawn at random, after so many the space is out.
RANDOM_AFTER, EXHAUSTED_AFTER = 10, 200


class Drawing:
    """Draws trials of a study of Optuna's. What it draws is a function of the trials that are stored."""

    def __init__(self, search: SearchConfig, study: Study) -> None:
        check_sampler(search.sampler, search.objectives)
        self._search, self._study = search, study
        if search.sampler.kind == "grid":
            _ = self.combinations  # too many are an error now, not later

    @cached_property
    def combinations(self) -> Combinations:
        """Of the discrete parameters."""
        return Combinations(self._search.space, self._search.sampler.seed)

    def draw(self, trials: Sequence[FrozenTrial], fixed: Mapping[str, Any] | None = None) -> FrozenTrial:
        """A running trial with all of its parameters and, as attribute `arm`, the digest of its arm.

        `fixed`: values that are given; those that are missing are drawn at random. Where the parameters make no arm,
        the attribute `error` says why and the trial has failed.
        """
        while True:
            view = self._view(trials, fixed)
            values = self._search.space.suggest(view.study(self._sampler(trials, fixed)).ask())
            if not view.study_attrs:
                break
            # NSGA keeps a generation's parents with the study: stored, then drawn anew, so that a kill in between
            # changes nothing
            for key, value in view.study_attrs.items():
                self._study._storage.set_study_system_attr(self._study._study_id, key, value)
        trial = view.drawn
        assert trial is not None
        try:
            trial.user_attrs[ARM] = self.key(values)
        except ConfigError as error:
            trial.user_attrs[ERROR], trial.state = str(error), TrialState.FAIL
        return trial

    def key(self, values: Mapping[str, Any]) -> str:
        """Digest of the arm that these parameters make: equal for parameters that mean the same."""
        arm = self._search.space.arm(values, self._search.bases)
        return sha256(canonical(as_config(arm)).encode()).hexdigest()

    def exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether nothing is left to suggest."""
        if self._search.sampler.kind == "grid" and self.combinations.done(trials):
            return True
        return repeated(trials) >= EXHAUSTED_AFTER

    def _view(self, trials: Sequence[FrozenTrial], fixed: Mapping[str, Any] | None) -> Snapshot:
        study = self._study
        shown = [t if self._tells(t) else _without_curve(t) for t in trials]
        attrs = study._storage.get_study_system_attrs(study._study_id)
        return Snapshot(study.study_name, study._study_id, study.directions, shown, attrs, fixed)

    def _sampler(self, trials: Sequence[FrozenTrial], fixed: Mapping[str, Any] | None) -> BaseSampler:
        config = self._search.sampler
        index = sum(ABANDONED not in t.user_attrs for t in trials)
        if fixed is not None or repeated(trials) >= RANDOM_AFTER:
            config = replace(config, kind="random")
        if config.kind == "grid":
            return self.combinations.sampler(trials, seed_of(config.seed, index))
        return make_sampler(config, index, on_score=self._on_score)

    def _tells(self, trial: FrozenTrial) -> bool:
        """Whether a sampler may look at a trial's curve. It is of scores: nothing to compare other objectives with."""
        return trial.state != TrialState.PRUNED or (self._on_score and last_score(trial) is not None)

    @property
    def _on_score(self) -> bool:
        return tuple(self._search.objectives) == ("score",)


def repeated(trials: Sequence[FrozenTrial]) -> int:
    """How many of the last suggestions in a row were there before."""
    row = 0
    for trial in reversed(trials):
        if trial.state == TrialState.WAITING or ABANDONED in trial.user_attrs:
            continue
        if DUPLICATE not in trial.user_attrs or START in trial.user_attrs:
            break
        row += 1
    return row


def _without_curve(trial: FrozenTrial) -> FrozenTrial:
    trial = copy.copy(trial)
    trial.intermediate_values, trial.values = {}, None
    return trial


def last_score(trial: FrozenTrial) -> float | None:
    """Where the trial's curve ends; None where it has none, or ends in what is no number."""
    value = None if trial.last_step is None else trial.intermediate_values[trial.last_step]
    return None if value is None or math.isnan(value) else float(value)
