"""What a pretraining will cost, from a few of its steps on the machine that is to do it."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from ssl_core.config import PretrainConfig
from ssl_core.data.dataset import TEST, VAL, Dataset
from ssl_core.devices import PeakMemory
from ssl_core.pretraining import Pretraining


@dataclass(frozen=True)
class Rehearsal:
    """Seconds and bytes."""

    steps: int  # that were measured
    step_seconds: float  # their median
    validation_seconds: float  # of the whole split, after an epoch
    peak_memory: int | None  # of the whole process, on an accelerator of tensors alone; None: the system does not tell


def rehearse(
    config: PretrainConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    steps: int = 5,
    least: float = 5.0,
    most: float = 30.0,
) -> Rehearsal:
    """Do a few steps of a run on the first training images, the first untimed, and a batch of validation.

    Stops after `least` seconds with `steps` done, or after `most` with two: short steps are many, for one machine's
    speed changes from second to second, and what runs beside this one has to have begun. Scales that are `auto` are not
    measured but set to 1: cost does not depend on them. Raises as `pretrain` does, MemoryExhaustedError where the
    accelerator does not hold a step.
    """
    memory = PeakMemory(device)
    run = Pretraining(config, dataset, device)
    run.moco.scales = {name: 1.0 if scale is None else scale for name, scale in run.moco.scales.items()}
    ends: list[float] = []

    def enough() -> bool:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.perf_counter())
        done, spent = len(ends) - 1, ends[-1] - ends[0]
        return (done >= steps and spent >= least) or (done >= 2 and spent >= most)

    while not run.train_steps(enough):
        run.close_epoch()
    step = statistics.median(np.diff(ends).tolist())
    rows = dataset.rows(VAL)
    first = rows[: run.config.batch_size]
    splits = dataset.splits.copy()
    splits[np.setdiff1d(rows, first)] = TEST
    run.dataset = dataclasses.replace(dataset, splits=splits)
    began = time.perf_counter()
    run.validate()
    validation = (time.perf_counter() - began) * len(rows) / len(first)
    return Rehearsal(len(ends) - 1, step, validation, memory.read())
