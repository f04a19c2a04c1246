from __future__ import annotations

import io
import threading
from typing import Any

import pytest
from marked_search import line_search
from rich.console import Console
from rich.text import Text

from tune_jobs.search.watch import TrialWatch, in_words
from tune_jobs.watch import PLAIN_EVERY


class Past:
    """A ledger with one trial that was completed by an earlier run."""

    @property
    def counts(self) -> dict[str, int]:
        return {"complete": 1, "pruned": 0, "failed": 0, "duplicate": 2, "running": 0, "waiting": 0}

    def trials(self) -> list[Any]:
        from types import SimpleNamespace

        return [
            SimpleNamespace(number=0, state="complete", values={"score": 0.6}, params={"learning_rate": 0.03}),
            SimpleNamespace(number=1, state="duplicate", values={}, params={"learning_rate": 0.03}),
        ]


def watched(*, terminal: bool, **changes: Any) -> tuple[TrialWatch, io.StringIO, list[int]]:
    out, told = io.StringIO(), list[int]()
    console = Console(file=out, force_terminal=terminal, width=110, height=40, no_color=True)
    search = line_search(trials=30, **changes)
    return TrialWatch(search, Past(), console=console, on_finished=told.append), out, told


def test_plain_output_is_one_line_an_event() -> None:
    watch, out, told = watched(terminal=False)
    with watch:
        for number in (3, 4, 5):
            watch.started(number, {"learning_rate": 0.1})
        watch.evaluated(3, 1, 0.5)
        watch._spoke[3] -= PLAIN_EVERY
        watch.evaluated(3, 2, 0.55)
        watch.evaluated(3, 3, 0.56)
        watch.since[3] -= 65
        watch.finished(3, "complete", {"score": 0.71234})
        watch.finished(4, "pruned", {"score": 0.31, "epochs": 2})
        watch.finished(5, "failed", {"error": "NonFiniteError: step 3"})
    assert out.getvalue().splitlines() == [
        "started   trial 3: learning_rate 0.1",
        "started   trial 4: learning_rate 0.1",
        "started   trial 5: learning_rate 0.1",
        "running   trial 3: epoch 2, score 0.55",
        "finished  trial 3 in 1 min 05 s: score 0.7123 (1 of 30, best 0.7123)",
        "pruned    trial 4 after epoch 2: score 0.31 (1 of 30, best 0.7123)",
        "FAILED    trial 5: NonFiniteError: step 3",
    ]
    assert told == [3, 4, 5]


def test_the_live_table_shows_states_the_best_trial_and_where_running_ones_are() -> None:
    watch, out, _ = watched(terminal=True)
    watch.started(3, {"loss": "mse", "block_1": False, "block_2": True, "mse.scale": 0.25})
    watch.evaluated(3, 7, 0.512)
    watch.console.print(watch.view())
    lines = Text.from_ansi(out.getvalue()).plain.splitlines()
    assert lines[0].split() == ["trials", "running", "complete", "pruned", "failed", "duplicate"]
    assert lines[1].split() == ["1", "of", "30", "1", "1", "·", "·", "2"]
    assert lines[2].startswith("best score 0.6, trial 0: learning_rate 0.03")
    row = next(line for line in lines if line.startswith("trial 3"))
    assert all(word in row for word in (" 7 ", "0.512", "loss mse, blocks 2, mse.scale 0.25")), row


@pytest.mark.parametrize(
    ("objectives", "better", "worse"),
    [(("score",), 0.7, 0.5), (("ece", "seconds"), 0.1, 0.2), (("ece", "score"), 0.7, 0.5)],
)
def test_the_best_trial_is_that_of_the_score_or_else_of_the_first_objective(
    objectives: tuple[str, ...], better: float, worse: float
) -> None:
    watch, _, _ = watched(terminal=False)
    watch = TrialWatch(line_search(objectives=objectives), type("Empty", (), {"counts": {}, "trials": lambda s: []})())
    name = "score" if "score" in objectives else objectives[0]
    for number, value in ((0, worse), (1, better), (2, worse)):
        watch.started(number, {})
        watch.finished(number, "complete", {name: value})
    assert watch.best is not None
    assert watch.best[:2] == (better, 1)


def test_the_table_can_be_drawn_while_trials_come_and_go() -> None:
    watch, _, _ = watched(terminal=True)
    failed: list[BaseException] = []
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            try:
                watch.view()
            except BaseException as error:
                failed.append(error)
                return

    thread = threading.Thread(target=draw)
    thread.start()
    for number in range(300):
        watch.started(number, {"x": 1})
        watch.evaluated(number, 1, 0.1)
        if number > 5:
            watch.finished(number - 5, "complete", {"score": 0.1})
    stop.set()
    thread.join()
    assert not failed


def test_parameters_in_words() -> None:
    assert in_words({}) == "no parameters"
    assert in_words({"block_1": False, "block_2": False}) == "blocks none"
    assert in_words({"block_3": True, "x": 12345.678, "block_1": True}) == "x 1.23e+04, blocks 1 3"
