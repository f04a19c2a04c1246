"""A search over digits, run to its end by a training that costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tune_jobs.plan import Plan, plan
from tune_jobs.resolution import resolve
from tune_jobs.search.ledger import Ledger
from tune_jobs.search.promotion import opened
from tune_jobs.store import Store
from tune_jobs.study import Study

SPACE = {
    "loss": ["none", "mse"],
    "blocks": [3, 4],
    "mse.scale": {"low": 0.1, "high": 1, "log": True},
    "learning_rate": {"low": 0.01, "high": 1, "log": True},
}


def study(**search: Any) -> Study:
    said = {"objectives": ["score"], "score": {"fraction": 0.06}, "trials": 8, "sampler": {"kind": "random"}}
    return resolve(
        {
            "study": "searched",
            "dataset": {"source": "digits"},
            "seeds": [0, 1],
            "pretrain": {"epochs": 4, "learning_rate": 0.1, "moco": {"queue": 256}},
            "arms": {"plain": {}, "supervised": "scratch"},
            "search": {**said, "space": SPACE, **search},
        }
    )


def begun(asked: Study, root: Path) -> tuple[Plan, Store, Ledger]:
    store, planned = Store(root), plan(asked, "a" * 64)
    ledger = opened(asked, planned, store, create=True)
    assert ledger is not None
    return planned, store, ledger


def run(ledger: Ledger, trials: int = 100) -> None:
    """Every third trial fails, every third is stopped where the scheduler wants it so; the best have a small rate."""
    for _ in range(trials):
        trial = ledger.next()
        if trial is None:
            return
        score = 0.9 - 0.1 * float(trial.params["learning_rate"])
        if trial.number % 5 == 4:
            ledger.fail(trial.number, "NonFiniteError: loss is nan")
            continue
        for epoch in (1, 3):
            outcome = {"score": 0.5, "seconds": 2.0 * epoch, "epochs": epoch}
            if ledger.report(trial.number, epoch, score - 0.1 / epoch, outcome):
                break
        else:
            ledger.complete(
                trial.number,
                {
                    "event": "end", "score": score, "ece": 0.1, "seconds": 8.0, "accelerator_seconds": 0.0,
                    "peak_memory": 2**30, "scores": {"2": score}, "epochs": 4, "stages": ["pretrain-0"], "cached": 0,
                },
            )  # fmt: skip
