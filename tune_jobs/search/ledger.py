"""A search's ledger: what was tried, what it gave, what comes next. Optuna's storage is all that it remembers.

    ledger = Ledger.open(search, url=None, folder=root / "digits" / "search", name="digits", identity={"data": key})
    while trial := ledger.next():
        ledger.complete(trial.number, {"score": train(trial.arm), ...})

Each suggestion, each decision to prune and each end is one write, so a kill leaves a trial running or ended, never half
of it. Opened again, the ledger first hands out the trials that were running.
"""

from __future__ import annotations

import copy
import json
import math
import threading
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tune_jobs.search import records, storage
from tune_jobs.search.config import SearchConfig
from tune_jobs.search.drawing import last_score
from tune_jobs.search.pruners import decide, make_pruner
from tune_jobs.search.records import ABANDONED, ARM, DUPLICATE, ERROR, START, TrialRecord
from tune_jobs.search.standing import Standing, Suggestion

__all__ = ["Ledger", "Suggestion", "TrialRecord"]

#: System attribute of a trial: what was decided at its last step.
_DECIDED = "decided"


class Ledger(Standing):
    """Hands out trials and takes what they gave. For several threads of one process, and one process at a time."""

    def __init__(self, search: SearchConfig, study: Study, *, resume: bool = False) -> None:
        super().__init__(search, study)
        self._lock = threading.RLock()
        self._running = deque(t.number for t in self._trials() if resume and t.state == TrialState.RUNNING)
        self._arms: dict[str, int] = {}  # digest of an arm -> the first trial of it
        for trial in self._trials():
            self._note(trial)

    @classmethod
    def open(
        cls,
        search: SearchConfig,
        *,
        url: str | None,
        folder: Path,
        name: str,
        identity: Mapping[str, str],
        resume: bool = True,
    ) -> Ledger:
        """Create the search of this name, or go on with it.

        url: of Optuna's storage; None: SQLite in `folder`. identity: digest of each part that makes it this search and
        no other. resume: trials that were running are handed out again. Raises ConfigError for a storage that is out
        of reach or holds another search, and for a sampler that cannot sample this one.
        """
        where = storage.storage_url(url, folder)
        with storage.in_words(where):
            study = storage.create(where, name, identity, search.objectives)
        ledger = cls(search, study, resume=resume)
        ledger._enqueue_starts()
        return ledger

    @classmethod
    def look(
        cls, search: SearchConfig, *, url: str | None, folder: Path, name: str, identity: Mapping[str, str]
    ) -> Ledger | None:
        """The search as it stands, to be read alone; None where there is none. Raises as `open` does."""
        where = storage.storage_url(url, folder)
        with storage.in_words(where):
            study = storage.find(where, name, identity, search.objectives)
        return None if study is None else cls(search, study)

    # handing out

    def next(self) -> Suggestion | None:
        """The next trial to train: one that was running, one that waits, or a new one.

        None: as many as the study asks for were trained or are running, or the space is exhausted.
        """
        with self._lock:
            while self._running:
                trial = self._trial(self._running.popleft())
                if ARM in trial.user_attrs:
                    return self._suggestion(trial)
                self._end(trial, TrialState.FAIL, {ABANDONED: True})  # not ours: somebody else's `study.ask`
            while self._open(trials := self._trials()):
                waiting = next((t for t in trials if t.state == TrialState.WAITING), None)
                trial = self._add(self._drawing.draw(trials)) if waiting is None else self._begin(waiting)
                if trial.state == TrialState.RUNNING:
                    return self._suggestion(trial)
            return None

    def _add(self, trial: FrozenTrial) -> FrozenTrial:
        """Store a drawn trial, all of it at once; one whose arm was there before has failed."""
        old = self._arms.get(trial.user_attrs.get(ARM, ""))
        if old is not None and trial.state == TrialState.RUNNING:
            trial.user_attrs[DUPLICATE], trial.state = old, TrialState.FAIL
        if trial.state.is_finished():
            trial.datetime_complete = datetime.now()
        trial_id = self._storage.create_new_trial(self._study._study_id, trial)
        stored = next(t for t in reversed(self._trials()) if t._trial_id == trial_id)
        self._note(stored)
        return stored

    def _begin(self, trial: FrozenTrial) -> FrozenTrial:
        """A waiting trial runs, or has failed where its arm was there before, or where it has none."""
        if ARM not in trial.user_attrs:  # enqueued by somebody else, through Optuna
            drawn = self._drawing.draw(self._trials(), trial.system_attrs.get("fixed_params", {}))
            for name, distribution in drawn.distributions.items():
                value = distribution.to_internal_repr(drawn.params[name])
                self._storage.set_trial_param(trial._trial_id, name, value, distribution)
            for key, value in drawn.user_attrs.items():
                self._storage.set_trial_user_attr(trial._trial_id, key, value)
            trial = self._trial(trial.number)
        old = self._arms.get(trial.user_attrs.get(ARM, ""))
        if old is not None:
            self._end(trial, TrialState.FAIL, {DUPLICATE: old})
        elif ARM in trial.user_attrs:
            self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        else:
            self._end(trial, TrialState.FAIL)
        stored = self._trial(trial.number)
        self._note(stored)
        return stored

    def _enqueue_starts(self) -> None:
        """The paper's settings, then the study's own starts; those that are there already stay as they are."""
        space, bases = self.search.space, self.search.bases
        starts = [(name, values) for name, values, _ in space.paper_starts(bases)]
        starts += [(f"start_{i}", space.complete(given, bases)) for i, given in enumerate(self.search.warm_starts, 1)]
        there = {t.user_attrs.get(START) for t in self._trials()}
        for name, values in starts:
            if name in there:
                continue
            trial = self._drawing.draw(self._trials(), values)
            trial.user_attrs[START] = name
            trial.state, trial.datetime_start = TrialState.WAITING, None
            self._add(trial)

    def _note(self, trial: FrozenTrial) -> None:
        if ARM in trial.user_attrs and records.state_of(trial) not in (None, "duplicate"):
            self._arms.setdefault(trial.user_attrs[ARM], trial.number)

    # taking back

    def report(self, number: int, step: int, score: float, outcome: Mapping[str, Any]) -> bool:
        """Whether the trial is to stop after this evaluation; it then is pruned already, with `outcome`.

        A step that was reported before is not stored again and gives the decision that it gave.
        """
        with self._lock:
            trials = self._trials()
            trial = next(t for t in reversed(trials) if t.number == number)
            values = trial.intermediate_values
            if trial.state != TrialState.RUNNING or (values and step < max(values)):
                return bool(trial.state == TrialState.PRUNED)
            if step not in values:
                self._storage.set_trial_intermediate_value(trial._trial_id, step, float(score))
            if self.search.scheduler.kind == "none":
                return False
            # Decided once and stored as one, before anything that follows from it: a kill in between cannot make the
            # pruner count what it noted itself.
            made = trial.system_attrs.get(_DECIDED, {})
            if made.get("step") != step:
                trial = copy.copy(trial)
                trial.intermediate_values = {step: float(score), **values}
                made = self._decide(trials, trial, step)
                self._storage.set_trial_system_attr(trial._trial_id, _DECIDED, made)
            for key, value in made["noted"].items():
                self._storage.set_trial_system_attr(trial._trial_id, key, value)
            if made["prune"]:
                self._end(trial, TrialState.PRUNED, outcome)
            return bool(made["prune"])

    def _decide(self, trials: list[FrozenTrial], trial: FrozenTrial, step: int) -> dict[str, Any]:
        pruner = make_pruner(self.search.scheduler, trials, max(b.epochs for b in self.search.bases.values()))
        prune, noted = decide(pruner, self._study.study_name, self._study._study_id, trials, trial)
        # the paper's settings are what all others are compared with, so they run to their ends
        if str(trial.user_attrs.get(START, "")).startswith("paper_"):
            prune = False
        # the last epoch of the only seed: nothing is left to spare
        whole = self.search.scheduler.on == "epochs" and len(self.search.seeds) == 1
        if prune and whole and step >= self._suggestion(trial).arm.epochs:
            prune = False
        return {"step": step, "prune": prune, "noted": noted}

    def complete(self, number: int, outcome: Mapping[str, Any]) -> None:
        """The trial ran to its end. Without a finite number for each objective it has failed.

        A trial that has ended is left as it is.
        """
        with self._lock:
            trial = self._trial(number)
            values = [outcome.get(objective) for objective in self.search.objectives]
            numbers = [float(v) for v in values if v is not None and math.isfinite(v)]
            if len(numbers) == len(values):
                self._end(trial, TrialState.COMPLETE, outcome, numbers)
                return
            said = ", ".join(f"{o} {v}" for o, v in zip(self.search.objectives, values, strict=True))
            self._end(trial, TrialState.FAIL, {**outcome, ERROR: f"an objective is no finite number: {said}"})

    def fail(self, number: int, error: str) -> None:
        """The trial went wrong. One that has ended is left as it is."""
        with self._lock:
            self._end(self._trial(number), TrialState.FAIL, {ERROR: error})

    def _end(
        self,
        trial: FrozenTrial,
        state: TrialState,
        attrs: Mapping[str, Any] | None = None,
        values: list[float] | None = None,
    ) -> None:
        """Attributes first: once the trial has its state it is finished, for Optuna and for the next run."""
        if trial.state.is_finished():
            return
        for key, value in _plain(attrs or {}).items():
            self._storage.set_trial_user_attr(trial._trial_id, key, value)
        if state == TrialState.PRUNED and tuple(self.search.objectives) == ("score",):
            last = last_score(trial)  # as Optuna's `tell` does
            values = None if last is None else [last]
        self._storage.set_trial_state_values(trial._trial_id, state, values)


def _plain(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it, numpy's numbers made Python's."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(outcome), default=float))
    plain.pop("event", None)
    return plain
