from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text
from studies import miniature

from tune_jobs.failures import one_line
from tune_jobs.plan import Plan, plan
from tune_jobs.watch import PLAIN_EVERY, Watch, duration, facts_in_words

FACTS = {"epoch": 3.0, "loss": 4.2112, "views_per_second": 512.3, "epoch_seconds": 20.0}


def miniature_plan() -> Plan:
    return plan(miniature(pretrain={"epochs": 6, "batch_size": 256, "moco": {"queue": 256}}), "f" * 64)


def watched(*, terminal: bool) -> tuple[Watch, io.StringIO, Plan]:
    full, out = miniature_plan(), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=110, height=40, no_color=True)
    return Watch(full, console=console), out, full


def test_plain_output_is_one_line_an_event_and_says_the_stage() -> None:
    watch, out, full = watched(terminal=False)
    pretrain, data = next(full.of_kind("pretrain")), next(full.of_kind("data"))
    with watch:
        watch.cached(data)
        watch.started(pretrain)
        watch.tick({pretrain.key: FACTS})
        watch.since[pretrain.key] -= PLAIN_EVERY
        watch.tick({})
        watch.tick({})
        watch.finished(pretrain, 65.0)
        watch.failed(pretrain, ValueError("first line\nsecond"))
        watch.skipped(next(full.of_kind("finetune")), pretrain)
    lines = out.getvalue().splitlines()
    assert lines == [
        "started   pretrain moco seed 0",
        "running   pretrain moco seed 0: epoch 3, loss 4.211, 512 views/s",
        f"finished  pretrain moco seed 0 in 1 min 05 s (2/{len(full.by_key)})",
        "FAILED    pretrain moco seed 0: ValueError: first line",
        "skipped   finetune moco seed 0 linear 100%: it needs pretrain moco seed 0",
    ]


def test_the_live_table_shows_state_epoch_loss_rate_and_time_left() -> None:
    watch, out, full = watched(terminal=True)
    pretrain = next(full.of_kind("pretrain"))
    watch.started(pretrain)
    watch.tick({pretrain.key: FACTS})
    watch.console.print(watch.view())
    text = Text.from_ansi(out.getvalue()).plain
    row = next(line for line in text.splitlines() if "pretrain moco seed 0" in line)
    assert all(word in row for word in ("3/6", "4.211", "512 views/s", "1 min 00 s")), row  # three epochs of 20 s left
    counts = next(line for line in text.splitlines() if line.startswith("pretrain "))
    assert counts.split() == ["pretrain", "3", "1", "·", "·", "·", "·"]


def test_finished_stages_are_handed_on() -> None:
    full, handed = miniature_plan(), []
    watch = Watch(full, console=Console(file=io.StringIO()), on_finished=handed.append)
    stage = next(full.of_kind("data"))
    watch.started(stage)
    watch.finished(stage, 1.0)
    assert handed == [stage]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (65, "1 min 05 s"), (3600, "1 h 00 min"), (11520, "3 h 12 min")],
)
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_not_reported_is_not_said() -> None:
    assert facts_in_words({}) == ""
    assert facts_in_words({"epoch": 1.5, "train_loss": 0.25}) == "epoch 1.5, loss 0.25"
    assert one_line(KeyError()) == "KeyError"
