"""What finished stages say, in MLflow's terms: parameters, metrics over time, measures, files. Knows no MLflow."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ssl_core.errors import StageError
from tune_jobs.stage import Stage
from tune_jobs.store import MANIFEST, Store, read_manifest

#: MLflow's own limits, of a name and of a parameter's value.
NAME_LENGTH, VALUE_LENGTH = 250, 6000
#: What a stage's run keeps of its folder: what a person reads. Weights, features and predictions stay in the store.
SMALL_FILES = (
    MANIFEST,
    "rows.json",
    "metrics.jsonl",
    "samples.json",
    "curves.csv",
    "dataset.json",
    "unreadable.json",
    "audit.json",
    "features.json",
)
#: Numbers of a row that are metrics of their own, under the measure's name with this after it.
COMPANIONS = ("low", "high", "null", "floor")
COSTS = ("wall_seconds", "accelerator_seconds")


@dataclass(frozen=True)
class Point:
    """A metric's value at one step. `time` is in milliseconds since 1970, as everywhere in MLflow."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class Record:
    """A finished stage, read from its folder."""

    kind: str
    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, stage: Stage, store: Store) -> Record:
        folder = store.find(stage.kind, stage.key)
        return cls(stage.kind, folder, read_manifest(folder))

    @cached_property
    def started(self) -> int:
        if "started" in self.manifest:
            return _milliseconds(self.manifest["started"])
        return _milliseconds((self.folder / MANIFEST).stat().st_mtime) - self._duration

    @property
    def ended(self) -> int:
        return self.started + self._duration

    @property
    def _duration(self) -> int:
        return _milliseconds(self.manifest.get("wall_seconds", 0.0))

    @property
    def params(self) -> dict[str, str]:
        return flatten(self.manifest["config"])

    @property
    def costs(self) -> dict[str, float]:
        return {name: float(self.manifest[name]) for name in COSTS if name in self.manifest}

    @property
    def origin(self) -> dict[str, str]:
        """Environment and git commit, as tags."""
        environment = self.manifest.get("environment") or {}
        tags = {f"intermoco.environment.{name}": _text(value) for name, value in environment.items()}
        if commit := self.manifest.get("git_commit"):
            tags |= {"intermoco.git_commit": commit, "mlflow.source.git.commit": commit}
        return tags

    @cached_property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """Rows of rows.json by the measure's name: `test_auroc`, `block1_auroc`, `cka_linear_block1`, ...

        Raises StageError if two rows are of the same name, so that neither stands for the other.
        """
        path = self.folder / "rows.json"
        found: dict[str, Mapping[str, Any]] = {}
        for row in json.loads(path.read_text(encoding="utf-8")) if path.is_file() else ():
            name = allowed(_measure_name(self.kind, row))
            if name in found:
                raise StageError(f"{path} holds two rows for {name}; remove {self.folder} and run again")
            found[name] = row
        return found

    @property
    def scores(self) -> dict[str, float]:
        """The value of each measure that is defined."""
        return {name: float(row["value"]) for name, row in self.rows.items() if row.get("value") is not None}

    @property
    def measures(self) -> dict[str, float]:
        """Scores and what belongs to them: `test_auroc`, `test_auroc_low`, `test_auroc_high`, ..."""
        found = self.scores
        for name, row in self.rows.items():
            found |= {f"{name}_{c}": float(row[c]) for c in COMPANIONS if row.get(c) is not None}
        return found

    @property
    def points(self) -> Sequence[Point]:
        """Everything measured: what metrics.jsonl says of each step, then measures and costs at the last step.

        A line has no time of its own: lines are spread evenly over the stage's. Of a step logged twice the later line
        counts.
        """
        log = self.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
        points: dict[tuple[str, int], Point] = {}
        step = 0
        for number, line in enumerate(lines, 1):
            time = self.started + self._duration * number // len(lines)
            step = int(line.get("step", number))
            for name, value in line.items():
                if name != "step" and _is_number(value):
                    points[allowed(name), step] = Point(allowed(name), finite(value), time, step)
        for name, value in {**self.measures, **self.costs}.items():
            points[name, step] = Point(name, finite(value), self.ended, step)
        return tuple(points.values())

    @property
    def files(self) -> list[Path]:
        """Of those that the manifest lists: another's link would send what it leads to."""
        return [self.folder / name for name in SMALL_FILES if name == MANIFEST or name in self.manifest["files"]]


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: `{"moco": {"queue": 512}}` becomes `{"moco.queue": "512"}`."""
    if not isinstance(value, Mapping) or not value:
        return {allowed(prefix): _text(value)} if prefix else {}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def allowed(name: str) -> str:
    """`name` with the characters that MLflow forbids, and the slash that it takes for a folder, replaced."""
    return re.sub(r"[^\w. -]", "_", name, flags=re.ASCII)[:NAME_LENGTH]


def finite(value: float) -> float:
    """Infinity as the largest number, as MLflow's stores keep it anyway; NaN as it is."""
    largest = 1.7976931348623157e308
    return float(value) if math.isnan(value) else max(-largest, min(largest, float(value)))


def summary(stages: Iterable[tuple[Stage, Record]]) -> dict[str, float]:
    """An arm's test scores over its finished seeds: `test_auroc_full_0.01`, its `_sd` (n - 1) and its `_seeds`.

    The standard deviation is there from two seeds on.
    """
    scores: dict[str, list[float]] = {}
    for stage, record in stages:
        if stage.kind == "finetune":
            setting = f"{stage.labels['mode']}_{stage.labels['label_fraction']:g}"
            for name, value in record.scores.items():
                scores.setdefault(f"{name}_{setting}", []).append(value)
    found: dict[str, float] = {}
    for name, values in scores.items():
        found |= {name: statistics.fmean(values), f"{name}_seeds": float(len(values))}
        if len(values) > 1:
            found[f"{name}_sd"] = statistics.stdev(values)
    return found


def total(records: Iterable[Record]) -> dict[str, float]:
    """Costs of stages together."""
    costs: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.costs.items():
            costs.setdefault(name, []).append(value)
    return {name: math.fsum(values) for name, values in costs.items()}


def merged(tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Tags of several stages as one: where they differ, all values in order."""
    values: dict[str, set[str]] = {}
    for one in tags:
        for name, value in one.items():
            values.setdefault(name, set()).add(value)
    return {name: ", ".join(sorted(found))[:VALUE_LENGTH] for name, found in sorted(values.items())}


def _measure_name(kind: str, row: Mapping[str, Any]) -> str:
    metric = row["metric"]
    match kind:
        case "finetune":
            return f"test_{metric}"
        case "probe":
            return f"block{row['block']}_{metric}"
        case "reuse":
            return f"{metric}_block{row['block']}"
        case "ks":
            return f"{metric}_{row['arm']}_seed{row['seed']}_{row['mode']}_{row['label_fraction']:g}"
        case _:
            return str(metric)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[: VALUE_LENGTH - 3]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
