"""How a training loop speaks to the outside, and the log it leaves behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO


class Reporter(Protocol):
    """What a training loop knows of the world: with several workers, each of them calls all at the same points."""

    def metrics(self, values: Mapping[str, float]) -> None:
        """Values of a finished epoch or evaluation, `step` and `epoch` among them; after a resume only new ones."""

    def checkpoint(self, path: Path) -> None:
        """`path` was just replaced by a checkpoint from which the same call continues, maybe before any metrics."""

    def urgent(self) -> bool:
        """Whether a checkpoint is wanted at once, because the machine is about to go. Asked after a step; be quick."""


class JsonLinesReporter:
    """Prints each call's metrics as one JSON line."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout

    def metrics(self, values: Mapping[str, float]) -> None:
        print(json.dumps(dict(values), allow_nan=False), file=self.stream, flush=True)

    def checkpoint(self, path: Path) -> None:
        pass

    def urgent(self) -> bool:
        return False


class MetricsLog:
    """`metrics.jsonl`: begun anew with `history`, so that a resumed run leaves neither duplicates nor holes."""

    def __init__(self, path: Path, history: Sequence[Mapping[str, float]] = ()) -> None:
        self.path = path
        path.write_text("".join(_line(values) for values in history), encoding="utf-8")

    def append(self, values: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(values))


def _line(values: Mapping[str, float]) -> str:
    return json.dumps(dict(values), allow_nan=False) + "\n"
