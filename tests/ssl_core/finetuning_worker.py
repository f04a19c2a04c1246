"""One of several workers that fine-tune together. Reads `data` and `encoder.pt` in their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_core.config import FinetuneConfig
from ssl_core.data.dataset import Dataset
from ssl_core.finetuning import Finetuning, _start, finetune
from tests.ssl_core.finetuning_runs import CPU, Recorder, config

#: Of three workers: batches of 7 and 8 are shared unevenly, one of 2 leaves a worker without any.
RUNS: dict[str, FinetuneConfig] = {
    "linear": config(mode="linear", batch_size=2),
    "moving": config(mode="linear", frozen_norm="moving", batch_size=7, learning_rate=1e-5),
    "full": config(mode="full", batch_size=7, learning_rate=1e-5),
    "scratch": config(mode="scratch", batch_size=8, learning_rate=1e-5),
}


def gradients(arm: FinetuneConfig, dataset: Dataset, encoder: Path) -> dict[str, Tensor]:
    """Of a step, its loss, and batch norm's statistics after it. (Adam makes a step of any rounding in the next.)"""
    start = _start(arm, dataset, None if arm.mode == "scratch" else encoder)
    run = Finetuning(arm, dataset, *start, CPU)
    loss = run.train_step(0, run.rows[: arm.batch_size])
    found = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": b.clone() for name, b in run.model.named_buffers()} | {"loss": loss}


def work(rank: int, world: int, folder: Path) -> None:
    dataset, encoder, found = Dataset.open(folder / "data"), folder / "encoder.pt", dict[str, Any]()
    for name, arm in RUNS.items():
        workdir, recorder = folder / f"{name}-{rank}", Recorder()
        workdir.mkdir()
        rows = finetune(
            arm, dataset, workdir, recorder, encoder=encoder if arm.mode != "scratch" else None, device="cpu"
        )
        found[name] = {"gradients": gradients(arm, dataset, encoder), "rows": len(rows), "reported": recorder.rows}
    torch.save(found, folder / f"found-{rank}.pt")
