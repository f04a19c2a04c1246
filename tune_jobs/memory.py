"""Studies that the memory here cannot hold are refused before anything runs, with what would fit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ssl_core.config import PretrainConfig
from ssl_core.errors import InputError
from ssl_core.feasibility import settle
from tune_jobs.machine import GIB, available_memory
from tune_jobs.plan import Plan
from tune_jobs.room import here, totals
from tune_jobs.stage import Stage
from tune_jobs.store import Store
from tune_jobs.work import pretrain_config

if TYPE_CHECKING:
    from ssl_core.data.config import DatasetConfig
    from ssl_core.data.dataset import Dataset

#: Bytes that a stage's process takes before it has made a tensor: Python, torch, Ray. Measured: 0.75 to 0.9 GiB.
PROCESS = int(0.8 * GIB)
#: What the allocator and single operations take beyond what is counted, measured on CPUs: 4 to 17 %.
MARGIN = 1.15
#: Bytes that no encoder's step keeps of a pixel: ResNet-50 with the small stem in float32 keeps 27 thousand. Below it
#: nothing has to be counted, which would cost a study's driver the import of torch.
PIXEL = 32 * 1024


def require_memory(full: Plan, store: Store, datasets: Mapping[DatasetConfig, Dataset]) -> None:
    """InputError for the first arm with a pretraining left that this machine's memory cannot hold, be it alone.

    Counts what a step cannot do without, so what it refuses could never run. `datasets` are the plan's, packed.
    """
    left = unfinished(full, store, "pretrain")
    device, memory = device_and_memory(left)
    for stage, *_ in alike(left):
        require_room(stage, datasets[full.datasets[stage.inputs["data"]]], memory, device)


def require_room(stage: Stage, dataset: Dataset, memory: int, device: str) -> None:
    """InputError where a step of a pretraining needs more than `memory` bytes at the least, with what would fit."""
    config, workers = pretrain_config(stage), stage.demand.workers
    if config.micro_batch == "auto" and device == "cuda":
        return  # it takes smaller parts by itself
    share = share_of(config, workers)
    part = share.micro_batch if isinstance(share.micro_batch, int) else share.batch_size
    if part * dataset.size**2 * PIXEL < memory / 2:
        return
    import torch

    from ssl_core import devices
    from ssl_core.data.dataset import TRAIN
    from ssl_core.footprint import footprint

    precision = devices.settled(torch.device(device), config.precision)
    settled = settle(share, len(dataset.rows(TRAIN)))
    counted = footprint(settled, dataset.channels, dataset.size, precision)
    least = counted.of(part)
    if least <= memory:
        return
    where = "this machine" if device == "cpu" else "the accelerator"
    room = memory - (PROCESS if device == "cpu" else 0)
    fits = counted.largest(room / MARGIN) * workers
    several = f" on each of {workers} workers" if workers > 1 else ""
    head = (
        f"arm {stage.labels['arm']}: a pretraining step keeps {least / GIB:.1f} GiB{several} at the least, for {part} "
        f"images of {dataset.size} px at once, and {where} has {memory / GIB:.1f} GiB"
    )
    if fits < 2 * workers:
        raise InputError(f"{head}; no batch fits: use a smaller dataset.size or encoder.arch")
    raise InputError(
        f"{head}; the largest batch that fits is about {fits}: set pretrain.micro_batch to {fits} or less (the same "
        f"losses, more time), lower pretrain.batch_size, or use a smaller dataset.size"
    )


def unfinished(full: Plan, store: Store, kind: str) -> list[Stage]:
    """Stages of a kind that are not finished."""
    return [s for s in full.by_key.values() if s.kind == kind and not store.finished(s)]


def alike(stages: Sequence[Stage], but: Sequence[str] = ("seed",), *, encoders: bool = False) -> list[list[Stage]]:
    """Those whose configurations differ in `but` alone, together; and, where `encoders`, in which one they start from.

    A fine-tuning that augments small shares of the labels otherwise is no other's like.
    """
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        values = {name: value for name, value in stage.config.items() if name not in but}
        flipped = stage.config.get("small_augment") == "flip" and stage.config["fraction"] < 1
        inputs = {role: key for role, key in stage.inputs.items() if not (encoders and role == "encoder")}
        groups.setdefault(json.dumps([values, flipped, inputs], sort_keys=True), []).append(stage)
    return list(groups.values())


def device_and_memory(stages: Sequence[Stage]) -> tuple[str, int]:
    """The device that pretrainings run on here, and the bytes of its memory."""
    if not any(totals(stage.demand, here())[1] for stage in stages):
        return "cpu", available_memory()
    import torch

    each = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return "cuda", min(int(device.total_memory) for device in each)


def share_of(config: PretrainConfig, workers: int) -> PretrainConfig:
    """What the largest of the workers does of a step, alone. What they say to each other is not in it."""
    if workers == 1:
        return config
    micro = config.micro_batch
    return dataclasses.replace(
        config,
        batch_size=math.ceil(config.batch_size / workers),
        micro_batch=math.ceil(micro / workers) if isinstance(micro, int) else micro,
        batch_norm="worker",
    )
