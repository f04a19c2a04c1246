"""Pieces of a card's Markdown: tables, lists, numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from analysis.strata import Estimate


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bullets(items: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in items.items())


def estimate(found: Estimate) -> str:
    return f"{share(found.value)} ({interval(found.low, found.high)})"


def interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or math.isnan(low):
        return "unknown"
    return f"{share(low)} to {share(high)}"


def share(value: float | None) -> str:
    return "unknown" if value is None or math.isnan(value) else f"{value:.3f}"


def code(text: str) -> str:
    """Within backticks nothing is markup but a backtick, and a line's end."""
    return " ".join(text.replace("`", "'").split())
