"""What a study's pretrainings and fine-tunings will take here, measured in a few steps of each (`--measure`)."""

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
from tune_jobs.machine import GIB, available_cores
from tune_jobs.memory import alike, device_and_memory, require_room, share_of, unfinished
from tune_jobs.plan import Plan
from tune_jobs.room import here, totals
from tune_jobs.stage import Stage
from tune_jobs.store import Store

if TYPE_CHECKING:
    pass


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
class ExpectedFinetuning:
    """What one fine-tuning on a share of the labels will take here, whichever encoder it starts from."""

    mode: str
    arch: str  # of the encoder
    label_fraction: float
    images: int  # that it trains on
    step_seconds: float
    epoch_seconds: float  # of training steps
    seconds: float  # of the whole run, where it is not stopped early: steps, evaluations, intervals
    peak_memory: int | None  # as a pretraining's
    left: int  # such fine-tunings that are not finished


@dataclass(frozen=True)
class Rehearsed:
    """What `--measure` found."""

    device: str
    cores: float
    memory: int  # bytes that this machine, or its accelerator, has
    at_once: int  # pretrainings
    arms: tuple[Expected, ...]
    finetunings_at_once: int = 1
    finetunings: tuple[ExpectedFinetuning, ...] = ()
    slow_start: bool = False  # whether each pretraining starts workers of its own

    @property
    def seconds(self) -> float:
        """Of all pretrainings that are left, so many at once."""
        return sum(each.seconds * each.left for each in self.arms) / self.at_once

    @property
    def finetuning_seconds(self) -> float:
        """Of all fine-tunings that are left, so many at once."""
        return sum(each.seconds * each.left for each in self.finetunings) / self.finetunings_at_once

    @property
    def lines(self) -> Iterator[str]:
        """To be printed below the plan."""
        from tune_jobs.watch import duration

        if not self.arms and not self.finetunings:
            yield "measured: nothing, for every pretraining and fine-tuning is finished"
            return
        yield f"measured on {self.device}, {self.cores:g} cores, {self.memory / GIB:.1f} GiB"
        if self.arms:
            yield _line(f"pretraining, {self.at_once} at once", "a step", "an epoch", "a run", "memory", "runs left")
            for each in self.arms:
                yield self._costs(each.arm, each)
        if self.finetunings:
            head = f"fine-tuning, {self.finetunings_at_once} at once"
            yield _line(head, "a step", "an epoch", "a run", "memory", "runs left")
            archs = {each.arch for each in self.finetunings}
            for tuning in self.finetunings:
                name = f"{tuning.mode} {100 * tuning.label_fraction:g}%"
                yield self._costs(f"{name} {tuning.arch}" if len(archs) > 1 else name, tuning)
        start = ", and the start of each, 10 to 30 s" if self.slow_start else ""
        yield (
            f"  all that are left: about {duration(self.seconds)} of pretraining{start}; at most "
            f"{duration(self.finetuning_seconds)} of fine-tuning, less where it stops early"
        )
        together = self.at_once * max(each.peak_memory or 0 for each in self.arms)
        if self.device == "cpu" and together > self.memory:
            needed = f"{together / GIB:.1f} GiB"
            yield f"  note: {self.at_once} at once need {needed}, more than there is; raise resources.cpus"

    @staticmethod
    def _costs(name: str, each: Expected | ExpectedFinetuning) -> str:
        from tune_jobs.watch import duration

        peak = "unknown" if each.peak_memory is None else f"{each.peak_memory / GIB:.2f} GiB"
        step = f"{each.step_seconds:.3f} s"
        return _line(name, step, duration(each.epoch_seconds), duration(each.seconds), peak, str(each.left))


def _line(name: str, *columns: str) -> str:
    return f"  {name:24} " + " ".join(f"{text:>11}" for text in columns)


def rehearse(full: Plan, store: Store) -> Rehearsed:
    """Measure a few steps of each pretraining and fine-tuning that is not finished and costs something else.

    In as many processes at once as will run. Raises InputError where the dataset is not packed, or where an arm's step
    does not fit; StageError where one fails.
    """
    pretrainings, finetunings = unfinished(full, store, "pretrain"), unfinished(full, store, "finetune")
    device, memory = device_and_memory([*pretrainings, *finetunings])
    at_once, finetunings_at_once = _at_once(pretrainings), _at_once(finetunings)
    return Rehearsed(
        device,
        available_cores(),
        memory,
        at_once,
        tuple(_pretraining(stages, store, device, memory, at_once) for stages in alike(pretrainings)),
        finetunings_at_once,
        tuple(
            expected
            for stages in alike(finetunings, but=("seed", "fraction", "labels"), encoders=True)
            for expected in _finetuning(stages, store, device, finetunings_at_once)
        ),
        any(stage.demand.workers > 1 for stage in pretrainings),
    )


def _pretraining(stages: Sequence[Stage], store: Store, device: str, memory: int, at_once: int) -> Expected:
    """What each of these takes, which differ in their seed alone."""
    from ssl_core.data.dataset import TRAIN
    from tune_jobs.work import opened, pretrain_config

    stage = stages[0]
    data, workers = _packed(stage, store), stage.demand.workers
    dataset, config = opened(data), pretrain_config(stage)
    require_room(stage, dataset, memory, device)
    told = _told(stage, data, device, config=dataclasses.asdict(share_of(config, workers)))
    answers = _side_by_side(told, 1 if device == "cuda" else at_once * workers)
    step = _median(answers, "step_seconds")
    epoch = step * (len(dataset.rows(TRAIN)) // config.batch_size)
    return Expected(
        arm=str(stage.labels["arm"]),
        steps=min(a["steps"] for a in answers),
        step_seconds=step,
        epoch_seconds=epoch,
        seconds=config.epochs * (epoch + _median(answers, "validation_seconds") / workers),
        peak_memory=_peak(answers),
        left=len(stages),
    )


def _finetuning(stages: Sequence[Stage], store: Store, device: str, at_once: int) -> Iterator[ExpectedFinetuning]:
    """What those of each share of the labels take; all of them differ in their seed, labels and encoder's weights."""
    from ssl_core.config import FinetuneConfig
    from ssl_core.data.labels import label_subset
    from ssl_core.rehearsal import FinetuneRehearsal
    from tune_jobs.work import opened, typed

    data, workers = _packed(stages[0], store), stages[0].demand.workers
    dataset, by_fraction = opened(data), dict[float, list[FinetuneConfig]]()
    for stage in stages:
        config = typed(FinetuneConfig, dict(stage.config))
        by_fraction.setdefault(config.fraction, []).append(config)
    images = {
        fraction: len(
            label_subset(
                dataset.labels,
                dataset.splits,
                fraction=fraction,
                seed=configs[0].seed,
                config=configs[0].labels,
                groups=dataset.groups,
            )
        )
        for fraction, configs in by_fraction.items()
    }
    most = by_fraction[max(by_fraction)][0]
    batches = sorted({min(n, most.batch_size) for n in images.values()})
    parts = {size: math.ceil(size / workers) for size in batches}
    told = _told(stages[0], data, device, finetune=dataclasses.asdict(most), sizes=sorted(set(parts.values())))
    answers = _side_by_side(told, 1 if device == "cuda" else at_once * workers)
    found = FinetuneRehearsal(
        {size: statistics.median(a["step_seconds"][str(part)] for a in answers) for size, part in parts.items()},
        _median(answers, "selection_seconds") / workers,
        answers[0]["fixed"],
        _median(answers, "scoring_seconds") / workers,
        _peak(answers),
    )
    for fraction, configs in sorted(by_fraction.items()):
        config, n = configs[0], images[fraction]
        step = found.step_seconds[min(n, config.batch_size)]
        yield ExpectedFinetuning(
            mode=config.mode,
            arch=config.encoder.arch,
            label_fraction=fraction,
            images=n,
            step_seconds=step,
            epoch_seconds=step * math.ceil(n / config.batch_size),
            seconds=found.seconds(config, n),
            peak_memory=found.peak_memory,
            left=len(configs),
        )


def _told(stage: Stage, data: Path, device: str, **of_kind: Any) -> dict[str, Any]:
    """What a process of the rehearsal is told."""
    return {"data": str(data), "device": device, "cpus": stage.demand.cpus, **of_kind}


def _median(answers: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.median(float(answer[name]) for answer in answers)


def _peak(answers: Sequence[Mapping[str, Any]]) -> int | None:
    return max((a["peak_memory"] for a in answers if a["peak_memory"] is not None), default=None)


def _at_once(stages: Sequence[Stage]) -> int:
    """How many of the stages, which ask for the same, run side by side on a local Ray."""
    if not stages:
        return 1
    machine = here()
    cpus, accelerators = totals(stages[0].demand, machine)
    rooms = [machine.cpus / cpus] + ([machine.accelerators / accelerators] if accelerators else [])
    return max(1, min(int(min(rooms)), len(stages)))


def _packed(stage: Stage, store: Store) -> Path:
    """Folder of the dataset that a pretraining is on."""
    try:
        return store.find("data", stage.inputs["data"])
    except StageError as error:
        raise InputError(
            "steps are measured on the packed dataset, which is not there yet; run `intermoco data` first"
        ) from error


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
    found = [json.loads(out.splitlines()[-1]) for out, _ in answers]
    for answer in found:
        if "refused" in answer:
            raise InputError(answer["refused"])
    return found


def _main() -> None:
    """One process of a rehearsal: says that it is there, then what to do on stdin, the answer on stdout."""
    import ray.train.torch  # noqa: F401  # as much as a process of Ray holds that does stages of all kinds in turn
    import torch

    from ssl_core.config import FinetuneConfig
    from ssl_core.data.dataset import Dataset
    from ssl_core.rehearsal import rehearse as steps_of
    from ssl_core.rehearsal import rehearse_finetuning
    from tune_jobs.work import typed

    print("ready", flush=True)
    told = json.loads(sys.stdin.read())
    torch.set_num_threads(max(1, int(told["cpus"])))
    dataset, device = Dataset.open(Path(told["data"])), torch.device(told["device"])
    found: Any
    try:
        if "finetune" in told:
            found = rehearse_finetuning(typed(FinetuneConfig, told["finetune"]), dataset, device, told["sizes"])
        else:
            found = steps_of(typed(PretrainConfig, told["config"]), dataset, device)
    except InputError as error:  # as the stage itself would say it
        print(json.dumps({"refused": str(error)}))
    else:
        print(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    _main()
