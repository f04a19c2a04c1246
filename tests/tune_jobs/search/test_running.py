from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from marked_search import BASE, line_search

from ssl_core.errors import InputError, StageError
from tune_jobs.plan import as_config
from tune_jobs.search.config import SchedulerConfig
from tune_jobs.search.run import capacity, resources
from tune_jobs.search.running import FAILURES, RESTARTS, Running
from tune_jobs.stage import Demand


@dataclass
class Told:
    """A ledger with so many suggestions that keeps what it is told; prunes at the steps it is given."""

    left: int = 10
    prunes: dict[int, int] = field(default_factory=dict)  # trial -> step
    search: Any = field(default_factory=line_search)
    ends: list[tuple[int, str]] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)
    number: int = -1

    def next(self) -> Any:
        if self.left == 0:
            return None
        self.left, self.number = self.left - 1, self.number + 1
        return SimpleNamespace(number=self.number, params={"learning_rate": 0.1}, arm=BASE)

    def report(self, number: int, step: int, score: float, outcome: Any) -> bool:
        self.steps.append((number, step))
        if self.prunes.get(number) != step:
            return False
        self.ends.append((number, "pruned"))
        self.outcome = dict(outcome)
        return True

    def complete(self, number: int, outcome: Any) -> None:
        self.ends.append((number, "complete"))
        self.outcome = dict(outcome)

    def fail(self, number: int, error: str) -> None:
        self.ends.append((number, error))


@dataclass
class Seen:
    """A watcher that keeps what it is told."""

    events: list[tuple[Any, ...]] = field(default_factory=list)

    def started(self, number: int, params: Any) -> None:
        self.events.append(("started", number))

    def evaluated(self, number: int, step: int, score: float) -> None:
        self.events.append(("evaluated", number, step))

    def finished(self, number: int, state: str, outcome: Any) -> None:
        self.events.append((state, number))


EVALUATION = {
    "event": "evaluation",
    "step": 3,
    "score": 0.5,
    "ece": 0.1,
    "seconds": 7.9,
    "accelerator_seconds": 0.0,
    "pid": 1,
}
END = {
    "event": "end", "score": 0.5, "ece": 0.1, "seconds": 8.0, "accelerator_seconds": 0.0, "peak_memory": 5,
    "score_sd": 0.01, "ece_sd": 0.0, "scores/0": 0.4, "scores/7": 0.6, "epochs": 12, "stages": ["a", "b"], "cached": 1,
    "hostname": "here", "done": False,
}  # fmt: skip


def running(ledger: Told, concurrent: int = 2) -> tuple[Running, Seen]:
    seen = Seen()
    return Running(ledger, seen, concurrent), seen


def test_a_suggestion_is_plain_data_and_no_more_are_asked_for_than_run_at_a_time() -> None:
    trials, seen = running(Told())
    assert trials.suggest("a") == {"number": 0, "arm": as_config(BASE), "seeds": [0]}
    assert trials.suggest("b") is not None
    assert trials.suggest("c") is None
    trials.reported("a", END)
    assert trials.suggest("c") is None, "told how it ended, but its process is not free yet"
    trials.ended("a", lost=False)
    assert trials.suggest("c") is not None
    assert seen.events == [("started", 0), ("started", 1), ("complete", 0), ("started", 2)]


def test_a_ledger_that_is_dry_is_asked_again_when_a_trial_has_ended() -> None:
    ledger = Told(left=2)
    trials, _ = running(ledger, concurrent=3)
    trials.suggest("a")
    trials.suggest("b")
    assert trials.suggest("c") is None
    ledger.left = 1
    assert trials.suggest("c") is None, "asked at each of Tune's steps it would cost a look into the storage"
    trials.reported("a", {"event": "failed", "error": "no"})
    trials.ended("a", lost=False)
    assert trials.suggest("c") is not None


def test_the_end_reaches_the_ledger_as_it_was_reported_without_what_tune_adds() -> None:
    ledger = Told()
    trials, _ = running(ledger)
    trials.suggest("a")
    assert trials.reported("a", END) is False, "a trial that is done returns by itself"
    kept = {k: v for k, v in END.items() if k not in ("event", "hostname", "done", "scores/0", "scores/7")}
    assert ledger.outcome == {**kept, "scores": {0: 0.4, 7: 0.6}}


def test_a_pruned_trial_is_stopped_with_what_it_cost() -> None:
    ledger = Told(prunes={0: 3})
    trials, seen = running(ledger)
    trials.suggest("a")
    assert trials.reported("a", {**EVALUATION, "step": 2}) is False
    assert trials.reported("a", EVALUATION) is True
    assert ledger.outcome == {"score": 0.5, "ece": 0.1, "seconds": 7.9, "accelerator_seconds": 0.0, "epochs": 3}
    trials.ended("a", lost=False)
    assert ledger.ends == [(0, "pruned")]
    assert seen.events[-1] == ("pruned", 0)


@pytest.mark.parametrize(("accelerator_seconds", "step"), [(0.0, 7), (15.8, 15)])
def test_where_seconds_count_the_step_is_those_of_the_accelerators_if_there_are_any(
    accelerator_seconds: float, step: int
) -> None:
    ledger = Told(search=line_search(scheduler=SchedulerConfig(on="seconds")))
    trials, seen = running(ledger)
    trials.suggest("a")
    trials.reported("a", {**EVALUATION, "accelerator_seconds": accelerator_seconds})
    assert ledger.steps == [(0, step)]
    assert seen.events[-1] == ("evaluated", 0, 3)


def test_a_dead_process_fails_its_trial_only_when_tune_gives_up() -> None:
    ledger = Told()
    trials, _ = running(ledger)
    trials.suggest("a")
    for _ in range(4):
        trials.died("a", "killed")
    assert ledger.ends == []
    trials.ended("a", lost=True)
    assert ledger.ends == [(0, "its process died 4 times, at last: killed")]


def test_a_trial_that_tune_gives_up_too_early_is_handed_out_again_under_its_number() -> None:
    ledger = Told()
    trials, seen = running(ledger, concurrent=1)
    first = trials.suggest("a")
    for turn in range(RESTARTS):
        name = "a" if turn == 0 else f"again {turn}"
        trials.died(name, "killed")
        trials.ended(name, lost=True)
        assert ledger.ends == []
        assert trials.suggest(f"again {turn + 1}") == first
    trials.died(f"again {RESTARTS}", "killed")
    trials.ended(f"again {RESTARTS}", lost=True)
    assert ledger.ends == [(0, "its process died 4 times, at last: killed")]
    assert seen.events == [("started", 0), ("failed", 0)]


def test_a_process_that_dies_after_its_end_changes_nothing_and_is_stopped_when_it_comes_again() -> None:
    ledger = Told()
    trials, seen = running(ledger)
    trials.suggest("a")
    trials.reported("a", END)
    trials.died("a", "killed")
    assert trials.reported("a", EVALUATION) is True
    trials.ended("a", lost=False)
    assert ledger.ends == [(0, "complete")]
    assert ledger.steps == []
    assert seen.events == [("started", 0), ("complete", 0)]


def test_a_trial_that_returns_without_a_result_failed() -> None:
    ledger = Told()
    trials, _ = running(ledger)
    trials.suggest("a")
    trials.ended("a", lost=False)
    assert ledger.ends == [(0, "it ended without a result")]
    trials.suggest("b")
    trials.died("b", "killed")
    trials.ended("b", lost=True)
    trials.suggest("c")
    trials.ended("c", lost=False)
    assert ledger.ends[1:] == [(1, "it ended without a result")], "handed out again for ever"


def test_an_end_without_a_value_for_an_objective_is_a_failure_to_who_watches() -> None:
    trials, seen = running(Told())
    trials.suggest("a")
    trials.reported("a", {**END, "score": float("nan")})
    assert seen.events[-1] == ("failed", 0)


def test_trial_after_trial_that_fails_ends_the_search() -> None:
    trials, _ = running(Told(left=3 * FAILURES), concurrent=1)
    for turn in range(FAILURES - 1):
        trials.suggest(str(turn))
        trials.reported(str(turn), {"event": "failed", "error": "no data"})
        trials.ended(str(turn), lost=False)
    trials.suggest("good")
    trials.reported("good", END)
    trials.ended("good", lost=False)
    for turn in range(FAILURES - 1):
        trials.suggest(f"again {turn}")
        trials.reported(f"again {turn}", {"event": "failed", "error": "no data"})
        trials.ended(f"again {turn}", lost=False)
    trials.suggest("last")
    with pytest.raises(StageError, match=f"{FAILURES} trials in a row failed.*no data"), trials.surfacing():
        trials.reported("last", {"event": "failed", "error": "no data"})
    with pytest.raises(StageError, match="in a row"):
        trials.suggest("next")


@pytest.mark.parametrize(
    ("demand", "cpus", "accelerators", "concurrent", "most"),
    [
        (Demand(), 2, 0, "auto", 2),
        (Demand(), 2, 0, 1, 1),
        (Demand(), 2, 0, 5, 2),
        (Demand(cpus=0.1), 0.3, 0, "auto", 3),
        (Demand(workers=2), 7, 0, "auto", 3),
        (Demand(cpus=2, accelerators=1.0), 32, 3, "auto", 3),
        (Demand(cpus=2, accelerators=0.5), 32, 3, "auto", 6),
        (Demand(cpus=2, accelerators=None), 32, 3, "auto", 3),
        (Demand(cpus=2, accelerators=None), 32, 0, "auto", 16),
        (Demand(workers=4, cpus=2, accelerators=None), 32, 8, "auto", 2),
    ],
)
def test_as_many_trials_run_at_a_time_as_the_cluster_holds(
    demand: Demand, cpus: float, accelerators: float, concurrent: Any, most: int
) -> None:
    assert capacity(demand, cpus, accelerators, concurrent) == most


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        (Demand(workers=3), "3 workers with 3 CPUs and 0 accelerators in all, the cluster has 2 and 0"),
        (Demand(accelerators=1.0), "1 workers with 1 CPUs and 1 accelerators"),
    ],
)
def test_a_trial_that_does_not_fit_the_cluster_is_bad_input(demand: Demand, message: str) -> None:
    with pytest.raises(InputError, match=message):
        capacity(demand, 2, 0, "auto")


def test_the_driver_of_several_workers_holds_no_cpu() -> None:
    assert resources(Demand(cpus=2, accelerators=1.0)) == {"cpu": 2, "gpu": 1.0}
    assert resources(Demand(cpus=2)) == {"cpu": 2}
    assert resources(Demand(workers=2, cpus=2)) == {"node:__internal_head__": 0.001}
