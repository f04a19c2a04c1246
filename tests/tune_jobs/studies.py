"""Small studies that the tests of this folder plan and run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from tune_jobs.resolution import resolve
from tune_jobs.study import Study

MINIATURE: dict[str, Any] = {
    "study": "miniature",
    "dataset": {"source": "digits"},
    "seeds": [0, 1],
    "encoder": {"arch": "resnet18", "stem": "small"},
    "augment": {"crop": [0.6, 1.0], "rotate": 15, "blur": 0.0},
    "pretrain": {"epochs": 1, "batch_size": 256, "moco": {"queue": 256}},
    "arms": {"moco": {}, "moco_mse": {"mse": {"blocks": [1, 4]}}, "supervised": "scratch"},
    "downstream": {
        "bootstrap": 20,
        "fractions": [0.06, 1.0],
        "linear": {"epochs": 1, "min_steps": 2, "evaluations": 1},
        "full": {"epochs": 1, "min_steps": 2, "evaluations": 1},
    },
    "probe": {"epochs": 2, "bootstrap": 20},
    "reuse": {"permutations": 2, "sets": 2},
}


def raw(**changes: Any) -> dict[str, Any]:
    """The miniature study's YAML values, with top-level sections replaced."""
    return {**copy.deepcopy(MINIATURE), **changes}


def miniature(**changes: Any) -> Study:
    return resolve(raw(**changes))


def few_digits(folder: Path) -> dict[str, Any]:
    """The `dataset` section of 180 real digits, 0, 1 and 2 in turn, written to the folder; 126 of them to train on.

    Where a test runs whole studies and asks nothing of their size: the 1,797 of `digits` take ten times as long.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    rows = np.stack([np.flatnonzero(source.target == label)[:60] for label in range(3)]).T.ravel()
    images = np.round(source.images[rows] / 16 * 255).astype(np.uint8)
    np.savez(folder / "digits.npz", images=images, labels=source.target[rows])
    return {"source": "npz", "path": str(folder / "digits.npz")}
