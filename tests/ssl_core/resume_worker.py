"""One of several workers (test_resume.py).

Reads `data` and `alone.pt`, one worker's checkpoint, in their folder; leaves a folder for each run.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ssl_core import due
from ssl_core.config import AugmentConfig, BarlowConfig, EncoderConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.data.dataset import Dataset
from ssl_core.due import Due
from ssl_core.pretraining import pretrain

#: Looks at which the run is lost, counted anew after each resume: after step 1 of 4, and after step 3.
LOST_AT = (1, 3)
CPU = torch.device("cpu")


def config(**changes: Any) -> PretrainConfig:
    """Two epochs of two steps on the toy digits; batches of 18 are dealt evenly to two workers and to three."""
    settings: dict[str, Any] = {
        "encoder": EncoderConfig(arch="resnet18", stem="small"),
        "moco": MocoConfig(queue=20, dim=8, momentum=0.9),
        "mse": MseConfig(blocks=(1, 4)),
        "barlow": BarlowConfig(blocks=(2,), width=6, scale=0.1),
        "augment": AugmentConfig(flip=0.5),
        "batch_size": 18,
        "learning_rate_batch": 18,
        "epochs": 2,
        "warmup_epochs": 0.0,
        "precision": "float32",
        "keep": "best",
    }
    return PretrainConfig(**settings | changes)


class Lost(Exception):
    """A machine that is gone."""


class Reporter:
    """Asks for a checkpoint at a look, and is lost with it."""

    def __init__(self, lost_at: int | None = None, *, asks: bool = True) -> None:
        self.lost_at, self.asks, self.looks = lost_at, asks, 0

    def metrics(self, values: Mapping[str, float]) -> None:
        pass

    def checkpoint(self, path: Path) -> None:
        if self.looks == self.lost_at:
            raise Lost(path)

    def urgent(self) -> bool:
        self.looks += 1
        return self.asks and self.looks == self.lost_at


def looks_while_stepping(rank: int) -> tuple[int, float]:
    """(looks, seconds) of 200 steps of 5 ms each. At the first look worker 0 alone wants to save; then all do."""
    asked, began = 0, time.monotonic()

    def urgent() -> bool:
        nonlocal asked
        asked += 1
        return rank == 0 and asked == 1

    pace, saves = Due(1000, urgent, CPU), []
    for _ in range(200):
        time.sleep(0.005)
        saves.append(pace.after_step())
    assert saves == [True] + [False] * 199
    return asked, time.monotonic() - began


def work(rank: int, world: int, folder: Path) -> None:
    dataset = Dataset.open(folder / "data")
    logging.basicConfig(filename=folder / f"log_{rank}", level=logging.WARNING)

    def run(name: str, reporter: Reporter, arm: PretrainConfig) -> None:
        (folder / name).mkdir(exist_ok=True)
        dist.barrier()
        pretrain(arm, dataset, folder / name, reporter, checkpoint_seconds=1000, device="cpu")

    looks, seconds = looks_while_stepping(rank)
    due.LOOK_SECONDS = 0.0  # after each step
    run("whole", Reporter(), config())
    for part, look in enumerate(LOST_AT):
        try:
            run("lost", Reporter(look, asks=rank == 1), config())
        except Lost:
            if rank == 0:
                shutil.copy2(folder / "lost/checkpoint.pt", folder / f"lost_{part}.pt")
    run("lost", Reporter(), config())

    if rank == 0:
        (folder / "fewer").mkdir()
        shutil.copy2(folder / "alone.pt", folder / "fewer/checkpoint.pt")
    dist.barrier()
    run("fewer", Reporter(), config())
    (folder / f"looks_{rank}").write_text(f"{looks} {seconds}")
