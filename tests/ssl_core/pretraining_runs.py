"""Pretraining in seconds: a small encoder, 8 px digits, two steps an epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssl_core.config import AugmentConfig, BarlowConfig, EncoderConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.data.dataset import Dataset
from ssl_core.pretraining import pretrain
from ssl_core.resume import position

CPU = torch.device("cpu")
#: Looks in an epoch of `config`: after each of two steps, and at its end.
LOOKS = 3
TIMINGS = ("views_per_second", "epoch_seconds")


def config(**changes: Any) -> PretrainConfig:
    """2 steps an epoch on the toy digits."""
    settings: dict[str, Any] = {
        "encoder": EncoderConfig(arch="resnet18", stem="small"),
        "moco": MocoConfig(queue=20, dim=8),
        "mse": MseConfig(scale=0.25),
        "barlow": BarlowConfig(blocks=(4,), width=6, scale=5e-5),
        "augment": AugmentConfig(crop=(0.5, 1.0), flip=0.5),
        "batch_size": 16,
        "epochs": 4,
        "precision": "float32",
    }
    return PretrainConfig(**settings | changes)


class Recorder:
    """A reporter that remembers, and stops the run as a lost machine would, with a checkpoint just before.

    `stop_at` is the number of the look, from 1, at which it does: the loop looks after each step and each epoch.
    """

    def __init__(self, stop_at: int | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self.checkpoints: list[tuple[int, int]] = []  # (epochs, steps) in each
        self.stop_at, self.looks = stop_at, 0

    def metrics(self, values: Mapping[str, float]) -> None:
        self.rows.append(dict(values))

    def checkpoint(self, path: Path) -> None:
        self.checkpoints.append(position(path))
        if self.looks == self.stop_at:
            raise KeyboardInterrupt

    def urgent(self) -> bool:
        self.looks += 1
        return self.looks == self.stop_at


def run(config: PretrainConfig, dataset: Dataset, workdir: Path, reporter: Recorder, seconds: float = 1000) -> None:
    workdir.mkdir(exist_ok=True)
    pretrain(config, dataset, workdir, reporter, checkpoint_seconds=seconds, device="cpu")


def timeless(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def different(a: Any, b: Any, key: str = "") -> list[str]:
    """Paths of the leaves of nested dicts and lists that differ, to the bit."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        parts = [(k, a.get(k), b.get(k)) for k in {**a, **b}]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        parts = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        return [] if same else [key]
    return [path for k, x, y in parts for path in different(x, y, f"{key}/{k}")]
