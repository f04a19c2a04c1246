"""Pretraining through Ray Train: the loop knows nothing of it, a reporter carries its checkpoints."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import CheckpointConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from ssl_core.errors import StageError
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import LEAVES, Report, typed

if TYPE_CHECKING:
    import torch

    from ssl_core.config import PretrainConfig
    from ssl_core.data.dataset import Dataset
    from ssl_core.pretraining import Evaluate

#: A worker that dies (killed, its node lost) costs at most this many restarts from the last checkpoint; an error in
#: the training itself is not tried again.
RESTARTS = 3
CHECKPOINT = "checkpoint.pt"

#: Makes, on worker 0, what evaluates the encoder on the way.
Evaluator = Callable[["PretrainConfig", "Dataset", "torch.device"], "Evaluate"]
#: Runs a trainer to its end.
Fit = Callable[[TorchTrainer], Any]


class Stop(Exception):
    """Raised by what a worker reports to: nobody wants the rest of this training. All workers end at once."""


class OneWorker(TorchConfig):  # type: ignore[misc]  # ray has no types
    """A lone worker needs no process group, whose rendezvous would listen on every interface of the machine."""

    @property
    def backend_cls(self) -> Any:
        return Backend


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
    the manifest should say: the epoch that this run resumed from, 0 for the start, and the peak memory (bytes) of the
    worker that used most.

    `report`, `evaluator` and `resumed` go to the workers, so they have to be pickled. Worker 0 calls `resumed` with the
    epoch that it starts after, then `report` with each epoch's metrics, the evaluation among them.
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
        "evaluator": evaluator,
        "resumed": resumed,
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
            facts: dict[str, Any] = fit(trainer).return_value
            break
        except WorkerGroupError as error:
            if attempt == RESTARTS or not all(map(_is_loss, error.worker_failures.values())):
                raise failure(error.worker_failures) from None
    missing = [name for name in LEAVES if not (work / name).is_file()]
    if missing:
        raise FileNotFoundError(f"training ended without leaving {missing} in {work}")
    shutil.rmtree(folder, ignore_errors=True)
    return facts


def failure(errors: Mapping[int, BaseException]) -> BaseException:
    """One error for what went wrong on workers, by rank: what all of them say, or each of them.

    What is a worker's own comes first; that others lost touch with it follows from that.
    """
    from tune_jobs.watch import one_line

    ordered = sorted(errors.items(), key=lambda item: (_is_loss(item[1]), item[0]))
    said = {rank: one_line(error) for rank, error in ordered}
    if len(set(said.values())) == 1:
        return ordered[0][1]
    return StageError("; ".join(f"worker {rank}: {text}" for rank, text in said.items()))


def _is_loss(error: BaseException) -> bool:
    """Whether a worker is gone or has lost touch with another, which is no error of the training itself."""
    from torch.distributed import DistError

    own = type(error).__module__.split(".")[0] == "ray"  # Ray says that the worker died, or does not answer
    return own or isinstance(error, DistError) or (type(error) is RuntimeError and "gloo" in str(error))


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
    rank, evaluator = get_context().get_world_rank(), settings["evaluator"]
    with tempfile.TemporaryDirectory(prefix="intermoco-") as name:
        local = Path(name)
        resumed = _fetch_checkpoint(local)
        try:
            if settings["resumed"]:
                _tell(settings["resumed"], resumed, rank)
            pretrain(
                config,
                dataset,
                local,
                RayTrainReporter(settings["report"], rank),
                checkpoint_seconds=settings["checkpoint_seconds"],
                device=device,
                evaluate=evaluator(config, dataset, device) if evaluator and rank == 0 else None,
            )
        except Stop:
            return None
        if rank == 0:
            for leaf in LEAVES:
                shutil.copy2(local / leaf, Path(settings["work"]) / leaf)
    return {"resumed_epoch": resumed, "peak_memory": _most(memory.read(), device)}


def _fetch_checkpoint(folder: Path) -> int:
    """Put Ray Train's last checkpoint into `folder`; epochs that it holds, 0 where there is none."""
    from ray.train import get_checkpoint

    checkpoint = get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as saved:
        shutil.copy2(Path(saved) / CHECKPOINT, folder / CHECKPOINT)
    return int(checkpoint.get_metadata()["epoch"])


def _most(peak: int | None, device: torch.device) -> int | None:
    """The largest peak of all workers; None where one of them does not know its own."""
    import torch

    from ssl_core import distributed

    peaks = distributed.gather(torch.tensor([-1 if peak is None else peak], device=device))
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


class RayTrainReporter:
    """Carries the loop's metrics to the driver and its checkpoints to Ray Train. All ranks reach both."""

    def __init__(self, report: Report, rank: int) -> None:
        self.report, self.rank = report, rank
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
            saved = ray.train.Checkpoint.from_directory(folder)
            saved.set_metadata({"epoch": self.last["epoch"]})
            ray.train.report(self.last, checkpoint=saved)
