"""What a person sees while a search runs: a live table on a terminal, plain lines anywhere else. Goes to stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tune_jobs.search.config import MAXIMISED, SearchConfig
from tune_jobs.watch import PLAIN_EVERY, STYLE, duration

STATES = {**STYLE, "complete": "green", "pruned": "yellow", "duplicate": "dim"}
#: Refreshes of the live table a second.
REFRESH = 2.0


class Records(Protocol):
    """What is asked of a ledger (tune_jobs.search.ledger): where the search stands at its start."""

    @property
    def counts(self) -> dict[str, int]: ...

    def trials(self) -> Sequence[Any]: ...


class TrialWatch:
    """Follows a search's trials; a context manager around them. `on_finished` is told the number of each that ended."""

    def __init__(
        self,
        search: SearchConfig,
        ledger: Records,
        *,
        console: Console | None = None,
        on_finished: Callable[[int], None] | None = None,
    ) -> None:
        self.search, self.ledger, self.on_finished = search, ledger, on_finished
        self.console = console or Console(file=sys.stderr)
        self.objective = "score" if "score" in search.objectives else search.objectives[0]
        self.counts = dict(ledger.counts)
        self.best: tuple[float, int, Mapping[str, Any]] | None = None  # value, trial, parameters
        for trial in ledger.trials():
            if trial.state == "complete":
                self._compare(trial.values[self.objective], trial.number, trial.params)
        self.running: dict[int, Mapping[str, Any]] = {}  # parameters
        self.since: dict[int, float] = {}
        self.newest: dict[int, tuple[int, float]] = {}  # epoch, score
        self.began = time.monotonic()
        self._spoke: dict[int, float] = {}
        self._lock = threading.RLock()  # the table is drawn by a thread of its own
        self._live = (
            Live(console=self.console, get_renderable=self.view, refresh_per_second=REFRESH, transient=True)
            if self.console.is_terminal
            else None
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

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        with self._lock:
            self.running[number], self.since[number] = dict(params), time.monotonic()
            self._spoke[number] = time.monotonic()
        self._say(f"started   trial {number}: {in_words(params)}", live=False)

    def evaluated(self, number: int, step: int, score: float) -> None:
        with self._lock:
            self.newest[number] = (step, score)
        now = time.monotonic()
        if now - self._spoke.get(number, 0.0) >= PLAIN_EVERY:
            self._spoke[number] = now
            self._say(f"running   trial {number}: epoch {step}, score {score:.4g}", live=False)

    def finished(self, number: int, state: str, outcome: Mapping[str, Any]) -> None:
        counts = dict(self.ledger.counts)  # the ledger's, which knows of duplicates too
        with self._lock:
            self.counts = counts
            params = self.running.pop(number, {})
            for of_trial in (self.newest, self._spoke):
                of_trial.pop(number, None)
            seconds = time.monotonic() - self.since.pop(number, time.monotonic())
            if state == "complete":
                self._compare(float(outcome[self.objective]), number, params)
        if self.on_finished:
            self.on_finished(number)
        if state == "failed":
            self._say(f"FAILED    trial {number}: {outcome.get('error')}", style="red")
        elif state == "pruned":
            after = f"after epoch {outcome['epochs']}: score {outcome['score']:.4g}"
            self._say(f"pruned    trial {number} {after} ({self._so_far()})", live=False)
        else:
            value = f"{self.objective} {outcome[self.objective]:.4g}"
            self._say(f"finished  trial {number} in {duration(seconds)}: {value} ({self._so_far()})", live=False)

    def view(self) -> Group:
        """The live table: counts by state, the best trial, then every running one with what it last reported."""
        with self._lock:
            return Group(self._counts(), self._best(), self._running_table(), self._summary())

    def _compare(self, value: float, number: int, params: Mapping[str, Any]) -> None:
        sign = 1 if self.objective in MAXIMISED else -1
        if self.best is None or sign * value > sign * self.best[0]:
            self.best = (value, number, params)

    def _so_far(self) -> str:
        best = f", best {self.best[0]:.4g}" if self.best else ""
        return f"{self._done()} of {self.search.trials}{best}"

    def _done(self) -> int:
        return sum(self.counts.get(state, 0) for state in ("complete", "pruned", "failed"))

    def _counts(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("trials")
        shown = {**self.counts, "running": len(self.running)}
        states = ("running", "complete", "pruned", "failed", "duplicate")
        for state in states:
            table.add_column(state, justify="right", style=STATES[state])
        table.add_row(
            f"{self._done()} of {self.search.trials}",
            *(str(shown[state]) if shown.get(state) else "·" for state in states),
        )
        return table

    def _best(self) -> Text:
        if self.best is None:
            return Text("no trial has ended yet", "dim")
        value, number, params = self.best
        return Text(f"best {self.objective} {value:.4g}, trial {number}: {in_words(params)}", overflow="ellipsis")

    def _running_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("running", "epoch", "score", "for", "parameters"):
            left = name in ("running", "parameters")
            table.add_column(name, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
        room = max(3, self.console.size.height - 10)
        for number, params in list(self.running.items())[:room]:
            epoch, score = self.newest.get(number, (None, None))
            table.add_row(
                f"trial {number}", "" if epoch is None else str(epoch), "" if score is None else f"{score:.4g}",
                duration(time.monotonic() - self.since[number]), in_words(params),
            )  # fmt: skip
        return table

    def _summary(self) -> Text:
        return Text(f"{self._done()} of {self.search.trials} trials, {duration(time.monotonic() - self.began)}", "dim")

    def _say(self, line: str, *, live: bool = True, style: str | None = None) -> None:
        """A line that stays. Where a live table shows the state already, only what asks for attention is said."""
        if self._live and live:
            self._live.console.print(Text(line, style or ""))
        elif not self._live:
            print(line, file=self.console.file, flush=True)


def in_words(params: Mapping[str, Any]) -> str:
    """`loss mse, blocks 2 3, mse.scale 0.25`: the switches of the blocks as the list of those that are on."""
    switches = {name.removeprefix("block_"): on for name, on in params.items() if name.startswith("block_")}
    words = []
    for name, value in params.items():
        if not name.startswith("block_"):
            words.append(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}")
        elif name == f"block_{min(switches)}":
            words.append(f"blocks {' '.join(sorted(n for n, on in switches.items() if on)) or 'none'}")
    return ", ".join(words) or "no parameters"
