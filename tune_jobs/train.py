"""Pretraining through Ray Train: the loop knows nothing of it, a reporter carries its checkpoints."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train.torch import TorchTrainer

from ssl_core.errors import CheckpointError
from tune_jobs.attempts import NOTICED, Attempts, Pulse
from tune_jobs.cluster import WATCHER
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import CHECKPOINT, LEAVES, Evaluator, Report, typed
from tune_jobs.workers import Fit, Job, room_held, run

if TYPE_CHECKING:
    from ssl_core.devices import PeakMemory

log = logging.getLogger(__name__)

#: Of Ray Train: the checkpoints that it knows of.
SNAPSHOT = "checkpoint_manager_snapshot.json"
#: Of Ray Train: a checkpoint's folder.
_CHECKPOINT_NAME = re.compile(r"checkpoint_[A-Za-z0-9._-]+")
#: Seconds between questions whether a node is about to be taken away.
NOTICE_SECONDS = 1.0


class Stop(Exception):
    """Raised by what a worker reports to: nobody wants the rest of this training. All workers end at once."""


def train(
    stage: Stage,
    store: Store,
    data: Path,
    work: Path,
    demand: Demand,
    report: Report,
    *,
    evaluator: Evaluator | None = None,
    resumed: Callable[[int], None] | None = None,
    fit: Fit = TorchTrainer.fit,
) -> dict[str, Any]:
    """Pretrain with `demand.workers` Ray Train workers; leave encoder and metrics in `work`.

    The run's name is the stage's identity, so a driver that was killed finds its last checkpoint again. Returns what
    the manifest should say: the whole epochs and the steps that this run resumed after, 0 for the start, and the peak
    memory (bytes) of the worker that used most.

    `report`, `evaluator` and `resumed` go to the workers, so they have to be pickled. Worker 0 calls `resumed` with the
    epoch that it starts after, then `report` with each epoch's metrics, the evaluation among them.
    """
    folder = store.train_folder(stage)
    attempts = Attempts(folder)
    config = dict(stage.config)
    config.pop("workers", None)
    settings = {
        "config": config,
        "data": str(data),
        "work": str(work),
        "folder": str(folder),
        "report": report,
        "evaluator": evaluator,
        "resumed": resumed,
        "cpus": demand.cpus,
        "device": None if demand.accelerators else "cpu",
        "checkpoint_seconds": demand.checkpoint_seconds,
        "notice": os.environ.get(WATCHER) != "0",
    }

    def ended(why: str) -> bool:
        _remove_half_written(folder)
        return attempts.ended(why)

    job = Job(
        do=_train_worker,
        settings=lambda: {**settings, "left": [*_unknown_to_ray(folder), *_of_a_lone_process(folder)]},
        folder=folder,
        ended=ended,
        goes_on="from its last checkpoint",
        with_less="set resources.least_workers (with pretrain.batch_norm: sync)",
    )
    facts: dict[str, Any] = run(job, demand, store.root, fit)
    missing = [name for name in LEAVES if not (work / name).is_file()]
    if missing:
        raise FileNotFoundError(f"training ended without leaving {missing} in {work}")
    return {**facts, **attempts.facts()}


def _known_to_ray(folder: Path) -> set[str] | None:
    """Names of the checkpoints that Ray Train would go on from; None where its list cannot be read.

    Ray Train removes what it names once there is a newer checkpoint, be it `../../..`: such a list is unreadable too.
    """
    try:
        found = json.loads((folder / SNAPSHOT).read_text())
        names = {result["checkpoint_dir_name"] for result in found["checkpoint_results"]}
        return names if all(map(_CHECKPOINT_NAME.fullmatch, names)) else None
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError):
        return None


def _remove_half_written(folder: Path) -> None:
    """Remove checkpoints whose writing did not come to its end: where a disk is full, they would keep it so."""
    known = _known_to_ray(folder)
    for path in folder.glob("checkpoint_*"):
        if known is not None and path.is_dir() and path.name not in known:
            shutil.rmtree(path, ignore_errors=True)


def _unknown_to_ray(folder: Path) -> list[str]:
    """Checkpoints, the newest first, to try where Ray Train's list of them was cut short; it is removed then.

    Ray Train writes its list in place: a driver killed in that moment leaves one that no later run can read.
    """
    if _known_to_ray(folder) is not None:
        return []
    (folder / SNAPSHOT).unlink()
    return [str(path) for path in sorted(folder.glob(f"checkpoint_*/{CHECKPOINT}"), reverse=True)]


def _of_a_lone_process(folder: Path) -> list[str]:
    """The checkpoint of `tune_jobs.alone`, where the stage was begun on one machine: to try where there is no other."""
    return [str(path)] if (path := folder / CHECKPOINT).is_file() else []


def _train_worker(settings: dict[str, Any]) -> dict[str, Any] | None:
    """One Ray Train worker: fetch the last checkpoint if there is one, run the loop, leave the results.

    Returns what the manifest should say; None where the training was stopped.
    """
    import torch
    from ray.train import get_context

    from ssl_core import devices
    from ssl_core.config import PretrainConfig
    from ssl_core.data.dataset import Dataset
    from ssl_core.pretraining import pretrain

    torch.set_num_threads(max(1, int(settings["cpus"])))
    device = devices.choose(settings["device"])
    memory = devices.PeakMemory(device)
    config, dataset = typed(PretrainConfig, settings["config"]), Dataset.open(Path(settings["data"]))
    rank, workers, evaluator = get_context().get_world_rank(), get_context().get_world_size(), settings["evaluator"]
    with tempfile.TemporaryDirectory(prefix="intermoco-") as name:
        local = Path(name)
        resumed, steps = _fetch_checkpoint(local, settings["left"])
        pulse = _begin_attempt(Path(settings["folder"]), local, workers) if rank == 0 else None
        try:
            if settings["resumed"]:
                _tell(settings["resumed"], resumed, rank)
            pretrain(
                config,
                dataset,
                local,
                RayTrainReporter(settings["report"], rank, Notice() if settings["notice"] else lambda: False, pulse),
                checkpoint_seconds=settings["checkpoint_seconds"],
                device=device,
                evaluate=evaluator(config, dataset, device) if evaluator and rank == 0 else None,
            )
        except Stop:
            return None
        if rank == 0:
            for leaf in LEAVES:
                shutil.copy2(local / leaf, Path(settings["work"]) / leaf)
    return {"resumed_epoch": resumed, "resumed_step": steps, "peak_memory": most(memory)}


def _fetch_checkpoint(folder: Path, left: Iterable[str]) -> tuple[int, int]:
    """Put Ray Train's last checkpoint into `folder`; whole epochs and steps that it holds, 0 where there is none.

    `left`: files to try instead, in turn, where Ray Train knows of none.
    """
    from ray.train import get_checkpoint

    from ssl_core.resume import position

    checkpoint, local = get_checkpoint(), folder / CHECKPOINT
    if checkpoint is not None:
        with checkpoint.as_directory() as saved:
            shutil.copy2(Path(saved) / CHECKPOINT, local)
        return position(local)
    for path in left:
        shutil.copy2(path, local)
        try:
            return position(local)
        except CheckpointError as error:
            log.warning("%s: %s; trying the one before", path, error)
            local.unlink()
    return 0, 0


def _begin_attempt(folder: Path, local: Path, workers: int) -> Pulse:
    """Note an attempt that starts from the checkpoint in `local`, whose file keeps the time at which it was taken."""
    path = local / CHECKPOINT
    return Pulse(Attempts(folder).begin(path.stat().st_mtime if path.exists() else None, workers, room_held()))


def most(memory: PeakMemory) -> int | None:
    """The largest peak of all workers, each of which calls this; None where one of them does not know its own."""
    import torch

    from ssl_core import distributed

    peak = memory.read()
    peaks = distributed.gather(torch.tensor([-1 if peak is None else peak], device=memory.device))
    return None if int(peaks.min()) < 0 else int(peaks.max())


def _tell(report: Callable[[Any], None], value: Any, rank: int) -> None:
    """Let worker 0 report; Stop on all workers together where its report says so."""
    from ssl_core import distributed

    stopped = False
    if rank == 0:
        try:
            report(value)
        except Stop:
            stopped = True
    if distributed.agree(stopped):
        raise Stop


class Notice:
    """Whether Ray says that a worker's node is about to be taken away (drained: a spot instance's notice)."""

    def __init__(self) -> None:
        self._asked_at, self._said = -NOTICE_SECONDS, False

    def __call__(self) -> bool:
        """A lone worker asks Ray once a second; several ask whenever all of them are here, for the answer is common."""
        import ray.train

        from ssl_core import distributed

        if not self._said and (distributed.world() > 1 or time.monotonic() - self._asked_at >= NOTICE_SECONDS):
            self._said = ray.train.get_preemption_info() is not None
            self._asked_at = time.monotonic()
        return self._said


class RayTrainReporter:
    """Carries the loop's metrics to the driver and its checkpoints to Ray Train. All ranks reach both.

    `urgent` tells, on any rank, that its machine is about to go. `pulse` is worker 0's.
    """

    def __init__(
        self, report: Report, rank: int, urgent: Callable[[], bool] = lambda: False, pulse: Pulse | None = None
    ) -> None:
        self.report, self.rank, self._urgent, self._pulse = report, rank, urgent, pulse
        self.last: dict[str, float] = {}

    def metrics(self, values: Mapping[str, float]) -> None:
        self.last = dict(values)
        _tell(self.report, self.last, self.rank)

    def checkpoint(self, path: Path) -> None:
        import ray.train

        if self.rank != 0:
            ray.train.report(self.last)
            return
        with tempfile.TemporaryDirectory(prefix="intermoco-") as folder:
            shutil.copy2(path, Path(folder) / CHECKPOINT)
            ray.train.report(self.last, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def urgent(self) -> bool:
        said = self._urgent()
        if self._pulse:
            self._pulse.beat(why=NOTICED if said else None)
        return said
