"""A search in MLflow: one run for it, one below it for each trial, with the same names in all, so that they compare.

    search run                what is searched and how, the best so far, how many trials of each state
    └── trial run             its parameters; the score after each evaluated epoch, what its end measured

Trials' runs are written once, when they have ended: complete ones are FINISHED, pruned ones KILLED, failed ones FAILED.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tune_jobs.plan import Plan
from tune_jobs.schema import plain
from tune_jobs.search.config import MAXIMISED, SearchConfig
from tune_jobs.search.promotion import identity
from tune_jobs.stage import canonical
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.tracking import Follower, Synced, TrackingError
from tune_jobs.tracking_client import connect, experiment, mask, reason
from tune_jobs.tracking_facts import Point, allowed, finite, flatten
from tune_jobs.tracking_runs import Runs, now

if TYPE_CHECKING:
    from datetime import datetime

    from tune_jobs.search.ledger import Ledger
    from tune_jobs.search.records import TrialRecord

#: MLflow's status of a trial that ended.
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
#: What a trial cost, and what its end measures besides.
COSTS = ("seconds", "accelerator_seconds", "peak_memory", "epochs")
MEASURED = ("score", "ece", "score_sd", "ece_sd", *COSTS)


def follow_search(study: Study, plan: Plan, store: Store, ledger: Ledger, *, uri: str) -> Follower[int]:
    """Who sends a search's trials to MLflow as they end, by their numbers."""
    return Follower(lambda: SearchWriter(study, plan, store, ledger, uri), uri, "trials")


def sync_search(study: Study, plan: Plan, store: Store, ledger: Ledger, *, uri: str, arms: Mapping[int, str]) -> Synced:
    """Replay every trial that has ended into MLflow at `uri`; replaying twice changes nothing.

    `arms`: of the trials that were promoted, by number. Raises TrackingError in one line, password hidden.
    """
    try:
        writer = SearchWriter(study, plan, store, ledger, uri)
        for trial in ledger.trials():
            writer.trial(trial, arms.get(trial.number))
        writer.summarise(live=False)
    except Exception as error:  # MLflow, its database drivers and Optuna's raise many kinds
        raise TrackingError(reason(error)) from error
    return Synced(mask(uri), writer.created, writer.already_there)


class SearchWriter:
    """One search's runs in one MLflow store."""

    def __init__(self, study: Study, plan: Plan, store: Store, ledger: Ledger, uri: str) -> None:
        assert study.search is not None
        self.study, self.search, self.ledger = study, study.search, ledger
        client = connect(uri)
        parts = {"study": study.study, **identity(study, plan)}
        self.runs = Runs(
            client,
            experiment(client, study.tracking.experiment or study.study, uri, store.root),
            tag="intermoco.search_key",
            key=hashlib.sha256(canonical(parts).encode()).hexdigest()[:16],
            identity=("intermoco.kind", "intermoco.trial"),
            growing=("search",),
        )
        self.created = self.already_there = 0

    def write(self, number: int) -> None:
        """Write the run of the trial of this number."""
        self.trial(next(trial for trial in self.ledger.trials() if trial.number == number))

    def trial(self, trial: TrialRecord, arm: str | None = None) -> None:
        """Write a trial's run, if it has ended and is not there; say which arm it became."""
        if trial.state not in STATUS:
            return
        tags = {"intermoco.kind": "trial", "intermoco.trial": str(trial.number)}
        became = {} if arm is None else {"intermoco.arm": arm}
        if there := self.runs.find(tags):
            self.already_there += 1
            self.runs.place(there, self._parent())
            self.runs.tag(there, became)
            return
        started, ended = _milliseconds(trial.started), _milliseconds(trial.ended)
        told = {**tags, **became, **self._told(trial)}
        run = self.runs.create(f"trial {trial.number}", told, started, self._parent())
        self.runs.log(run, flatten(trial.params), list(_points(trial, started, ended)))
        self.runs.end(run, told, self._parent(), STATUS[trial.state], ended)
        self.created += 1

    def _told(self, trial: TrialRecord) -> dict[str, str]:
        tags = {"intermoco.study": self.study.study, "intermoco.state": trial.state}
        tags["intermoco.seeds"] = " ".join(map(str, self.search.seeds))
        if trial.start:
            tags["intermoco.start"] = trial.start
        if stages := trial.attrs.get("stages"):
            tags["intermoco.stages"] = " ".join(stages)
        if trial.error:
            tags["mlflow.note.content"] = trial.error
        return tags

    def summarise(self, *, live: bool) -> None:
        """Bring the search's own run up to what its trials say."""
        trials = self.ledger.trials()
        complete = [t for t in trials if t.state == "complete"]
        metrics = {f"trials_{state}": float(n) for state, n in self.ledger.counts.items() if state != "waiting"}
        for objective in self.search.objectives:
            if values := [t.values[objective] for t in complete]:
                metrics[f"best_{objective}"] = max(values) if objective in MAXIMISED else min(values)
        tags = {"intermoco.trials": f"{sum(t.state in STATUS for t in trials)} of {self.search.trials}"}
        if len(self.search.objectives) == 1 and complete:
            tags["intermoco.best_trial"] = str(self.ledger.best(1)[0].number)
        status = "FINISHED" if self.ledger.finished else "RUNNING" if live else "KILLED"
        ended = max((_milliseconds(t.ended) for t in trials if t.ended), default=now())
        self.runs.grow(self._parent(), params=_settings(self.search), metrics=metrics, tags=tags, state=(status, ended))

    def _parent(self) -> str:
        """Id of the search's own run; made where it is not there."""
        tags = {"intermoco.kind": "search"}
        if there := self.runs.find(tags):
            return there.id
        started = min((_milliseconds(t.started) for t in self.ledger.trials() if t.started), default=now())
        told = {**tags, "intermoco.study": self.study.study, "mlflow.note.content": self.study.question}
        return self.runs.create(f"search {self.study.study}", told, started, None)


def _settings(search: SearchConfig) -> dict[str, str]:
    """What is searched, as parameters. How many trials may grow, and is a tag."""
    said: dict[str, Any] = plain(search)
    for name in ("bases", "trials", "promote", "concurrent", "storage", "space"):
        del said[name]
    return flatten({"space": dict(plain(search.space.raw)), **said})


def _points(trial: TrialRecord, started: int, ended: int) -> list[Point]:
    """The score along the way at its epochs, spread evenly over the trial's time; what its end says at the last."""
    last = max(trial.curve, default=0)
    points = [
        Point("evaluated_score", finite(score), started + (ended - started) * n // len(trial.curve), epoch)
        for n, (epoch, score) in enumerate(trial.curve.items(), 1)
    ]
    names = MEASURED if trial.state == "complete" else COSTS  # what a stopped trial scored is no trial's result
    measured = {name: trial.attrs[name] for name in names if trial.attrs.get(name) is not None}
    for seed, score in (trial.attrs.get("scores") or {}).items():
        measured[f"score_seed{seed}"] = score
    return points + [Point(allowed(name), finite(value), ended, last) for name, value in measured.items()]


def _milliseconds(at: datetime | None) -> int:
    return now() if at is None else round(1000 * at.timestamp())
