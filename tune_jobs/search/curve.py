"""How a training does on the way: its evaluations so far, a JSON line each, in a file that outlives the process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.config import ProbeConfig
from tune_jobs.work import Report


class Curve:
    """Evaluations in the order of their `step`. A line that a kill cut short counts as not written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Evaluations by ascending step; none where there is no file."""
        rows: list[dict[str, Any]] = []
        if not self.path.is_file():
            return rows
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def cut(self, step: int) -> list[dict[str, Any]]:
        """Drop what lies beyond `step`, a training's restored epoch; returns what stays."""
        rows = [row for row in self.read() if row["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(_line(row) for row in rows), encoding="utf-8")
        temporary.replace(self.path)
        return rows

    def append(self, row: Mapping[str, Any]) -> None:
        """Add an evaluation; it is in the file, whole, when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))


@dataclass
class Evaluations:
    """The evaluations of a training under way: each one is in the curve's file before it is reported.

    An epoch without one is a line of the file too, for the seconds that it took.
    """

    curve: Curve
    report: Report
    accelerators: float  # of all workers together
    score: ProbeConfig
    due: Callable[[int], bool] = bool  # after which epochs; all of them, counted from 1
    seconds: float = 0.0  # of training so far

    def of(self, epoch: int) -> dict[str, Any] | None:
        """The evaluation after so many epochs, if there was one."""
        return next((row for row in self.curve.read() if row["step"] == epoch and "score" in row), None)

    def replay(self, epochs: int | None = None) -> None:
        """Report again what the curve holds, up to so many epochs where given; what lies beyond is dropped."""
        rows = self.curve.read() if epochs is None else self.curve.cut(epochs)
        for row in rows:
            self.seconds = row["seconds"]
            self._tell(row)

    def add(self, values: Mapping[str, float]) -> None:
        """Take an epoch's metrics, with the evaluation among them if there was one."""
        self.seconds += values["epoch_seconds"]
        row = {
            "step": int(values["epoch"]),
            **{name: values[name] for name in ("score", "ece") if name in values},
            "seconds": self.seconds,
            "accelerator_seconds": self.seconds * self.accelerators,
        }
        self.curve.append(row)
        self._tell(row)

    def _tell(self, row: Mapping[str, Any]) -> None:
        if "score" in row:
            self.report({"event": "evaluation", **row})


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(dict(row), allow_nan=False) + "\n"
