"""What a person sees while a study runs: a live table on a terminal, plain lines anywhere else. Goes to stderr."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune_jobs.failures import one_line
from tune_jobs.plan import Plan
from tune_jobs.stage import Stage

STATES = ("waiting", "running", "done", "cached", "failed", "skipped")
STYLE = {"running": "cyan", "done": "green", "cached": "dim", "failed": "bold red", "skipped": "yellow"}
#: Seconds between the plain lines on a running stage.
PLAIN_EVERY = 10.0


class Watch:
    """Follows an execution; a context manager around it."""

    def __init__(
        self, plan: Plan, *, console: Console | None = None, on_finished: Callable[[Stage], None] | None = None
    ) -> None:
        self.on_finished = on_finished
        self.console = console or Console(file=sys.stderr)
        self.plan = plan
        self.state = dict.fromkeys(plan.by_key, "waiting")
        self.running: dict[str, None] = {}  # in the order in which they were started
        self.settled = 0
        self.since: dict[str, float] = {}
        self.newest: dict[str, Mapping[str, Any]] = {}
        self.began = time.monotonic()
        self._spoke: dict[str, float] = {}
        self._live = (
            Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def cached(self, stage: Stage) -> None:
        self._settle(stage, "cached")

    def started(self, stage: Stage) -> None:
        self.state[stage.key] = "running"
        self.running[stage.key] = None
        self.since[stage.key] = time.monotonic()
        self._say(f"started   {stage.name}", live=False)

    def finished(self, stage: Stage, seconds: float) -> None:
        self._settle(stage, "done")
        if self.on_finished:
            self.on_finished(stage)
        self._say(f"finished  {stage.name} in {duration(seconds)} ({self.settled}/{len(self.state)})", live=False)

    def failed(self, stage: Stage, error: BaseException) -> None:
        self._settle(stage, "failed")
        self._say(f"FAILED    {stage.name}: {one_line(error)}", style="red")

    def skipped(self, stage: Stage, cause: Stage) -> None:
        self._settle(stage, "skipped")
        self._say(f"skipped   {stage.name}: it needs {cause.name}", style="yellow")

    def _settle(self, stage: Stage, state: str) -> None:
        """Counts as it goes: with ten thousand stages, looking through all of them at each end takes minutes."""
        self.state[stage.key] = state
        self.running.pop(stage.key, None)
        self.settled += 1

    def tick(self, progress: Mapping[str, Mapping[str, Any]]) -> None:
        self.newest.update(progress)
        if self._live:
            self._live.update(self.view(), refresh=True)
            return
        now = time.monotonic()
        for key in self.running:
            if key in self.newest and now - self._spoke.get(key, self.since[key]) >= PLAIN_EVERY:
                self._spoke[key] = now
                self._say(f"running   {self.plan.by_key[key].name}: {facts_in_words(self.newest[key])}", live=False)

    def view(self) -> Group:
        """The live table: counts a kind, then every running stage with what it last reported."""
        return Group(self._counts(), self._running_table(), self._summary())

    def _counts(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("stages")
        for state in STATES:
            table.add_column(state, justify="right", style=STYLE.get(state))
        kinds: dict[str, Counter[str]] = {}
        for key, stage in self.plan.by_key.items():
            kinds.setdefault(stage.kind, Counter())[self.state[key]] += 1
        for kind, counts in kinds.items():
            table.add_row(kind, *(str(counts[s]) if counts[s] else "·" for s in STATES))
        return table

    def _running_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("running", "epoch", "loss", "rate", "for", "left"):
            table.add_column(name, justify="left" if name == "running" else "right")
        room = max(3, self.console.size.height - 14)
        for key in itertools.islice(self.running, room):
            stage, facts = self.plan.by_key[key], self.newest.get(key, {})
            elapsed = time.monotonic() - self.since[key]
            table.add_row(
                stage.name, epoch_text(stage, facts), loss_text(facts), rate_text(facts),
                duration(elapsed), left_text(stage, facts),
            )  # fmt: skip
        return table

    def _summary(self) -> Text:
        return Text(f"{self.settled} of {len(self.state)} stages, {duration(time.monotonic() - self.began)}", "dim")

    def _say(self, line: str, *, live: bool = True, style: str | None = None) -> None:
        """A line that stays. Where a live table shows the state already, only what asks for attention is said."""
        if self._live and not live:
            return
        if self._live:
            self._live.console.print(Text(line, style or ""))
        else:
            print(line, file=self.console.file, flush=True)


def facts_in_words(facts: Mapping[str, Any]) -> str:
    """`epoch 3, loss 4.211, 512 views/s`."""
    words = []
    if "epoch" in facts:
        words.append(f"epoch {facts['epoch']:g}")
    if loss := loss_text(facts):
        words.append(f"loss {loss}")
    if rate := rate_text(facts):
        words.append(rate)
    return ", ".join(words)


def epoch_text(stage: Stage, facts: Mapping[str, Any]) -> str:
    if "epoch" not in facts:
        return ""
    total = stage.config.get("epochs")
    return f"{facts['epoch']:.0f}/{total}" if stage.kind == "pretrain" and total else f"{facts['epoch']:.1f}"


def loss_text(facts: Mapping[str, Any]) -> str:
    value = facts.get("loss", facts.get("train_loss"))
    return "" if value is None else f"{value:.4g}"


def rate_text(facts: Mapping[str, Any]) -> str:
    value = facts.get("views_per_second", facts.get("images_per_second"))
    unit = "views/s" if "views_per_second" in facts else "images/s"
    return "" if value is None else f"{value:.0f} {unit}"


def left_text(stage: Stage, facts: Mapping[str, Any]) -> str:
    """Time left, from the epochs done so far; empty where a stage may stop early."""
    total, done = stage.config.get("epochs"), facts.get("epoch")
    if stage.kind != "pretrain" or not total or not done or "epoch_seconds" not in facts:
        return ""
    return duration((total - done) * facts["epoch_seconds"])


def duration(seconds: float) -> str:
    """`8.1 s`, `2 min 05 s`, `3 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
