"""What finished stages took decides what is started first. The oracle is every other order there is."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tune_jobs import durations
from tune_jobs.durations import Durations, measured, sort_of
from tune_jobs.executor import urgency
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store


def stage(kind: str, name: str, *needs: Stage, workers: int = 1, **config: Any) -> Stage:
    inputs = {need.config["name"]: need.key for need in needs}
    return Stage(kind=kind, config={"name": name, **config}, inputs=inputs, demand=Demand(workers=workers))


def finished(store: Store, made: Stage, seconds: float, age: float = 0.0) -> None:
    folder = store.publish(made, store.begin(made), {"wall_seconds": seconds, "workers": made.demand.workers})
    os.utime(folder, (1e9 - age, 1e9 - age))


def makespan(order: Sequence[Stage], seconds: Mapping[str, float], machines: int) -> float:
    """Of a list schedule: whenever a machine is free, the first stage of the list whose inputs are finished starts."""
    free, ends, left = [0.0] * machines, dict[str, float](), list(order)
    while left:
        now = min(free)
        ready = [s for s in left if all(ends.get(i, now + 1) <= now for i in s.inputs.values())]
        if not ready:  # a machine idles until the next stage ends
            free[free.index(now)] = min(end for end in ends.values() if end > now)
            continue
        left.remove(ready[0])
        ends[ready[0].key] = now + seconds[ready[0].kind]
        free[free.index(now)] = ends[ready[0].key]
    return max(ends.values())


def test_measured_durations_find_the_shortest_schedule_where_weights_do_not(tmp_path: Path) -> None:
    """A pretraining weighs twenty probes, but here it takes 3 s and the chain of two probes behind it 10 s each."""
    seconds = {"pretrain": 3.0, "finetune": 2.0, "probe": 10.0}
    first = stage("probe", "first")
    stages = [stage("pretrain", "a"), stage("pretrain", "b"), stage("finetune", "c"), first, stage("probe", "d", first)]
    store = Store(tmp_path)
    for kind, took in seconds.items():
        finished(store, stage(kind, "before"), took)

    def of(order: Callable[[Stage], Any]) -> float:
        return makespan(sorted(stages, key=order), seconds, machines=2)

    best = min(makespan(order, seconds, machines=2) for order in itertools.permutations(stages))
    by_weight, by_seconds = urgency(stages, Durations()), urgency(stages, measured(store, seconds))
    assert of(lambda s: by_seconds[s.key]) == best == 20
    assert of(lambda s: by_weight[s.key]) == 23


def test_an_estimate_is_the_median_of_the_stages_most_like_it() -> None:
    known = Durations()

    def take(kind: str, seconds: Iterable[float], **config: Any) -> None:
        for taken in seconds:
            known.add(sort_of(stage(kind, "x", **config)), taken)

    def expected(kind: str, **config: Any) -> float:
        return known.expected(sort_of(stage(kind, "x", **config)))

    assert expected("pretrain") == durations.WEIGHT["pretrain"]
    take("finetune", [1, 90, 2], mode="full", fraction=0.01)
    take("finetune", [50, 60, 70], mode="full", fraction=1.0)
    assert expected("finetune", mode="full", fraction=0.01) == 2
    assert expected("finetune", mode="full", fraction=1.0) == 60
    assert expected("finetune", mode="full", fraction=1.0, workers=2) == 60  # not measured on two workers
    assert expected("finetune", mode="linear", fraction=1.0) == 60  # of all six
    take("finetune", [33], mode="full", fraction=1.0, workers=2)
    assert expected("finetune", mode="full", fraction=1.0, workers=2) == 33
    # of a kind that was never measured: the weights' ratio
    assert expected("pretrain") / expected("finetune") == pytest.approx(4)
    take("finetune", [float("nan"), float("inf")])
    assert expected("finetune", mode="full", fraction=0.01) == 2


def test_the_newest_manifests_are_read_and_no_more_than_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, probe = Store(tmp_path), sort_of(stage("probe", "x"))
    for age in range(durations.READ + 20):
        finished(store, stage("probe", f"old {age}"), seconds=500.0, age=1000 + age)
    for age in range(durations.READ):
        finished(store, stage("probe", f"new {age}"), seconds=7.0, age=age)
    finished(store, stage("ks", "other"), seconds=1.0)
    read = []
    whole = json.loads
    monkeypatch.setattr(json, "loads", lambda text: read.append(1) or whole(text))  # type: ignore[func-returns-value]
    assert measured(store, {"probe"}).expected(probe) == 7
    assert len(read) == durations.READ


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    store, probe = Store(tmp_path), sort_of(stage("probe", "x"))
    assert measured(store, {"probe"}).expected(probe) == 1  # there is no store yet
    finished(store, stage("probe", "whole"), 9.0)
    for number, text in enumerate(("", "[]", "{}", '{"kind": "probe", "config": 3, "wall_seconds": 1}', '{"kind": ')):
        folder = store.stages / f"probe-{number:016x}"
        folder.mkdir()
        (folder / "manifest.json").write_text(text)
    assert measured(store, {"probe"}).expected(probe) == 9
