"""A search in MLflow: one run for it, one below it for each trial, with the same names in all, so that they compare.

    search run                what is searched and how, the best so far, how many trials of each state
    └── trial run             its parameters; the score after each evaluated epoch, what its end measured

Trials' runs are written once, when they have ended: complete ones are FINISHED, pruned ones KILLED, failed ones FAILED.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssl_core.errors import IntermocoError
from tune_jobs.plan import Plan
from tune_jobs.schema import plain
from tune_jobs.search.config import MAXIMISED, SearchConfig
from tune_jobs.search.promotion import identity
from tune_jobs.stage import canonical
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.tracking import Follower, Synced
from tune_jobs.tracking_client import Unreached, connect, experiment, mask, reason
from tune_jobs.tracking_facts import VALUE_LENGTH, Point, allowed, finite, flatten
from tune_jobs.tracking_runs import Run, Runs, now

if TYPE_CHECKING:
    from datetime import datetime

    from tune_jobs.search.ledger import Ledger
    from tune_jobs.search.records import TrialRecord

#: MLflow's status of a trial that ended.
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
#: What a trial cost, and what its end measures besides.
COSTS = ("seconds", "accelerator_seconds", "peak_memory", "epochs")
MEASURED = ("score", "ece", "score_sd", "ece_sd", *COSTS)
_SEARCH = {"intermoco.kind": "search"}


def follow_search(study: Study, plan: Plan, store: Store, ledger: Ledger, *, uri: str) -> Follower[int]:
    """Who sends a search's trials to MLflow as they end, by their numbers; first those that have ended already."""
    follower = Follower[int](lambda: SearchWriter(study, plan, store, ledger, uri), uri, "trials")
    for trial in ledger.trials():
        if trial.state in STATUS:
            follower.add(trial.number)
    return follower


def sync_search(study: Study, plan: Plan, store: Store, ledger: Ledger, *, uri: str, arms: Mapping[int, str]) -> Synced:
    """Replay every trial that has ended into MLflow at `uri`; replaying twice changes nothing.

    `arms`: of the trials that are promoted, by number. Raises Unreached in one line, password hidden.
    """
    trials = ledger.trials()
    if not trials:
        return Synced(mask(uri), 0, 0)
    try:
        writer = SearchWriter(study, plan, store, ledger, uri)
        writer.renew()
        for trial in trials:
            if run := writer.trial(trial):
                writer.runs.tag(run, "intermoco.arm", arms.get(trial.number))
        writer.summarise(live=False)
    except IntermocoError:
        raise
    except Exception as error:  # MLflow, its database drivers and Optuna's raise many kinds
        raise Unreached(reason(error)) from error
    return Synced(mask(uri), writer.created, writer.already_there)


class SearchWriter:
    """One search's runs in one MLflow store. Its first trial has begun."""

    def __init__(self, study: Study, plan: Plan, store: Store, ledger: Ledger, uri: str) -> None:
        assert study.search is not None
        self.study, self.search, self.ledger = study, study.search, ledger
        client = connect(uri)
        self._records = {trial.number: trial for trial in ledger.trials()}
        first = self._records[min(self._records)].started
        # a search that was begun anew, or elsewhere, is another one, though its trials have the same numbers
        parts = {"study": study.study, **identity(study, plan), "begun": f"{first:%Y-%m-%d %H:%M:%S}" if first else ""}
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
        if number not in self._records or self._records[number].state not in STATUS:
            self._records = {trial.number: trial for trial in self.ledger.trials()}
        self.trial(self._records[number])

    def trial(self, trial: TrialRecord) -> Run | None:
        """Write a trial's run, if it is not there; None for a trial that has not ended, or was never trained."""
        if trial.state not in STATUS:
            return None
        tags = {"intermoco.kind": "trial", "intermoco.trial": str(trial.number)}
        parent = self._parent()
        if there := self.runs.find(tags):
            self.already_there += 1
            self.runs.place(there, parent)
            return there
        started, ended = _milliseconds(trial.started), _milliseconds(trial.ended)
        told = {**tags, **self._told(trial)}
        run = self.runs.create(f"trial {trial.number}", told, started, parent)
        self.runs.log(run, flatten(trial.params), _points(trial, started, ended))
        self.created += 1
        return self.runs.end(run, told, parent, STATUS[trial.state], ended)

    def renew(self) -> None:
        """Begin the search's own run anew where sampler, scheduler or starts have changed since it was written."""
        if there := self.runs.find(_SEARCH):
            self.runs.renew(there, _settings(self.search))

    def _told(self, trial: TrialRecord) -> dict[str, str]:
        tags = {"intermoco.study": self.study.study, "intermoco.state": trial.state}
        tags["intermoco.seeds"] = " ".join(map(str, self.search.seeds))
        if trial.start:
            tags["intermoco.start"] = trial.start
        if stages := trial.attrs.get("stages"):
            tags["intermoco.stages"] = " ".join(stages)
        if trial.error:
            tags["mlflow.note.content"] = trial.error[:VALUE_LENGTH]
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
        if complete and len(self.search.objectives) == 1:
            tags["intermoco.best_trial"] = str(self.ledger.best(1)[0].number)
        elif complete:
            tags["intermoco.pareto"] = " ".join(str(t.number) for t in complete if t.pareto)[:VALUE_LENGTH]
        status = "FINISHED" if self.ledger.finished else "RUNNING" if live else "KILLED"
        ended = max((_milliseconds(t.ended) for t in trials if t.ended), default=now())
        self.runs.grow(self._parent(), params=_settings(self.search), metrics=metrics, tags=tags, state=(status, ended))

    def _parent(self) -> str:
        """Id of the search's own run; made where it is not there."""
        if there := self.runs.find(_SEARCH):
            return there.id
        started = min((_milliseconds(t.started) for t in self.ledger.trials() if t.started), default=now())
        told = {**_SEARCH, "intermoco.study": self.study.study, "mlflow.note.content": self.study.question}
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
    if trial.state == "complete":
        measured |= {f"score_seed{seed}": score for seed, score in (trial.attrs.get("scores") or {}).items()}
    return points + [Point(allowed(name), finite(value), ended, last) for name, value in measured.items()]


def _milliseconds(at: datetime | None) -> int:
    return now() if at is None else round(1000 * at.timestamp())
