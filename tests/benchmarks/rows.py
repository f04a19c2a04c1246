"""A row of the table: what is measured, against what, and what the figure must reach."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

TURNS = 5


@dataclass(frozen=True)
class Measured:
    """A row's figure, and the seconds behind it."""

    figure: float
    ours: float  # median seconds
    other: float | None = None  # median seconds of what it is compared with; None: only a bound is given
    facts: dict[str, Any] = field(default_factory=dict)  # what else was seen, for the JSON file


@dataclass(frozen=True)
class Row:
    """The figure is `bound` or more; with `most`, or less."""

    name: str
    against: str
    bound: float
    measure: Callable[[], Measured]
    most: bool = False
    unit: str = "x"

    def holds(self, found: Measured) -> bool:
        return found.figure <= self.bound if self.most else found.figure >= self.bound


def in_turns(ours: Callable[[], object], other: Callable[[], object], turns: int = TURNS) -> list[tuple[float, float]]:
    """Seconds of both ways in each of `turns` turns, after one untimed turn: what slows the machine slows both.

    Who is first changes from turn to turn, for whoever follows finds other caches and other freed memory.
    """
    seconds = []
    for turn in range(turns + 1):
        if turn % 2:
            mine, theirs = seconds_of(ours), seconds_of(other)
        else:
            theirs, mine = seconds_of(other), seconds_of(ours)
        if turn:
            seconds.append((mine, theirs))
    return seconds


def seconds_of(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def faster(seconds: list[tuple[float, float]]) -> Measured:
    """How many times faster ours is: the median of the turns' ratios."""
    return _measured(seconds, [other / ours for ours, other in seconds])


def time_of(seconds: list[tuple[float, float]]) -> Measured:
    """Our time in units of the other's: the median of the turns' ratios."""
    return _measured(seconds, [ours / other for ours, other in seconds])


def _measured(seconds: list[tuple[float, float]], ratios: list[float]) -> Measured:
    ours, other = (statistics.median(way) for way in zip(*seconds, strict=True))
    return Measured(statistics.median(ratios), ours, other, {"lowest": min(ratios), "highest": max(ratios)})
