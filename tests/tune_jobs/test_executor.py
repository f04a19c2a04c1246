"""The executor on toy stages that really write to a real store, in threads; on Ray see test_study_on_ray.py."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_jobs.autoscaling import bundles
from tune_jobs.executor import Done, Outcome, execute
from tune_jobs.plan import Plan
from tune_jobs.room import Capacity
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store


def stage(name: str, *needs: Stage, kind: str = "probe", cpus: float = 1.0, workers: int = 1) -> Stage:
    return Stage(
        kind=kind,
        config={"name": name},
        inputs={n.config["name"]: n.key for n in needs},
        labels={"arm": name},
        demand=Demand(cpus=cpus, workers=workers),
    )


class ThreadRunner:
    """Runs each stage in a thread: checks its inputs, takes a moment, publishes, or fails if it is told to."""

    def __init__(
        self, store: Store, cpus: float = 2.0, failing: Iterable[str] = (), silent: Iterable[str] = ()
    ) -> None:
        self.store, self.cpus = store, cpus
        self.failing, self.silent = set(failing), set(silent)
        self.ended: queue.Queue[Done] = queue.Queue()
        self.order: list[str] = []
        self.load, self.peak, self.lock = 0.0, 0.0, threading.Lock()

    def capacity(self) -> Capacity:
        return Capacity(self.cpus)

    def submit(self, stage: Stage, nodes: Sequence[str]) -> None:
        self.order.append(stage.config["name"])
        threading.Thread(target=self._run, args=(stage,)).start()

    def _run(self, stage: Stage) -> None:
        need = stage.demand.cpus * stage.demand.workers
        with self.lock:
            self.load += need
            self.peak = max(self.peak, self.load)
        try:
            for key in stage.inputs.values():
                self.store.find("probe", key)
            time.sleep(0.01)
            name = stage.config["name"]
            if name in self.failing:
                raise RuntimeError(f"{name} broke")
            if name not in self.silent:
                self.store.publish(stage, self.store.begin(stage), {})
            done = Done(stage)
        except Exception as error:
            done = Done(stage, error)
        with self.lock:
            self.load -= need
        self.ended.put(done)

    def want(self, running: Iterable[Demand], ready: Iterable[Demand]) -> bool:
        return False

    def wait(self, seconds: float) -> Iterable[Done]:
        try:
            yield self.ended.get(timeout=seconds)
        except queue.Empty:
            return

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return {}


class Log:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def cached(self, stage: Stage) -> None:
        self.lines.append(f"cached {stage.config['name']}")

    def started(self, stage: Stage) -> None:
        self.lines.append(f"started {stage.config['name']}")

    def finished(self, stage: Stage, seconds: float) -> None:
        self.lines.append(f"finished {stage.config['name']}")

    def failed(self, stage: Stage, error: BaseException) -> None:
        self.lines.append(f"failed {stage.config['name']}: {error}")

    def skipped(self, stage: Stage, cause: Stage) -> None:
        self.lines.append(f"skipped {stage.config['name']} for {cause.config['name']}")

    def tick(self, progress: Mapping[str, Mapping[str, Any]]) -> None:
        pass


def run(plan: Plan, runner: ThreadRunner) -> tuple[Outcome, list[str]]:
    log = Log()
    return execute(plan, runner.store, runner, log, poll_seconds=0.05), log.lines


def diamond() -> tuple[Stage, Stage, Stage, Stage]:
    a = stage("a")
    b, c = stage("b", a), stage("c", a)
    return a, b, c, stage("d", b, c)


def test_every_stage_runs_once_after_its_inputs(tmp_path: Path) -> None:
    a, b, c, d = diamond()
    runner = ThreadRunner(Store(tmp_path))
    outcome, lines = run(Plan((a, b, c, d)), runner)
    assert sorted(runner.order) == ["a", "b", "c", "d"]
    assert runner.order[0] == "a"
    assert runner.order[-1] == "d"
    assert set(outcome.executed) == {s.key for s in (a, b, c, d)}
    assert lines[-1] == "finished d"


def test_a_second_run_executes_nothing(tmp_path: Path) -> None:
    plan = Plan(diamond())
    run(plan, ThreadRunner(Store(tmp_path)))
    again = ThreadRunner(Store(tmp_path))
    outcome, lines = run(plan, again)
    assert again.order == []
    assert len(outcome.cached) == 4
    assert lines == ["cached a", "cached b", "cached c", "cached d"]


def test_a_failure_skips_its_descendants_by_name_and_nothing_else(tmp_path: Path) -> None:
    a, b, c, d = diamond()
    other, after = stage("other"), None
    after = stage("after", other)
    leaf = stage("leaf", d)
    outcome, lines = run(Plan((a, other, b, c, d, after, leaf)), ThreadRunner(Store(tmp_path), failing=["b"]))
    assert [str(e) for e in outcome.failed.values()] == ["b broke"]
    assert outcome.skipped == {d.key: b.key, leaf.key: b.key}
    assert {"finished c", "finished after", "skipped d for b", "skipped leaf for b"} <= set(lines)
    mended = ThreadRunner(Store(tmp_path))
    outcome, _ = run(Plan((a, other, b, c, d, after, leaf)), mended)
    assert mended.order == ["b", "d", "leaf"]


def test_a_stage_that_leaves_nothing_has_failed(tmp_path: Path) -> None:
    a, b, *_ = diamond()
    outcome, _ = run(Plan((a, b)), ThreadRunner(Store(tmp_path), silent=["a"]))
    assert "without leaving" in str(outcome.failed[a.key])
    assert b.key in outcome.skipped


def test_resources_are_never_promised_twice(tmp_path: Path) -> None:
    stages = tuple(stage(f"s{i}", cpus=1 + i % 3) for i in range(12))
    runner = ThreadRunner(Store(tmp_path), cpus=4)
    outcome, _ = run(Plan(stages), runner)
    assert len(outcome.executed) == 12
    assert 3 <= runner.peak <= 4


def test_what_the_cluster_can_never_hold_fails_instead_of_waiting(tmp_path: Path) -> None:
    big, small = stage("big", cpus=2, workers=4), stage("small")
    outcome, _ = run(Plan((big, small)), ThreadRunner(Store(tmp_path), cpus=4))
    assert "needs 8 CPUs" in str(outcome.failed[big.key])
    assert outcome.executed == [small.key]


def test_the_longest_path_goes_first(tmp_path: Path) -> None:
    lone = stage("lone")
    head = stage("head", kind="probe")
    chain = [head]
    for i in range(3):
        chain.append(stage(f"chain{i}", chain[-1]))
    runner = ThreadRunner(Store(tmp_path), cpus=1)
    run(Plan((lone, *chain)), runner)
    assert runner.order[0] == "head"


def test_equal_stages_of_two_arms_run_once(tmp_path: Path) -> None:
    a = stage("a")
    twin = Stage(kind="probe", config={"name": "a"}, labels={"arm": "twin"})
    runner = ThreadRunner(Store(tmp_path))
    outcome, _ = run(Plan((a, twin, stage("b", twin))), runner)
    assert runner.order == ["a", "b"]
    assert len(outcome.executed) == 2


def test_a_wide_plan_is_settled_quickly(tmp_path: Path) -> None:
    store, stages, last, layers = Store(tmp_path), [], stage("root"), 50
    stages.append(last)
    for i in range(layers):
        layer = [stage(f"{i}.{j}", last) for j in range(20)]
        stages += layer
        last = layer[0]
    run(Plan(tuple(stages)), ThreadRunner(store, cpus=8))
    began = time.monotonic()
    outcome, _ = run(Plan(tuple(stages)), ThreadRunner(store))
    assert len(outcome.cached) == 1 + 20 * layers
    assert time.monotonic() - began < 5


class Growing(ThreadRunner):
    """A cluster of one CPU that grows to what it is asked for, once it has been asked three times."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, cpus=1)
        self.asked: list[list[dict[str, float]]] = []

    def capacity(self) -> Capacity:
        return Capacity(self.cpus, most_cpus=4)

    def want(self, running: Iterable[Demand], ready: Iterable[Demand]) -> bool:
        self.asked.append(bundles([*running, *ready], self.capacity()))
        if len(self.asked) >= 3:
            self.cpus = max(self.cpus, len(self.asked[-1]))
        return True


def test_a_stage_waits_for_nodes_that_may_come(tmp_path: Path) -> None:
    runner, stages = Growing(Store(tmp_path)), [stage(f"s{i}") for i in range(4)]
    needs_all = stage("large", *stages, workers=4)
    outcome, _ = run(Plan((*stages, needs_all)), runner)
    assert len(outcome.executed) == 5
    assert runner.asked[0] == [{"CPU": 1.0}] * 4
    assert runner.peak == 4


def test_no_more_is_asked_for_than_the_study_allows() -> None:
    cluster = Capacity(1.0, 0.0, most_cpus=8.0, most_accelerators=2.0)
    auto, plain = Demand(accelerators=None, workers=2), Demand(cpus=2)
    assert bundles([auto, plain, plain, plain], cluster) == [{"CPU": 1.0, "GPU": 1.0}] * 2 + [{"CPU": 2.0}] * 3
    assert bundles([auto, auto, plain], cluster) == [{"CPU": 1.0, "GPU": 1.0}] * 2
    assert bundles([Demand(cpus=9)], cluster) == []
    assert cluster.holds(auto)
    assert not cluster.holds(Demand(cpus=9))
    assert not cluster.holds(Demand(accelerators=3.0))
