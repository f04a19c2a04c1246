"""Runs a plan: each stage the moment its inputs exist and its resources are free. Knows no Ray; a runner does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ssl_core.errors import StageError
from tune_jobs.durations import Durations, Sort, measured, sort_of
from tune_jobs.plan import Plan
from tune_jobs.room import Capacity, each, totals
from tune_jobs.schedule import Schedule
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store


@dataclass(frozen=True)
class Done:
    """A stage that ended, well or with an error."""

    stage: Stage
    error: BaseException | None = None


class Runner(Protocol):
    """Where stages run."""

    def capacity(self) -> Capacity: ...

    def submit(self, stage: Stage, nodes: Sequence[str]) -> None:
        """Start a stage whose inputs are finished, on these nodes if it can be; it publishes itself in the store."""

    def want(self, running: Iterable[Demand], ready: Iterable[Demand]) -> bool:
        """Ask for room for what runs and what could; whether more may come. Called often."""

    def wait(self, seconds: float) -> Iterable[Done]:
        """Stages that have ended since the last call; returns at the first one, at the latest after `seconds`."""

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        """Newest progress of running stages, by key."""


class Watcher(Protocol):
    """Who is told what happens."""

    def cached(self, stage: Stage) -> None: ...

    def started(self, stage: Stage) -> None: ...

    def finished(self, stage: Stage, seconds: float) -> None: ...

    def failed(self, stage: Stage, error: BaseException) -> None: ...

    def skipped(self, stage: Stage, cause: Stage) -> None: ...

    def tick(self, progress: Mapping[str, Mapping[str, Any]]) -> None: ...


@dataclass
class Outcome:
    """Keys of stages by what became of them."""

    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    failed: dict[str, BaseException] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)  # stage -> the failed stage it needed


def execute(plan: Plan, store: Store, runner: Runner, watcher: Watcher, *, poll_seconds: float = 0.25) -> Outcome:
    """Run every stage that is not finished. A failure skips its descendants and touches nothing else."""
    return _Execution(plan, store, runner, watcher).run(poll_seconds)


class _Execution:
    def __init__(self, plan: Plan, store: Store, runner: Runner, watcher: Watcher) -> None:
        self.stages = plan.by_key
        self.store, self.runner, self.watcher = store, runner, watcher
        self.outcome = Outcome()
        self.needed_by: dict[str, list[str]] = {key: [] for key in self.stages}
        self.missing: dict[str, set[str]] = {}  # unfinished stage -> its unfinished inputs
        self.schedule = Schedule({}, {}, Durations())

    def run(self, poll_seconds: float) -> Outcome:
        self._sort_out_finished()
        while self.schedule:
            self._start_what_fits()
            for done in self.runner.wait(poll_seconds):
                self._settle(done)
            self.watcher.tick(self.runner.progress())
        return self.outcome

    def _sort_out_finished(self) -> None:
        for key, stage in self.stages.items():
            if self.store.finished(stage):
                self.outcome.cached.append(key)
                self.watcher.cached(stage)
                continue
            # inputs precede the stages that need them, so what is not in `missing` by now is finished
            self.missing[key] = {i for i in stage.inputs.values() if i in self.missing}
            for needed in self.missing[key]:
                self.needed_by[needed].append(key)
        left = [self.stages[key] for key in self.missing]
        known = measured(self.store, {stage.kind for stage in left})
        self.schedule = Schedule(self.stages, urgency(left, known), known)
        for key, inputs in self.missing.items():
            if not inputs:
                self.schedule.add(key)

    def _start_what_fits(self) -> None:
        total = self.runner.capacity()
        for key in self.schedule.starting(total, time.monotonic()):
            self.runner.submit(self.stages[key], self.schedule.running[key].nodes)
            self.watcher.started(self.stages[key])
        running = [stage.demand for stage in self.schedule.running.values()]
        if self.runner.want(running, self.schedule.waiting) or running:
            return
        for key in self.schedule.hopeless():  # nothing runs, the whole cluster is free, and still none of these fits
            self._fail(key, StageError(no_room(self.stages[key], total)))

    def _settle(self, done: Done) -> None:
        key = done.stage.key
        seconds = self.schedule.end(key, time.monotonic())
        if done.error is None and not self.store.finished(done.stage):
            done = Done(done.stage, StageError(f"ended without leaving {self.store.path(done.stage)}"))
        if done.error is not None:
            self._fail(key, done.error)
            return
        self.schedule.known.add(sort_of(done.stage), seconds)
        self.outcome.executed.append(key)
        self.watcher.finished(done.stage, seconds)
        for follower in self.needed_by[key]:
            self.missing[follower].discard(key)
            if not self.missing[follower] and follower not in self.outcome.skipped:
                self.schedule.add(follower)

    def _fail(self, key: str, error: BaseException) -> None:
        self.outcome.failed[key] = error
        self.watcher.failed(self.stages[key], error)
        descendants = list(self.needed_by[key])
        for follower in descendants:
            if follower not in self.outcome.skipped:
                self.outcome.skipped[follower] = key
                self.watcher.skipped(self.stages[follower], self.stages[key])
                descendants.extend(self.needed_by[follower])


def no_room(stage: Stage, cluster: Capacity) -> str:
    """Why a cluster that runs nothing else cannot hold a stage."""
    cpus, accelerators = totals(stage.demand, cluster)
    what = f"needs {cpus:g} CPUs and {accelerators:g} accelerators, the cluster has "
    what += f"{cluster.cpus:g} and {cluster.accelerators:g}"
    if cpus > cluster.cpus or accelerators > cluster.accelerators:
        return what
    one = " CPUs and ".join(f"{n:g}" for n in each(stage.demand, cluster))
    return f"{what}, but no nodes with {one} accelerators free for each of {stage.demand.workers} workers"


def urgency(stages: Sequence[Stage], durations: Durations) -> dict[str, tuple[float, int]]:
    """Sort key of each stage: the longest path of work that waits for it, longest first, then the order given.

    Inputs precede the stages that need them.
    """
    seconds: dict[Sort, float] = {}
    behind: dict[str, float] = {}
    for stage in reversed(stages):
        sort = sort_of(stage)
        if sort not in seconds:
            seconds[sort] = durations.expected(sort)
        length = behind.get(stage.key, 0.0) + seconds[sort]
        behind[stage.key] = length
        for needed in stage.inputs.values():
            behind[needed] = max(behind.get(needed, 0.0), length)
    return {stage.key: (-behind[stage.key], index) for index, stage in enumerate(stages)}
