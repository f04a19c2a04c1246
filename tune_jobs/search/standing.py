"""A search as its storage has it, to be read: what was tried, what is best, whether anything is left to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ssl_core.config import PretrainConfig
from tune_jobs.search import records
from tune_jobs.search.config import SearchConfig
from tune_jobs.search.drawing import Drawing
from tune_jobs.search.importance import importances
from tune_jobs.search.records import TrialRecord


@dataclass(frozen=True)
class Suggestion:
    """A trial to train: its active parameters, and the arm that they make (seed 0)."""

    number: int
    params: Mapping[str, Any]
    arm: PretrainConfig


class Standing:
    """Reads, and writes nothing."""

    def __init__(self, search: SearchConfig, study: Study) -> None:
        self.search = search
        self._study, self._storage = study, study._storage
        self._drawing = Drawing(search, study)

    @property
    def exhausted(self) -> bool:
        """Whether suggestions hold nothing new any more."""
        return self._drawing.exhausted(self._trials())

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: no trial runs, and there will be no other."""
        trials = self._trials()
        return all(t.state != TrialState.RUNNING for t in trials) and not self._open(trials)

    def _open(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether there will be another trial."""
        trained = sum(records.state_of(t) in ("complete", "pruned", "failed", "running") for t in trials)
        return trained < self.search.trials and not self._drawing.exhausted(trials)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state: complete, pruned, failed, duplicate, running, waiting."""
        trials = self._trials()
        found = Counter(records.state_of(t) for t in trials)
        waiting = sum(t.state == TrialState.WAITING for t in trials)
        return {**{state: found[state] for state in records.STATES}, "waiting": waiting}

    def trials(self) -> list[TrialRecord]:
        """Every trial that was begun, duplicates among them, by number."""
        trials = self._trials()
        front = frozenset(t.number for rank, t in records.ranked(trials, self.search.objectives) if rank == 0)
        made = (records.record(t, self.search.objectives, front) for t in trials)
        return [one for one in made if one is not None]

    def best(self, k: int) -> list[Suggestion]:
        """The k best completed trials: by value, or by Pareto rank and then score where objectives are several."""
        return [self._suggestion(t) for _, t in records.ranked(self._trials(), self.search.objectives)[:k]]

    def importances(self) -> tuple[list[dict[str, Any]], list[str]]:
        """See `tune_jobs.search.importance`."""
        return importances(self._trials(), self.search.objectives)

    def _suggestion(self, trial: FrozenTrial) -> Suggestion:
        params = self.search.space.suggest(optuna.trial.FixedTrial(trial.params))
        return Suggestion(trial.number, params, self.search.space.arm(params, self.search.bases))

    def _trials(self) -> list[FrozenTrial]:
        found: list[FrozenTrial] = self._storage.get_all_trials(self._study._study_id, deepcopy=False)
        return found

    def _trial(self, number: int) -> FrozenTrial:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
        return self._storage.get_trial(trial_id)
