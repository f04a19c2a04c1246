"""Pretraining through Ray Train: the loop knows nothing of it, a reporter carries its checkpoints."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.train import CheckpointConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import Report, typed

#: A worker that dies (killed, its node lost) costs at most this many restarts from the last checkpoint; an error in
#: the training itself is not tried again.
RESTARTS = 3
CHECKPOINT = "checkpoint.pt"
LEAVES = ("encoder.pt", "metrics.jsonl")


class OneWorker(TorchConfig):  # type: ignore[misc]  # ray has no types
    """A lone worker needs no process group, whose rendezvous would listen on every interface of the machine."""

    @property
    def backend_cls(self) -> Any:
        return Backend


def train(stage: Stage, store: Store, data: Path, work: Path, demand: Demand, report: Report) -> dict[str, Any]:
    """Pretrain with `demand.workers` Ray Train workers; leave encoder and metrics in `work`.

    The run's name is the stage's identity, so a driver that was killed finds its last checkpoint again. Returns what
    the manifest should say: the epoch that this run resumed from, 0 for the start.
    """
    folder = store.train_folder(stage)
    accelerators = demand.accelerators or 0.0
    config = dict(stage.config)
    config.pop("workers", None)
    settings = {
        "config": config,
        "data": str(data),
        "work": str(work),
        "report": report,
        "cpus": demand.cpus,
        "device": None if accelerators else "cpu",
        "checkpoint_seconds": demand.checkpoint_seconds,
    }
    for attempt in range(RESTARTS + 1):
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config=settings,
            torch_config=OneWorker() if demand.workers == 1 else TorchConfig(),
            scaling_config=ScalingConfig(
                num_workers=demand.workers,
                use_gpu=accelerators > 0,
                resources_per_worker={"CPU": demand.cpus} | ({"GPU": accelerators} if accelerators else {}),
            ),
            run_config=RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )
        try:
            resumed = trainer.fit().return_value
            break
        except WorkerGroupError as error:
            own = [e for e in error.worker_failures.values() if not _is_loss_of_worker(e)]
            if own:
                raise own[0] from None
            if attempt == RESTARTS:
                raise
    missing = [name for name in LEAVES if not (work / name).is_file()]
    if missing:
        raise FileNotFoundError(f"training ended without leaving {missing} in {work}")
    shutil.rmtree(folder, ignore_errors=True)
    return {"resumed_epoch": resumed}


def _is_loss_of_worker(error: BaseException) -> bool:
    from ray.exceptions import RayActorError, RaySystemError, WorkerCrashedError

    return isinstance(error, RayActorError | RaySystemError | WorkerCrashedError)


def _train_worker(settings: dict[str, Any]) -> int:
    """One Ray Train worker: fetch the last checkpoint if there is one, run the loop, leave the results.

    Returns the epoch that the run resumed from.
    """
    import torch
    from ray.train import get_checkpoint, get_context

    from ssl_core.config import PretrainConfig
    from ssl_core.data.dataset import Dataset
    from ssl_core.pretraining import pretrain

    torch.set_num_threads(max(1, int(settings["cpus"])))
    rank = get_context().get_world_rank()
    with tempfile.TemporaryDirectory(prefix="intermoco-") as name:
        local = Path(name)
        checkpoint, resumed = get_checkpoint(), 0
        if checkpoint is not None:
            resumed = int(checkpoint.get_metadata()["epoch"])
            with checkpoint.as_directory() as saved:
                shutil.copy2(Path(saved) / CHECKPOINT, local / CHECKPOINT)
        pretrain(
            typed(PretrainConfig, settings["config"]),
            Dataset.open(Path(settings["data"])),
            local,
            RayTrainReporter(settings["report"], rank),
            checkpoint_seconds=settings["checkpoint_seconds"],
            device=settings["device"],
        )
        if rank == 0:
            for leaf in LEAVES:
                shutil.copy2(local / leaf, Path(settings["work"]) / leaf)
        return resumed


class RayTrainReporter:
    """Carries the loop's metrics to the driver and its checkpoints to Ray Train. All ranks reach `checkpoint`."""

    def __init__(self, report: Report, rank: int) -> None:
        self.report, self.rank = report, rank
        self.last: dict[str, float] = {}

    def metrics(self, values: Mapping[str, float]) -> None:
        self.last = dict(values)
        if self.rank == 0:
            self.report(self.last)

    def checkpoint(self, path: Path) -> None:
        import ray.train

        if self.rank != 0:
            ray.train.report(self.last)
            return
        with tempfile.TemporaryDirectory(prefix="intermoco-") as folder:
            shutil.copy2(path, Path(folder) / CHECKPOINT)
            saved = ray.train.Checkpoint.from_directory(folder)
            saved.set_metadata({"epoch": self.last["epoch"]})
            ray.train.report(self.last, checkpoint=saved)
