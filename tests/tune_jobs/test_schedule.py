"""Nothing idles that a ready stage could use, and none waits for ever: in simulated time, on random stages."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_jobs.durations import Durations, sort_of
from tune_jobs.room import Capacity, each, place
from tune_jobs.schedule import Schedule
from tune_jobs.stage import Demand, Stage

KINDS = ("data", "audit", "probe", "reuse", "ks")
HIGH = 1e-6


def stage(name: str, kind: str = "probe", *, workers: int = 1, cpus: float = 1.0, accelerators: float = 0.0) -> Stage:
    demand = Demand(workers=workers, cpus=cpus, accelerators=accelerators)
    return Stage(kind=kind, config={"name": name}, demand=demand)


class Simulation:
    """Runs ready stages in simulated time; `longer` times as long as the schedule expects, by kind."""

    def __init__(self, stages: list[Stage], seconds: dict[str, float], total: Capacity, longer: float = 1.0) -> None:
        self.known = Durations()
        for one in stages:
            self.known.add(sort_of(one), seconds[one.kind])
        self.stages = {one.key: one for one in stages}
        self.order = {one.key: (float(-i), i) for i, one in enumerate(reversed(stages))}
        self.schedule = Schedule(self.stages, self.order, self.known)
        self.total, self.longer, self.now = total, longer, 0.0
        self.started: dict[str, float] = {}
        self.ends: dict[str, float] = {}
        self.left = set(self.stages)
        for key in self.stages:
            self.schedule.add(key)

    def start(self) -> list[str]:
        keys = list(self.schedule.starting(self.total, self.now))
        for key in keys:
            self.started[key] = self.now
            self.ends[key] = self.now + self.longer * self.expected(key)
            self.left.discard(key)
        return keys

    def end_next(self) -> None:
        key = min(self.ends, key=lambda k: self.ends[k])
        self.now = self.ends.pop(key)
        self.schedule.end(key, self.now)

    def expected(self, key: str) -> float:
        return self.known.expected(sort_of(self.stages[key]))

    def used(self) -> dict[str, tuple[float, float]]:
        used = dict.fromkeys(self.total.by_node, (0.0, 0.0))
        for running in self.schedule.running.values():
            cpus, accelerators = each(running.demand, self.total)
            for name in running.nodes:
                used[name] = used[name][0] + cpus, used[name][1] + accelerators
        return used

    def needs(self, key: str) -> tuple[float, float]:
        demand = self.stages[key].demand
        return demand.workers * demand.cpus, demand.workers * (demand.accelerators or 0.0)

    def beside(self, key: str, running: Iterable[str]) -> bool:
        """Whether there is room on the only node for a stage beside running ones."""
        all_of_them = [self.needs(k) for k in (key, *running)]
        has = (self.total.cpus, self.total.accelerators)
        return all(sum(n[i] for n in all_of_them) <= has[i] + HIGH for i in range(2))

    def earliest(self, key: str, also: str | None = None) -> float:
        """When a stage that does not fit now could start, by expectation, with another one started now. The oracle."""
        ends = {k: max(self.now, self.started[k] + self.expected(k)) for k in self.schedule.running}
        if also:
            ends[also] = self.now + self.expected(also)
        return next(at for at in sorted(ends.values()) if self.beside(key, (k for k in ends if ends[k] > at)))


def demands(least_nodes: int, most_nodes: int) -> st.SearchStrategy[tuple[list[Stage], dict[str, float], Capacity]]:
    """Stages in the order of their urgency, what their kinds take, and nodes that hold each stage."""
    one = st.tuples(
        st.sampled_from(KINDS), st.integers(1, 4), st.integers(1, 3), st.sampled_from([0.0, 0.25, 0.5, 1.0])
    )
    seconds = st.fixed_dictionaries({kind: st.integers(1, 40).map(float) for kind in KINDS})
    nodes = st.lists(st.tuples(st.integers(3, 8), st.integers(1, 4)), min_size=least_nodes, max_size=most_nodes)

    def made(drawn: tuple[list[tuple[str, int, int, float]], dict[str, float], list[tuple[int, int]]]) -> (
        tuple[list[Stage], dict[str, float], Capacity]
    ):  # fmt: skip
        asked, took, has = drawn
        total = Capacity(
            sum(c for c, _ in has), sum(a for _, a in has), tuple((f"n{i}", float(c), float(a)) for i, (c, a) in
            enumerate(has)),
        )  # fmt: skip
        stages = [
            stage(f"s{i}", kind, workers=workers, cpus=cpus, accelerators=share)
            for i, (kind, workers, cpus, share) in enumerate(asked)
        ]
        return [s for s in stages if total.holds(s.demand)], took, total

    return st.tuples(st.lists(one, min_size=1, max_size=25), seconds, nodes).map(made)


@settings(max_examples=60, deadline=None)
@given(demands(1, 4), st.sampled_from([0.3, 1.0, 3.0]))
def test_every_stage_runs_and_no_node_is_promised_twice(
    drawn: tuple[list[Stage], dict[str, float], Capacity], longer: float
) -> None:
    stages, seconds, total = drawn
    run = Simulation(stages, seconds, total, longer)
    while run.schedule:
        run.start()
        assert run.ends, "nothing runs, and nothing is started"
        for name, (cpus, accelerators) in run.used().items():
            has = total.by_node[name]
            assert cpus <= has[0] + HIGH
            assert accelerators <= has[1] + HIGH
        run.end_next()
    assert len(run.started) == len(run.stages)


@settings(max_examples=60, deadline=None)
@given(demands(1, 1), st.sampled_from([0.3, 1.0, 3.0]))
def test_what_fits_and_delays_nobody_is_started(
    drawn: tuple[list[Stage], dict[str, float], Capacity], longer: float
) -> None:
    stages, seconds, total = drawn
    run = Simulation(stages, seconds, total, longer)
    promised: dict[str, float] = {}
    while run.schedule:
        run.start()
        waiting = sorted(run.left, key=lambda k: run.order[k])
        if waiting:
            first = waiting[0]
            at = run.earliest(first)
            assert not run.beside(first, run.schedule.running), "the most urgent fits, and is not started"
            promised.setdefault(first, at)
            for other in waiting[1:]:
                fits = run.beside(other, run.schedule.running)
                assert not (fits and run.earliest(first, also=other) <= at), "idle, though a ready stage delays nobody"
        run.end_next()
    if longer <= 1.0:
        for key, at in promised.items():
            assert run.started[key] <= at + HIGH, "started later than when it was the first to wait"


@pytest.mark.parametrize("longer", [1.0, 3.0])
def test_a_large_stage_is_not_starved_by_small_ones(longer: float) -> None:
    """Small stages that end one after the other leave one CPU at a time: never the four that the large one needs."""
    small = [stage(f"small {i}", KINDS[i % 4]) for i in range(100)]
    large = stage("large", "ks", workers=4)
    seconds = {"data": 3.0, "audit": 4.0, "probe": 5.0, "reuse": 7.0, "ks": 10.0}
    run = Simulation([*small[:4], large, *small[4:]], seconds, Capacity(4.0), longer)
    while large.key in run.left:
        run.start()
        run.end_next()
    assert run.started[large.key] <= longer * 7.0
    assert len(run.started) <= 4 + 3 + 1  # what fitted into the gaps, and itself


def test_short_stages_fill_the_gap_before_a_large_one_and_long_ones_do_not() -> None:
    long, large = stage("running", "reuse", cpus=3), stage("large", "ks", cpus=4)
    run = Simulation(
        [long, large, stage("slow", "data"), stage("quick", "audit")],
        {"reuse": 10.0, "ks": 5.0, "data": 11.0, "audit": 9.0},
        Capacity(4.0),
    )
    assert {run.stages[key].config["name"] for key in run.start()} == {"running", "quick"}


def test_a_worker_is_not_split_over_nodes() -> None:
    """Two CPUs are free, one on each of two nodes: a worker of two waits, and one of one CPU runs meanwhile."""
    nodes = Capacity(4.0, 0.0, (("a", 2.0, 0.0), ("b", 2.0, 0.0)))
    assert place(2, (1.0, 0.0), {"a": (1.0, 0.0), "b": (1.0, 0.0)}) == ("a", "b")
    assert place(1, (2.0, 0.0), {"a": (1.0, 0.0), "b": (1.0, 0.0)}) is None
    assert not nodes.holds(Demand(cpus=3))
    assert nodes.holds(Demand(cpus=2, workers=2))
    wide, short = stage("wide", "ks", cpus=2), stage("short", "audit")
    run = Simulation([wide, short], {"ks": 5.0, "audit": 1.0, "reuse": 9.0}, nodes)
    for node in "ab":
        busy = stage(node, "reuse")
        run.schedule.running[busy.key] = _running(busy, node)
    run.known.add(sort_of(stage("x", "reuse")), 9.0)
    assert [run.stages[key].config["name"] for key in run.start()] == ["short"]


def test_a_stage_whose_node_is_lost_comes_before_all_that_is_ready() -> None:
    both = Capacity(2.0, 0.0, (("a", 1.0, 0.0), ("b", 1.0, 0.0)))
    run = Simulation([stage(f"s{i}") for i in range(3)], {"probe": 5.0}, both)
    assert len(run.start()) == 2
    run.total = Capacity(1.0, 0.0, (("b", 1.0, 0.0),))
    (ended,) = (key for key, running in run.schedule.running.items() if running.nodes == ("b",))
    run.schedule.end(ended, now=5.0)
    assert run.start() == []  # Ray runs the lost node's stage again, on the CPU that has become free
    assert [running.nodes for running in run.schedule.running.values()] == [("b",)]


def test_a_stage_goes_where_its_inputs_are_and_elsewhere_rather_than_wait() -> None:
    both = Capacity(4.0, 0.0, (("a", 2.0, 0.0), ("b", 2.0, 0.0)))

    def reads(name: str, **inputs: str) -> Stage:
        return Stage(kind="probe", config={"name": name}, inputs=inputs)

    busy, features = stage("busy", cpus=2), stage("features")
    after = [reads(f"after {i}", features=features.key, data="d") for i in range(3)]
    other = reads("other", data="d")
    run = Simulation([busy, features, *after, other], {"probe": 5.0}, both)
    assert {run.stages[key].config["name"] for key in run.start()} == {"busy", "features", "after 0"}
    on = {run.stages[key].config["name"]: running.nodes for key, running in run.schedule.running.items()}
    assert on == {"busy": ("a",), "features": ("b",), "after 0": ("b",)}
    for name in ("busy", "features", "after 0"):
        run.schedule.end(next(k for k, s in run.stages.items() if s.config["name"] == name), now=5.0)
    run.start()
    on = {run.stages[key].config["name"]: running.nodes for key, running in run.schedule.running.items()}
    assert on == {"after 1": ("b",), "after 2": ("b",), "other": ("a",)}


def _running(stage: Stage, node: str):  # type: ignore[no-untyped-def]
    from tune_jobs.schedule import Running

    return Running(stage.demand, sort_of(stage), 0.0, (node,))
