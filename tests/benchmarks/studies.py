"""The command line and whole studies: what they take beside the work that is in their stages."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.rows import TURNS, Measured, Row, seconds_of
from tune_jobs.loading import load
from tune_jobs.prepare import planned
from tune_jobs.store import Store, read_manifest

COMMAND = [sys.executable, "-m", "tune_jobs.cli"]
STUDY = "quickstart"


def words_of(*words: str) -> dict[str, Any]:
    """Run intermoco; its line of JSON, if it was asked for one."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if "--json" in words else {}
    return found


def alone(*words: str, turns: int = TURNS) -> Measured:
    """Median seconds of a command, after one untimed run."""
    seconds = [seconds_of(lambda: words_of(*words)) for _ in range(turns + 1)][1:]
    return Measured(statistics.median(seconds), statistics.median(seconds), facts={"most": max(seconds)})


@dataclass(frozen=True)
class Ran:
    """The quickstart, measured beforehand, run, and run again."""

    measured: dict[str, Any]  # what `--measure` said
    seconds: float  # of the first run
    again: float  # of the second
    manifests: list[dict[str, Any]]
    arms: dict[str, str]  # by the key of their pretraining
    epochs: dict[str, float]  # seconds of an epoch's training steps, median, by the pretraining's key


@functools.cache
def ran() -> Ran:
    root = Path(tempfile.mkdtemp(prefix="intermoco-bench-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    place = (STUDY, "--output", str(root))
    words_of("data", *place)
    measured = words_of("ablate", *place, "--dry-run", "--measure", "--json")["measured"]
    first = seconds_of(lambda: words_of("ablate", *place))
    again = statistics.median(seconds_of(lambda: words_of("ablate", *place)) for _ in range(3))
    folders = [path.parent for path in (root / "stages").glob("*/manifest.json")]
    epochs = {}
    for folder in (f for f in folders if f.name.startswith("pretrain-")):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        epochs[folder.name.removeprefix("pretrain-")] = statistics.median(line["epoch_seconds"] for line in lines)
    plan = planned(load(STUDY), Store(root))
    arms = {stage.key: str(stage.labels["arm"]) for stage in plan.of_kind("pretrain")}
    return Ran(measured, first, again, [read_manifest(folder) for folder in folders], arms, epochs)


def wall() -> Measured:
    """The quickstart's wall time by the sum of its stages' seconds, of one CPU each, divided by the cores."""
    found = ran()
    least = sum(manifest["wall_seconds"] for manifest in found.manifests) / (os.cpu_count() or 1)
    return Measured(found.seconds / least, found.seconds, least, {"stages": len(found.manifests)})


def cached() -> Measured:
    found = ran().again
    return Measured(found, found)


def predicted(what: str) -> Measured:
    """How far the prediction of an arm's epoch, or of its memory, was off: the worst arm's quotient, above 1."""
    found, real = ran(), defaultdict(list)
    for manifest in found.manifests:
        if manifest["kind"] == "pretrain":
            real[found.arms[manifest["key"]]].append(
                found.epochs[manifest["key"]] if what == "epoch_seconds" else manifest[what]
            )
    off = {}
    for expected in found.measured["arms"]:
        seen = statistics.median(real[expected["arm"]])
        off[expected["arm"]] = expected[what] / seen
    return Measured(max(max(q, 1 / q) for q in off.values()), found.seconds, facts={"predicted_by_real": off})


def predicted_finetunings() -> Measured:
    """How far the predicted seconds of all fine-tunings together were off; of each sort of them, in the facts."""
    found, real = ran(), defaultdict(list)
    for manifest in found.manifests:
        if manifest["kind"] == "finetune":
            real[manifest["config"]["mode"], manifest["config"]["fraction"]].append(manifest["wall_seconds"])
    sorts = {(e["mode"], e["label_fraction"]): e["seconds"] for e in found.measured["finetunings"]}
    off = {
        f"{mode} {fraction:g}": seconds / statistics.mean(real[mode, fraction])
        for (mode, fraction), seconds in sorts.items()
    }
    whole = sum(sorts[sort] * len(seen) for sort, seen in real.items()) / sum(map(sum, real.values()))
    return Measured(max(whole, 1 / whole), found.seconds, facts={"predicted_by_real": off})


ROWS = (
    Row("intermoco --help", "-", 0.5, lambda: alone("--help"), most=True, unit="s"),
    Row("intermoco ablate --dry-run", "-", 2.0, lambda: alone("ablate", STUDY, "--dry-run"), most=True, unit="s"),
    Row("quickstart on local Ray", "its stages' seconds by cores", 1.15, wall, most=True),
    Row("quickstart, all stages cached", "-", 5.0, cached, most=True, unit="s"),
    Row("--measure: seconds of an epoch", "the study's own", 1.15, lambda: predicted("epoch_seconds"), most=True),
    Row("--measure: seconds of the fine-tunings", "the study's own", 1.15, predicted_finetunings, most=True),
    Row("--measure: memory of a pretraining", "the study's own", 1.15, lambda: predicted("peak_memory"), most=True),
)
