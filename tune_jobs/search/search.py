"""The verb `search`: trials until they are out, then the study with the best of them as arms."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.errors import ConfigError
from ssl_core.feasibility import check_pretrain
from tune_jobs.ablate import Begun, Result, begin, complete, ray_at, terminable, tracking_uri
from tune_jobs.cluster import local_ray
from tune_jobs.locks import running
from tune_jobs.plan import pretrain_demand, pretrain_stage
from tune_jobs.room import here
from tune_jobs.search.config import SearchConfig
from tune_jobs.search.findings import at_a_glance
from tune_jobs.search.promotion import opened, search_folder
from tune_jobs.stage import Demand
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.waiting import ROOM_SECONDS, await_room
from tune_jobs.watch import duration

if TYPE_CHECKING:
    from tune_jobs.search.ledger import Ledger


@dataclass
class Searched:
    """What a search did and left, and the study that it ended in."""

    counts: Mapping[str, int]  # of all its trials, by state
    failures: Mapping[str, str]  # trial to its error
    trials_run: int  # in this call
    seconds: float  # of them, wall
    title: str
    header: list[str]  # of the trials worth a look in the terminal
    rows: list[list[str]]
    result: Result

    @property
    def failed(self) -> bool:
        return bool(self.failures) or self.result.failed

    @property
    def sentence(self) -> str:
        counts, done = self.counts, self.trials_run
        states = ", ".join(f"{counts[state]} {state}" for state in ("complete", "pruned", "failed"))
        return f"{done} trials run in {duration(self.seconds)}; of all: {states}"

    def as_json(self) -> dict[str, Any]:
        values = self.result.as_json()
        trials = {**self.counts, "run": self.trials_run, "seconds": round(self.seconds, 2)}
        return {**values, "trials": trials, "failures": {**self.failures, **values["failures"]}}


def search(study: Study, *, root: Path, address: str | None, command: str) -> Searched:
    """Go on with the study's search until its trials are out, then run the study with the best of them as arms.

    Raises InputError before anything has run; KeyboardInterrupt on Ctrl-C or SIGTERM, with all finished trials kept.
    """
    config = require_search(study)
    clock, store = time.monotonic(), Store(root)
    with running(study.study, store), terminable():
        begun = begin(study, store, address, command)
        _check_starts(begun)
        if address is None:  # what a cluster has is known once it is joined
            _demand(study, here().accelerators)
        ledger = opened(study, begun.plan, store, create=True)
        assert ledger is not None
        with contextlib.ExitStack() as stack:
            before, at = dict(ledger.counts), time.monotonic()
            if not ledger.finished:
                several = study.resources.workers > 1  # Tune cannot stop several workers without Ray's State API
                ray = ray_at(address) if address else (lambda: local_ray(dashboard=several))
                stack.enter_context(ray())
                _run(begun, ledger)
            seconds, counts = time.monotonic() - at, dict(ledger.counts)
            result = complete(begun, clock)
    failures = {f"trial {t.number}": t.error or "failed" for t in ledger.trials() if t.state == "failed"}
    run = sum(counts[state] - before[state] for state in ("complete", "pruned", "failed"))
    title = (
        f"{study.study}: validation {config.score.metric} of block {config.score.blocks[0]} at "
        f"{100 * config.score.fraction:g}% of the labels"
    )
    header, rows = at_a_glance(ledger, config)
    return Searched(counts, failures, run, seconds, title, header, rows, result)


def require_search(study: Study) -> SearchConfig:
    """The study's search; ConfigError where it has none."""
    if study.search is None:
        raise ConfigError(
            f"study {study.study} has no section `search`: name its space, objectives and score there "
            "(see the packaged study digits_search)"
        )
    return study.search


def _check_starts(begun: Begun) -> None:
    """ConfigError where what trials start from cannot be on this dataset; what to tell the user goes to stderr."""
    study, search = begun.study, begun.study.search
    assert search is not None
    from ssl_core.data.labels import label_subset

    dataset = begun.ready.dataset
    n_train = dataset.summary["n"]["train"]
    starts = [(f"loss {loss}", base) for loss, base in search.bases.items()]
    for what, arm in (*starts, *search.space.extremes(search.bases)):
        try:
            check_pretrain(arm, n_train, study.resources.workers, dataset.channels)
        except ConfigError as error:
            raise ConfigError(f"search.space: a trial with {what} cannot be: {error}") from None
    for seed in search.seeds:  # drawn as each trial of that seed will draw them: DataError where they cannot be
        label_subset(
            dataset.labels,
            dataset.splits,
            fraction=search.score.fraction,
            seed=seed,
            config=search.score.labels,
            groups=dataset.groups,
        )
    for _, _, notes in search.space.paper_starts(search.bases):
        for note in notes:
            print(f"note: {note}", file=sys.stderr)


def _run(begun: Begun, ledger: Ledger) -> None:
    """Run trials on the Ray that is joined until there are no more."""
    import ray

    from tune_jobs.search.run import capacity, run_trials
    from tune_jobs.search.tracking import follow_search
    from tune_jobs.search.trial import TrialSettings, run_trial
    from tune_jobs.search.watch import TrialWatch

    study, search = begun.study, begun.study.search
    assert search is not None
    _sweep(begun, ledger)

    def fitting() -> Demand:
        there = ray.cluster_resources()
        demand = _demand(study, there.get("GPU", 0.0))
        capacity(demand, there.get("CPU", 0.0), there.get("GPU", 0.0), search.concurrent)
        return demand

    demand = await_room(fitting, patience=ROOM_SECONDS if begun.address else 0.0)
    folder = search_folder(study, begun.store)
    settings = TrialSettings(
        root=str(begun.store.root),
        data=next(begun.plan.of_kind("data")).key,
        resources=study.resources,
        demand=demand,
        score=search.score,
        curves=folder / "curves",
        scheduler=search.scheduler,
        facts=dict(begun.facts),
    )

    def trainable(config: dict[str, Any]) -> None:
        from ray import tune

        run_trial(config, settings, tune.report)

    follower = follow_search(study, begun.plan, begun.store, ledger, uri=tracking_uri(study, begun.store))
    try:
        with TrialWatch(search, ledger, on_finished=follower.add) as watch:
            run_trials(
                ledger, trainable, demand=demand, concurrent=search.concurrent, folder=folder / ".tune", watcher=watch
            )
    except BaseException:
        follower.close(timeout=2)  # the next run catches up
        raise
    follower.close(timeout=30, settle=60)


def _sweep(begun: Begun, ledger: Ledger) -> None:
    """Remove checkpoints of stopped and failed trials that a killed run could not remove: nobody goes on from them."""
    search = begun.study.search
    assert search is not None
    data = next(begun.plan.of_kind("data")).key
    for trial in ledger.trials():
        if trial.state in ("pruned", "failed"):
            arm = replace(search.space.arm(trial.params, search.bases), seed=search.seeds[0])
            folder = begun.store.train_folder(pretrain_stage(arm, begun.study.resources, data))
            shutil.rmtree(folder, ignore_errors=True)


def _demand(study: Study, accelerators: float) -> Demand:
    """What a trial asks for, settled for a cluster that has so many accelerators."""
    assert study.search is not None
    demand = pretrain_demand(study.resources).on(accelerators)
    if "accelerator_seconds" in study.search.objectives and not demand.accelerators:
        raise ConfigError(
            "search.objectives: accelerator_seconds are 0 for every trial, as trials run without accelerators here; "
            "use seconds"
        )
    return demand
