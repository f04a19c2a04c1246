"""Stages as Ray's tasks."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ssl_core.errors import InputError, StageError
from tune_jobs.autoscaling import Wishes, bundles
from tune_jobs.executor import Done
from tune_jobs.failures import Kind, explained, kind, one_line
from tune_jobs.room import Capacity, Pair, totals
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import by_workers

#: Seconds for which what Ray said of the cluster, or of progress, is still good: asking costs more than a short stage.
FRESH = 0.5


class RayRunner:
    """Runs stages as Ray tasks. Needs Ray to be initialised.

    `most`: CPUs and accelerators that the cluster's autoscaler may be asked for, in all.
    `alone`: whether one worker pretrains in its stage's own process, as on a Ray of this machine alone, where no node
    is taken away with notice, or lost to the others while it still works.
    """

    def __init__(self, store: Store, facts: Mapping[str, Any], *, most: Pair = (0.0, 0.0), alone: bool = False) -> None:
        import ray

        self._ray = ray
        self.store, self.facts, self._alone = store, dict(facts), alone
        self._stages: dict[Any, Stage] = {}
        self._newest: dict[str, dict[str, Any]] = {}
        self._board = ray.remote(num_cpus=0)(_Board).remote()
        self._drained: Any = None
        self._drained_at = self._asked_at = -FRESH
        self._capacity, self._most = Capacity(0.0), most
        self._wishes = Wishes() if any(most) else None
        self._task = ray.remote(_run_stage)
        # a process that has used an accelerator keeps memory there, and would stay on it if it were given another next
        self._single_use_task = ray.remote(max_calls=1)(_run_stage)

    def capacity(self) -> Capacity:
        if time.monotonic() - self._asked_at >= FRESH:
            self._capacity, self._asked_at = _alive(self._ray.nodes(), self._most), time.monotonic()
        return self._capacity

    def want(self, running: Iterable[Demand], ready: Iterable[Demand]) -> bool:
        if self._wishes is None:
            return False
        running = list(running)  # first: what is asked for is what the cluster has in all, busy or not
        return self._wishes.ask(bundles(chain(running, ready), self._capacity), running=bool(running))

    def close(self) -> None:
        """Take back what was asked for."""
        if self._wishes:
            self._wishes.take_back()

    def submit(self, stage: Stage, nodes: Sequence[str] = ()) -> None:
        demand = stage.demand.on(self.capacity().may_have)
        alone = self._alone and stage.kind == "pretrain" and demand.workers == 1
        waits = by_workers(stage, demand) and not alone  # for Ray Train's workers, which hold the resources
        task = (self._single_use_task if demand.accelerators and not waits else self._task).options(
            name=stage.name,
            max_retries=demand.restarts,  # where its process or node is lost; an error of its own is not tried again
            num_cpus=0 if waits else demand.cpus,
            num_gpus=0 if waits else demand.accelerators,
            scheduling_strategy="DEFAULT" if waits or len(self.capacity().nodes) < 2 else _rather_on(nodes),
        )
        ref = task.remote(stage, str(self.store.root), demand, self.facts, Progress(self._board, stage.key), alone)
        self._stages[ref] = stage

    def wait(self, seconds: float) -> Iterable[Done]:
        if not self._stages:  # nodes are to come
            time.sleep(seconds)
            return []
        ready, others = self._ray.wait(list(self._stages), num_returns=1, timeout=seconds, fetch_local=False)
        if ready and others:  # all that have ended, so that all their places are filled at once
            ready += self._ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[0]
        return [Done(stage, self._error(ref, stage)) for ref in ready for stage in [self._stages.pop(ref)]]

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        """Asks the board without waiting for it: what it said to the last call's question is there by now."""
        if self._drained is not None and self._ray.wait([self._drained], timeout=0)[0]:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._newest.update(self._ray.get(self._drained))
            self._drained = None
        if self._drained is None and time.monotonic() - self._drained_at >= FRESH:
            self._drained, self._drained_at = self._board.drain.remote(), time.monotonic()
        return self._newest

    def cancel(self) -> None:
        """Stop what runs, at once: Ray Train's workers go with the task that owns them."""
        for ref in self._stages:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(ref, force=True)

    def _error(self, ref: Any, stage: Stage) -> BaseException | None:
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            cause: BaseException = error.cause if error.cause is not None else error
            cause.add_note(str(error))
            return cause
        except self._ray.exceptions.RayError as error:
            clear = explained(error, self.store.root)
            return _given_up(stage, error) if clear is error and kind(error) is Kind.LOST else clear
        return None


def _given_up(stage: Stage, error: BaseException) -> StageError:
    times, goes_on = stage.demand.restarts + 1, "last checkpoint" if stage.kind == "pretrain" else "start"
    return StageError(
        f"lost its process {times} time{'s' * (times > 1)}, and resources.restarts is {times - 1}; look at its node's "
        f"memory first; run again, it goes on from its {goes_on} ({one_line(error)})"
    )


def _rather_on(nodes: Sequence[str]) -> Any:
    """Ray's strategy for a task that should run on a node, but elsewhere where that one has no room.

    Without the last setting, soft affinity waits for a busy node as if it were hard, and others idle.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(nodes[0], soft=True, _spill_on_unavailable=True) if nodes else "DEFAULT"


def _alive(nodes: Iterable[Mapping[str, Any]], most: Pair) -> Capacity:
    """What the nodes that are alive have."""
    alive = [(node["NodeID"], node["Resources"]) for node in nodes if node["Alive"]]
    has = tuple((name, float(of.get("CPU", 0.0)), float(of.get("GPU", 0.0))) for name, of in alive)
    return Capacity(sum(cpus for _, cpus, _ in has), sum(accs for _, _, accs in has), has, *most)


@dataclass(frozen=True)
class Progress:
    """Sends a running stage's progress to the board, from whichever process runs it; waits for no answer."""

    board: Any
    key: str

    def __call__(self, values: Mapping[str, Any]) -> None:
        self.board.put.remote(self.key, dict(values))


class _Board:
    """An actor that keeps each stage's newest progress until the driver fetches it."""

    def __init__(self) -> None:
        self._newest: dict[str, dict[str, Any]] = {}

    def put(self, key: str, values: dict[str, Any]) -> None:
        self._newest[key] = values

    def drain(self) -> dict[str, dict[str, Any]]:
        newest, self._newest = self._newest, {}
        return newest


def _run_stage(
    stage: Stage, root: str, demand: Demand, facts: Mapping[str, Any], report: Progress, alone: bool
) -> None:
    from tune_jobs.alone import pretrain_alone
    from tune_jobs.work import perform

    perform(stage, Store(root), demand, facts, report, do=pretrain_alone if alone else None)


def check_fits(stages: Iterable[Stage], capacity: Capacity) -> None:
    """InputError for the first stage that even the idle cluster has no room for."""
    room = functools.cache(capacity.holds)
    for stage in stages:
        demand = stage.demand
        if room(demand):
            continue
        workers = "resources.workers" if stage.kind == "pretrain" else "resources.downstream_workers"
        cpus, accelerators = totals(demand, capacity)
        grown = ""
        if capacity.most_cpus or capacity.most_accelerators:
            grown = f" and may grow to {capacity.most_cpus:g} and {capacity.most_accelerators:g} (resources.most_*)"
        there = len(capacity.by_node)
        raise InputError(
            f"{stage.name} needs {demand.workers} workers with {cpus:g} CPUs and {accelerators:g} "
            f"accelerators in all, each worker whole on a node; the cluster has {capacity.cpus:g} and "
            f"{capacity.accelerators:g} on {there} node{'s' * (there > 1)}{grown}; "
            f"lower {workers}, resources.cpus or resources.accelerators"
        )
