"""What Tune is told and what the ledger is told while trials run. Knows no Ray (searcher.py does)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from ssl_core.config import PretrainConfig
from ssl_core.errors import StageError
from tune_jobs.plan import as_config
from tune_jobs.search.config import SearchConfig

#: A trial whose process dies is started again so many times; it goes on from its checkpoint.
RESTARTS = 3
#: So many trials in a row that failed end the search: then it is not their parameters that are wrong.
FAILURES = 10
#: What a trial that ran to its end says of itself; Tune adds keys of its own to each report.
OUTCOME = (
    "score", "ece", "seconds", "accelerator_seconds", "peak_memory", "score_sd", "ece_sd", "scores", "epochs", "stages",
    "cached",
)  # fmt: skip


class Suggested(Protocol):
    """A trial as the ledger hands it out."""

    @property
    def number(self) -> int: ...

    @property
    def params(self) -> Mapping[str, Any]: ...

    @property
    def arm(self) -> PretrainConfig: ...


class Book(Protocol):
    """What is asked of a ledger (tune_jobs.search.ledger)."""

    @property
    def search(self) -> SearchConfig: ...

    def next(self) -> Suggested | None: ...

    def report(self, number: int, step: int, score: float, outcome: Mapping[str, Any]) -> bool: ...

    def complete(self, number: int, outcome: Mapping[str, Any]) -> None: ...

    def fail(self, number: int, error: str) -> None: ...


class TrialWatcher(Protocol):
    """Who is told what happens."""

    def started(self, number: int, params: Mapping[str, Any]) -> None: ...

    def evaluated(self, number: int, step: int, score: float) -> None: ...

    def finished(self, number: int, state: str, outcome: Mapping[str, Any]) -> None: ...


class Running:
    """The trials that Tune runs at the moment, by Tune's name of them, and what the ledger is told of each."""

    def __init__(self, ledger: Book, watcher: TrialWatcher, concurrent: int) -> None:
        self.ledger, self.watcher, self.concurrent = ledger, watcher, concurrent
        self.numbers: dict[str, int] = {}  # those that Tune has not ended yet
        self.open: dict[int, dict[str, Any]] = {}  # configs of those whose end the ledger was not told yet
        self.again: list[int] = []  # of these, those that Tune gave up too early
        self.errors: dict[int, list[str]] = {}  # what each death of an open trial's process left
        self.failures = 0  # in a row
        self.error: BaseException | None = None  # the first of our own, which Tune may swallow
        self._dry = False  # the ledger had nothing more, and no trial has ended since

    @contextmanager
    def surfacing(self) -> Iterator[None]:
        """Keep the first error of the body: Tune turns some into text and some into a trial's failure."""
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def suggest(self, name: str) -> dict[str, Any] | None:
        """The next trial's config; None: not now, and where no trial runs: never again."""
        if self.error is not None:
            raise self.error
        if len(self.numbers) >= self.concurrent or (self._dry and self.numbers and not self.again):
            return None
        if self.again:
            self.numbers[name] = self.again.pop(0)
            return self.open[self.numbers[name]]
        suggestion = self.ledger.next()
        if suggestion is None:
            # a running trial may still fail and make room for another
            self._dry = True
            return None
        number, seeds = suggestion.number, list(self.ledger.search.seeds)
        self.numbers[name] = number
        self.open[number] = {"number": number, "arm": as_config(suggestion.arm), "seeds": seeds}
        self.watcher.started(number, suggestion.params)
        return self.open[number]

    def reported(self, name: str, result: Mapping[str, Any]) -> bool:
        """Whether the trial has to stop. Takes Tune's result, flat: scores/0 for the score of seed 0."""
        number = self.numbers[name]
        if number not in self.open:
            return True  # its process died after it had said how it ended, and Tune started it again
        match result.get("event"):
            case "evaluation":
                return self._evaluated(number, result)
            case "end":
                outcome = {key: result.get(key) for key in OUTCOME}
                outcome["scores"] = _below(result, "scores")
                self.ledger.complete(number, outcome)
                self._settled(number, *self._judged(outcome))
            case "failed":
                self._failed(number, str(result["error"]))
        return False

    def _judged(self, outcome: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """The state that the ledger gives to a trial with this end: one without a value for an objective failed."""
        for name in self.ledger.search.objectives:
            if outcome[name] is None or not math.isfinite(outcome[name]):
                return "failed", {**outcome, "error": f"{name} is {outcome[name]}"}
        return "complete", outcome

    def _evaluated(self, number: int, result: Mapping[str, Any]) -> bool:
        epoch, score = int(result["step"]), float(result["score"])
        self.watcher.evaluated(number, epoch, score)
        spent = int(result["accelerator_seconds"] or result["seconds"])
        step = epoch if self.ledger.search.scheduler.on == "epochs" else spent
        outcome = {key: result.get(key) for key in ("score", "ece", "seconds", "accelerator_seconds")}
        outcome["epochs"] = epoch
        if not self.ledger.report(number, step, score, outcome):
            return False
        self._settled(number, "pruned", outcome)
        return True

    def died(self, name: str, error: str) -> None:
        """The process of a trial is gone; Tune may start the trial again."""
        if (number := self.numbers.get(name)) in self.open:
            self.errors.setdefault(number, []).append(error)

    def ended(self, name: str, *, lost: bool) -> None:
        """Tune has done with the trial; `lost`: for the sake of its process."""
        number = self.numbers.pop(name, None)
        self._dry = False
        if number not in self.open:
            return
        errors = self.errors.get(number, [])
        if not lost:
            self._failed(number, "it ended without a result")
        elif len(errors) > RESTARTS:
            self._failed(number, f"its process died {len(errors)} times, at last: {errors[-1]}")
        else:  # Tune gives up at once where a process dies between two trials, or cannot be had for the next one
            self.again.append(number)

    def _failed(self, number: int, error: str) -> None:
        self.ledger.fail(number, error)
        self._settled(number, "failed", {"error": error})
        if self.failures >= FAILURES:
            raise StageError(f"{self.failures} trials in a row failed, the last one, trial {number}: {error}")

    def _settled(self, number: int, state: str, outcome: Mapping[str, Any]) -> None:
        self.open.pop(number, None)
        self.errors.pop(number, None)
        self.failures = self.failures + 1 if state == "failed" else 0
        self.watcher.finished(number, state, outcome)


def _below(result: Mapping[str, Any], name: str) -> dict[int, float]:
    """Tune's flat `name/0`, `name/1` as a mapping again."""
    prefix = f"{name}/"
    return {int(key.removeprefix(prefix)): value for key, value in result.items() if key.startswith(prefix)}
