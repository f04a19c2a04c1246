"""A search without training, as a program that can be killed: `python marked_search.py FOLDER TRIALS [CONCURRENT]`.

Each trial keeps its epochs in a file, as a checkpoint would, and leaves a line in `ends` when it has done all of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from math import log10
from pathlib import Path
from typing import Any

from analysis.config import ProbeConfig
from ssl_core.config import PretrainConfig
from tune_jobs.search.config import SamplerConfig, SchedulerConfig, SearchConfig

EPOCHS, EPOCH_SECONDS = 6, 0.03
BASE = PretrainConfig(epochs=EPOCHS)


@dataclass(frozen=True)
class Line:
    """A space of one parameter."""

    def suggest(self, trial: Any) -> dict[str, Any]:
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1.0, log=True)}

    def arm(self, values: Any, bases: Any) -> PretrainConfig:
        return replace(bases["none"], learning_rate=values["learning_rate"])

    def paper_starts(self, bases: Any) -> list[tuple[str, dict[str, Any], list[str]]]:
        return [("paper_moco", {"learning_rate": bases["none"].learning_rate}, [])]


def line_search(**changes: Any) -> SearchConfig:
    values: dict[str, Any] = {
        "space": Line(), "bases": {"none": BASE}, "objectives": ("score",), "score": ProbeConfig(blocks=(4,)),
        "seeds": (0,), "trials": 10, "sampler": SamplerConfig(startup=3), "scheduler": SchedulerConfig(kind="asha"),
    }  # fmt: skip
    return SearchConfig(**{**values, **changes})


def opened(folder: Path, search: SearchConfig) -> Any:
    from tune_jobs.search.ledger import Ledger

    return Ledger.open(search, url=None, folder=folder, name="marked", identity={"data": "none"})


def append(file: Path, line: str) -> None:
    with file.open("a") as f:
        f.write(line + "\n")
        f.flush()
        os.fsync(f.fileno())


def worth(rate: float, epoch: int) -> float:
    """Best at a learning rate of 0.1; each epoch brings it nearer to what it is worth."""
    return (1 - abs(log10(rate) + 1) / 4) * epoch / EPOCHS


def train(config: dict[str, Any], folder: Path) -> None:
    from ray import tune

    number, rate = config["number"], config["arm"]["learning_rate"]
    epochs = folder / f"epochs-{number}"
    done = len(epochs.read_text().splitlines()) if epochs.exists() else 0
    score = 0.0
    for epoch in range(1, EPOCHS + 1):
        if epoch > done:
            time.sleep(EPOCH_SECONDS)
            append(epochs, f"{epoch}")
        score = worth(rate, epoch)
        tune.report(
            {"event": "evaluation", "step": epoch, "score": score, "ece": 0.1, "seconds": epoch * EPOCH_SECONDS,
             "accelerator_seconds": 0.0}
        )  # fmt: skip
    if not epochs.with_suffix(".end").exists():
        append(folder / "ends", f"{number} {rate!r}")
        epochs.with_suffix(".end").touch()
    tune.report(
        {"event": "end", "score": score, "ece": 0.1, "seconds": EPOCHS * EPOCH_SECONDS, "accelerator_seconds": 0.0,
         "peak_memory": None, "score_sd": None, "ece_sd": None, "scores": {0: score}, "epochs": EPOCHS,
         "stages": [f"pretrain-{number}"], "cached": 0}
    )  # fmt: skip


class Unwatched:
    def started(self, number: int, params: Any) -> None: ...

    def evaluated(self, number: int, step: int, score: float) -> None: ...

    def finished(self, number: int, state: str, outcome: Any) -> None: ...


def main(folder: Path, trials: int, concurrent: int) -> int:
    from tune_jobs.ablate import terminable
    from tune_jobs.cluster import local_ray
    from tune_jobs.search.run import run_trials
    from tune_jobs.stage import Demand

    folder.mkdir(parents=True, exist_ok=True)
    ledger = opened(folder, line_search(trials=trials))
    try:
        with terminable(), local_ray(cpus=concurrent):
            run_trials(
                ledger, lambda config: train(config, folder), demand=Demand(), concurrent=concurrent,
                folder=folder / ".tune", watcher=Unwatched(),
            )  # fmt: skip
    except KeyboardInterrupt:
        return 130
    print(json.dumps(ledger.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1))
