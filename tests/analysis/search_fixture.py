"""A made-up search as the report receives it. Synthetic: blocks 2 and 3 help, together more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pandas import DataFrame

from analysis.search import SearchFindings

NAMES = ("loss", "block_1", "block_2", "block_3", "block_4", "mse.scale", "barlow.width", "learning_rate")
STARTS = ("paper_moco", "paper_mse", "paper_barlow")
EPOCHS = 30


def search(count: int = 24, *, objectives: Sequence[str] = ("score",), **changes: Any) -> SearchFindings:
    """`count` trials: the paper's three, then random ones, of which bad ones are pruned; one fails, the last runs."""
    noise = np.random.default_rng(0)
    rows, curves = [], []
    for trial in range(count):
        params = _params(trial, noise)
        score = _score(params) + 0.004 * float(noise.normal())
        state = "complete" if trial < 3 or score > 0.87 else "pruned"
        if count > 5:
            state = {5: "failed", count - 1: "running"}.get(trial, state)
        last = {"complete": EPOCHS, "pruned": 3, "failed": 4, "running": 6}[state]
        curves += [(trial, e, score - 0.25 * float(np.exp(-e / 6))) for e in range(1, last + 1)]
        done = state == "complete"
        rows.append(
            {
                "trial": trial,
                "state": state,
                "start": STARTS[trial] if trial < 3 else None,
                "arm": None,
                "score": score if done else curves[-1][2] if state == "pruned" else None,
                "ece": 0.04,
                "score_sd": 0.004 if done else None,
                "epochs": last,
                "seconds": 0.5 * last,
                "accelerator_seconds": 0.5 * last,
                "peak_memory": 1e8 + 1e7 * sum(bool(params[f"block_{b}"]) for b in (1, 2, 3, 4)),
                "saved_seconds": {"complete": 0.0, "pruned": 0.5 * (EPOCHS - last)}.get(state),
                "seeds": "100",
                "pareto": done and trial % 2 == 0,
                "duplicate_of": None,
                "stages": f"pretrain-{trial:08x}" if done else "",
                "error": "mse_3 became nan at step 40" if state == "failed" else None,
                **{f"params_{name}": params[name] for name in NAMES},
            }
        )
    trials = DataFrame(rows)
    completed = int((trials["state"] == "complete").sum())
    shares = noise.dirichlet(np.ones(len(NAMES)))
    given: dict[str, Any] = {
        "trials": trials,
        "curves": DataFrame(curves, columns=["trial", "epoch", "score"]),
        "importances": DataFrame(
            [
                (evaluator, objective, name, share, completed)
                for objective in objectives
                for evaluator in ("fanova", "ped_anova")
                for name, share in zip(NAMES, shares, strict=True)
                if (evaluator, name) != ("fanova", "barlow.width")
            ],
            columns=["evaluator", "objective", "parameter", "importance", "trials"],
        ),
        "objectives": objectives,
        "metric": "auroc",
        "fraction": 0.06,
        "block": 4,
        "logs": frozenset({"mse.scale", "learning_rate"}),
        "duplicates": 2,
        "notes": ("fanova leaves out barlow.width: active in <3 trials",),
    }
    return SearchFindings(**{**given, **changes})


def empty(states: Sequence[str]) -> SearchFindings:
    """A search of which nothing completed: so many trials in these states."""
    made = search(len(states))
    trials = made.trials.assign(state=list(states), score=np.nan, start=None)
    return search(trials=trials, curves=made.curves.iloc[:0], importances=made.importances.iloc[:0], notes=())


def _params(trial: int, noise: np.random.Generator) -> dict[str, Any]:
    loss = ("none", "mse", "barlow")[trial] if trial < 3 else str(noise.choice(["none", "mse", "barlow", "both"]))
    blocks = dict.fromkeys(f"block_{b}" for b in (1, 2, 3, 4)) if loss == "none" else {}
    if loss != "none":
        blocks = {f"block_{b}": trial < 3 or bool(noise.random() < 0.6) for b in (1, 2, 3, 4)}
    return {
        "loss": loss,
        **blocks,
        "mse.scale": float(10 ** noise.uniform(-2, 1)) if loss in ("mse", "both") else None,
        "barlow.width": int(noise.choice([64, 128, 256])) if loss in ("barlow", "both") else None,
        "learning_rate": 0.03 if trial < 3 else float(10 ** noise.uniform(-2, 0)),
    }


def _score(params: dict[str, Any]) -> float:
    two, three = bool(params["block_2"]), bool(params["block_3"])
    return 0.86 + 0.02 * two + 0.02 * three + 0.01 * (two and three)
