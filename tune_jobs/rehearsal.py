"""What a study's pretrainings need and take: counted before any runs, or measured in a few steps (`--measure`)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.config import PretrainConfig
from ssl_core.errors import InputError, StageError
from ssl_core.feasibility import settle
from tune_jobs.machine import GIB, available_cores, available_memory
from tune_jobs.plan import Plan
from tune_jobs.room import here, totals
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store

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


@dataclass(frozen=True)
class Expected:
    """What one pretraining of an arm will take here."""

    arm: str
    steps: int  # that were measured, in each process
    step_seconds: float
    epoch_seconds: float  # of training steps, as `epoch_seconds` in the metrics
    seconds: float  # of all epochs, validation included
    peak_memory: int | None  # bytes of a worker: on an accelerator of tensors, else of its process
    left: int  # such pretrainings that are not finished


@dataclass(frozen=True)
class Rehearsed:
    """What `--measure` found."""

    device: str
    cores: float
    memory: int  # bytes that this machine, or its accelerator, has
    at_once: int  # pretrainings
    arms: tuple[Expected, ...]

    @property
    def seconds(self) -> float:
        """Of all pretrainings that are left, so many at once."""
        return sum(each.seconds * each.left for each in self.arms) / self.at_once

    @property
    def lines(self) -> Iterator[str]:
        """To be printed below the plan."""
        from tune_jobs.watch import duration

        if not self.arms:
            yield "measured: nothing, for every pretraining is finished"
            return
        at_once = f"{self.at_once} pretrainings at once" if self.at_once > 1 else "one pretraining at a time"
        yield f"measured on {self.device}, {self.cores:g} cores, {self.memory / GIB:.1f} GiB, {at_once}"
        yield f"  {'arm':24} {'a step':>9} {'an epoch':>10} {'a run':>10} {'memory':>10}  runs left"
        for each in self.arms:
            peak = "unknown" if each.peak_memory is None else f"{each.peak_memory / GIB:.2f} GiB"
            yield (
                f"  {each.arm:24} {each.step_seconds:7.2f} s {duration(each.epoch_seconds):>10} "
                f"{duration(each.seconds):>10} {peak:>10}  {each.left}"
            )
        yield f"  all pretrainings that are left: about {duration(self.seconds)}, and the start of each, 10 to 30 s"
        together = self.at_once * max(each.peak_memory or 0 for each in self.arms)
        if self.device == "cpu" and together > self.memory:
            needed = f"{together / GIB:.1f} GiB"
            yield f"  note: {self.at_once} at once need {needed}, more than there is; raise resources.cpus"


def rehearse(full: Plan, store: Store) -> Rehearsed:
    """Measure a few steps of each arm's pretraining that is not finished, as many processes at once as will run.

    Raises InputError where the dataset is not packed, or where an arm's step does not fit; StageError where one fails.
    """
    from ssl_core.data.dataset import TRAIN
    from tune_jobs.work import opened

    left = _left(full, store)
    device, memory = _machine(left)
    at_once = min(_at_once(left[0].demand), len(left)) if left else 1
    found = []
    for stages in _alike(left):
        stage = stages[0]
        data = _packed(stage, store)
        dataset, config = opened(data), _config(stage)
        _require_room(stage, dataset, memory, device)
        told = {
            "config": dataclasses.asdict(_share(config, stage.demand.workers)),
            "data": str(data),
            "device": device,
            "cpus": stage.demand.cpus,
        }
        answers = _side_by_side(told, 1 if device == "cuda" else at_once * stage.demand.workers)
        step = statistics.median(a["step_seconds"] for a in answers)
        epoch = step * (len(dataset.rows(TRAIN)) // config.batch_size)
        validation = statistics.median(a["validation_seconds"] for a in answers) / stage.demand.workers
        peaks = [a["peak_memory"] for a in answers if a["peak_memory"] is not None]
        found.append(
            Expected(
                arm=str(stage.labels["arm"]),
                steps=min(a["steps"] for a in answers),
                step_seconds=step,
                epoch_seconds=epoch,
                seconds=config.epochs * (epoch + validation),
                peak_memory=max(peaks, default=None),
                left=len(stages),
            )
        )
    return Rehearsed(device, available_cores(), memory, at_once, tuple(found))


def require_memory(full: Plan, store: Store, datasets: Mapping[DatasetConfig, Dataset]) -> None:
    """InputError for the first arm with a pretraining left that this machine's memory cannot hold, be it alone.

    Counts what a step cannot do without, so what it refuses could never run. `datasets` are the plan's, packed.
    """
    left = _left(full, store)
    device, memory = _machine(left)
    for stage, *_ in _alike(left):
        _require_room(stage, datasets[full.datasets[stage.inputs["data"]]], memory, device)


def _require_room(stage: Stage, dataset: Dataset, memory: int, device: str) -> None:
    """InputError where a step of a pretraining needs more than `memory` bytes at the least, with what would fit."""
    config, workers = _config(stage), stage.demand.workers
    if config.micro_batch == "auto" and device == "cuda":
        return  # it takes smaller parts by itself
    share = _share(config, workers)
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


def _left(full: Plan, store: Store) -> list[Stage]:
    """Pretrainings that are not finished."""
    return [s for s in full.by_key.values() if s.kind == "pretrain" and not store.finished(s)]


def _alike(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Those that differ in their seed alone, together."""
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        values = {name: value for name, value in stage.config.items() if name != "seed"}
        groups.setdefault(json.dumps([values, dict(stage.inputs)], sort_keys=True), []).append(stage)
    return list(groups.values())


def _machine(stages: Sequence[Stage]) -> tuple[str, int]:
    """The device that pretrainings run on here, and the bytes of its memory."""
    if not any(totals(stage.demand, here())[1] for stage in stages):
        return "cpu", available_memory()
    import torch

    each = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return "cuda", min(int(device.total_memory) for device in each)


def _at_once(demand: Demand) -> int:
    """Pretrainings that run side by side on a local Ray."""
    machine = here()
    cpus, accelerators = totals(demand, machine)
    rooms = [machine.cpus / cpus] + ([machine.accelerators / accelerators] if accelerators else [])
    return max(1, int(min(rooms)))


def _packed(stage: Stage, store: Store) -> Path:
    """Folder of the dataset that a pretraining is on."""
    try:
        return store.find("data", stage.inputs["data"])
    except StageError as error:
        raise InputError(
            "steps are measured on the packed dataset, which is not there yet; run `intermoco data` first"
        ) from error


def _config(stage: Stage) -> PretrainConfig:
    from tune_jobs.work import typed

    return typed(PretrainConfig, {name: value for name, value in stage.config.items() if name != "workers"})


def _share(config: PretrainConfig, workers: int) -> PretrainConfig:
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


def _side_by_side(told: dict[str, Any], processes: int) -> list[dict[str, Any]]:
    """The same rehearsal in so many processes at once, for a stage's neighbours slow it; their answers.

    They begin together, when all have imported what they need, which takes longer than their steps may.
    """
    command, pipe = [sys.executable, "-m", "tune_jobs.rehearsal"], subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(processes)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # nothing where it died, which its exit tells
        for process in started:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(told))
                process.stdin.close()
            process.stdin = None
        answers = [process.communicate() for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, answers, strict=True):
        if process.returncode:
            why = errors.strip().splitlines()[-1] if errors.strip() else "its process was killed, maybe for memory"
            raise StageError(f"a step could not be measured: {why}")
    return [json.loads(out.splitlines()[-1]) for out, _ in answers]


def _main() -> None:
    """One process of a rehearsal: says that it is there, then what to do on stdin, the answer on stdout."""
    import ray.train.torch  # noqa: F401  # part of what a worker's process holds
    import torch

    from ssl_core.data.dataset import Dataset
    from ssl_core.rehearsal import rehearse as steps_of
    from tune_jobs.work import typed

    print("ready", flush=True)
    told = json.loads(sys.stdin.read())
    torch.set_num_threads(max(1, int(told["cpus"])))
    found = steps_of(
        typed(PretrainConfig, told["config"]), Dataset.open(Path(told["data"])), torch.device(told["device"])
    )
    print(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    _main()
