"""What a pretraining or a fine-tuning will cost, from a few of its steps on the machine that is to do it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssl_core import devices
from ssl_core.batches import statistics
from ssl_core.config import FinetuneConfig, Precision, PretrainConfig
from ssl_core.data.dataset import TEST, VAL, Dataset
from ssl_core.devices import PeakMemory
from ssl_core.downstream import batch_stream, evaluation_steps, planned_steps
from ssl_core.encoder import build_encoder
from ssl_core.finetuning import EVALUATED, Finetuning, intervals
from ssl_core.pretraining import Pretraining

#: Batches of each split that a rehearsed fine-tuning evaluates.
SAMPLED = 4


@dataclass(frozen=True)
class Rehearsal:
    """Seconds and bytes of a pretraining."""

    steps: int  # that were measured
    step_seconds: float  # their median
    validation_seconds: float  # of the whole split, after an epoch
    peak_memory: int | None  # of the whole process, on an accelerator of tensors alone; None: the system does not tell


@dataclass(frozen=True)
class FinetuneRehearsal:
    """Seconds and bytes of fine-tunings that differ in their labels alone."""

    step_seconds: dict[int, float]  # their median, by the images of a batch
    selection_seconds: float  # a pass over the validation split in the training's precision
    fixed: bool  # the encoder stays as it is: that pass is needed once
    scoring_seconds: float  # of what comes last: a pass over both splits in float32, and the intervals
    peak_memory: int | None  # as a pretraining's

    def seconds(self, config: FinetuneConfig, images: int) -> float:
        """Of a whole run on so many training images, where it is not stopped early."""
        steps = planned_steps(config, images)
        passes = 1 if self.fixed else len(evaluation_steps(steps, config.evaluations))
        step = self.step_seconds[min(config.batch_size, images)]
        return steps * step + passes * self.selection_seconds + self.scoring_seconds


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
    clock = _Steps(device, steps, least, most)
    while not run.train_steps(clock.enough):
        run.close_epoch()
    rows = dataset.rows(VAL)
    first = rows[: run.config.batch_size]
    splits = dataset.splits.copy()
    splits[np.setdiff1d(rows, first)] = TEST
    run.dataset = dataclasses.replace(dataset, splits=splits)
    began = time.perf_counter()
    run.validate()
    validation = (time.perf_counter() - began) * len(rows) / len(first)
    return Rehearsal(clock.timed, clock.median(), validation, memory.read())


def rehearse_finetuning(
    config: FinetuneConfig,
    dataset: Dataset,
    device: torch.device,
    sizes: Sequence[int],
    *,
    steps: int = 5,
    least: float = 5.0,
    most: float = 30.0,
) -> FinetuneRehearsal:
    """Do a few steps of a fine-tuning on batches of each of the `sizes`, some of its evaluations, all intervals.

    The encoder's weights are random, which costs the same. The steps take as long as those of `rehearse`, those of all
    sizes together. Raises as `finetune` does.
    """
    memory, seconds = PeakMemory(device), {}
    stats = statistics(dataset, config.normalise)
    run = Finetuning(config, dataset, build_encoder(config.encoder, dataset.channels, config.seed), stats, device)
    for size in sizes:
        clock = _Steps(device, steps, least / len(sizes), most / len(sizes))
        stream = batch_stream(np.resize(run.rows, max(size, len(run.rows))), size, config.seed)
        run.train_step(0, next(stream))
        while not clock.enough():
            run.train_step(0, next(stream))
        seconds[size] = clock.median()
    whole = run.scored
    run.scored = {split: rows[: SAMPLED * config.batch_size] for split, rows in whole.items()}

    def image_seconds(split: int, precision: Precision) -> float:
        began = time.perf_counter()
        run.predict(split, precision)
        return (time.perf_counter() - began) / len(run.scored[split])

    selecting, scoring = image_seconds(VAL, config.precision), image_seconds(TEST, EVALUATED)
    known = run.model.fixed and devices.settled(device, config.precision) == EVALUATED
    images = len(whole[TEST]) + (0 if known else len(whole[VAL]))
    noise = np.random.default_rng(0).dirichlet(np.ones(dataset.n_outputs), len(whole[TEST]))
    began = time.perf_counter()
    intervals(config, dataset, whole[TEST], noise)
    scoring_seconds = images * scoring + time.perf_counter() - began
    return FinetuneRehearsal(seconds, len(whole[VAL]) * selecting, run.model.fixed, scoring_seconds, memory.read())


class _Steps:
    """When the steps of a rehearsal are enough; the first is not timed."""

    def __init__(self, device: torch.device, steps: int, least: float, most: float) -> None:
        self._device, self._steps, self._least, self._most = device, steps, least, most
        self._ends: list[float] = []

    def enough(self) -> bool:
        """To be asked after each step; so is the time."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._ends.append(time.perf_counter())
        spent = self._ends[-1] - self._ends[0]
        return (self.timed >= self._steps and spent >= self._least) or (self.timed >= 2 and spent >= self._most)

    @property
    def timed(self) -> int:
        return len(self._ends) - 1

    def median(self) -> float:
        """Seconds of a step."""
        return float(np.median(np.diff(self._ends)))
