"""Pretraining through Ray Train: the loop knows nothing of it, a reporter carries its checkpoints."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from ssl_core.errors import CheckpointError, StageError
from tune_jobs.attempts import Attempts, Pulse
from tune_jobs.failures import Kind, explained, kind, pauses
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import LEAVES, Report, typed

if TYPE_CHECKING:
    import torch

    from ssl_core.config import PretrainConfig
    from ssl_core.data.dataset import Dataset
    from ssl_core.pretraining import Evaluate

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
#: Of Ray Train: the checkpoints that it knows of.
SNAPSHOT = "checkpoint_manager_snapshot.json"
#: Seconds to wait for nodes, where those that are there could not hold the workers even if they were idle.
ROOM_SECONDS = 600.0
#: Seconds between questions whether a node is about to be taken away.
NOTICE_SECONDS = 1.0
#: Of Ray Train: whether it looks out for nodes that are about to be taken away.
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"

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
    lost, waits, no_room_since = 0, pauses(), None
    while True:
        settings["left"] = _unknown_to_ray(folder)
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config=settings,
            torch_config=OneWorker() if demand.workers == 1 else TorchConfig(),
            scaling_config=_scaling(demand),
            run_config=RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                # what fails comes back here, but for nodes taken away with notice: those runs go on unasked
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        try:
            facts: dict[str, Any] = fit(trainer).return_value
            break
        except (TrainingFailedError, RayError) as error:
            if _waited_for_room(error):
                no_room_since = None if _room(demand) else (no_room_since or time.monotonic())
                if no_room_since is not None and time.monotonic() - no_room_since > ROOM_SECONDS:
                    raise _no_room(demand) from None
                continue
            no_room_since = None
            reason = failure(_by_rank(error), store.root)
            attempts.ended(_words(reason))
            _remove_half_written(folder)
            pause = 0.0
            match kind(error):
                case Kind.LOST if lost < demand.restarts:
                    lost += 1
                case Kind.PASSING if (pause := next(waits, 0.0)) > 0:
                    pass
                case Kind.LOST:
                    raise StageError(
                        f"lost a worker {lost + 1} times, and resources.restarts is {demand.restarts}; look at its "
                        f"nodes, memory first; run again, it goes on from its last checkpoint ({_words(reason)})"
                    ) from None
                case _:
                    raise reason from None
            log.warning("%s; going on from the last checkpoint", _words(reason))
            time.sleep(pause)
    missing = [name for name in LEAVES if not (work / name).is_file()]
    if missing:
        raise FileNotFoundError(f"training ended without leaving {missing} in {work}")
    return {**facts, **attempts.facts()}


def _scaling(demand: Demand) -> ScalingConfig:
    """As many workers as are asked for; where fewer may do, as many as there is room for.

    Ray Train waits without end for the least that may do, so it is told of a range only where these have room.
    """
    accelerators, least = demand.accelerators or 0.0, demand.least_workers
    workers: int | tuple[int, int] = demand.workers
    if least is not None and least < demand.workers:
        workers = (least, demand.workers) if _room(demand) else least
    return ScalingConfig(
        num_workers=workers,
        use_gpu=accelerators > 0,
        resources_per_worker={"CPU": demand.cpus} | ({"GPU": accelerators} if accelerators else {}),
    )


def _room(demand: Demand) -> bool:
    """Whether the nodes that are alive could hold the least workers that may do, if nothing else ran on them."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return fitting(nodes, demand) >= (demand.least_workers or demand.workers)


def fitting(nodes: Iterable[Mapping[str, float]], demand: Demand) -> int:
    """Workers that idle nodes with these resources (CPU, GPU) hold, each worker whole on one of them."""

    def of(node: Mapping[str, float]) -> int:
        cpus, accelerators = node.get("CPU", 0.0) / demand.cpus, demand.accelerators or 0.0
        return int(min(cpus, node.get("GPU", 0.0) / accelerators) if accelerators else cpus)

    return sum(map(of, nodes))


def _no_room(demand: Demand) -> StageError:
    least = demand.least_workers or demand.workers
    each = f"{demand.cpus:g} CPUs" + (f" and {demand.accelerators:g} accelerators" if demand.accelerators else "")
    return StageError(
        f"for {ROOM_SECONDS:g} s the cluster's nodes had no room for {least} workers of {each}; add nodes and run "
        "again, it goes on from its last checkpoint, or set resources.least_workers (with pretrain.batch_norm: sync)"
    )


def _waited_for_room(error: BaseException) -> bool:
    """Whether the workers did not start because their resources were not free in time."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _by_rank(error: BaseException) -> Mapping[int, BaseException]:
    """What went wrong, by the worker's rank; what ended Ray Train itself counts as worker 0's."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return {rank: getattr(e, "health_check_failure", e) for rank, e in error.worker_failures.items()}
    return {0: getattr(error, "controller_failure", error)}


def _words(error: BaseException) -> str:
    from tune_jobs.watch import one_line

    return one_line(error)


def _known_to_ray(folder: Path) -> set[str] | None:
    """Names of the checkpoints that Ray Train would go on from; None where its list cannot be read."""
    try:
        found = json.loads((folder / SNAPSHOT).read_text())
        return {result["checkpoint_dir_name"] for result in found["checkpoint_results"]}
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


def failure(errors: Mapping[int, BaseException], root: Path) -> BaseException:
    """One error for what went wrong on workers, by rank: what all of them say, or each of them.

    The gravest comes first: that the others lost touch with that worker follows from it.
    """
    ordered = sorted(errors.items(), key=lambda item: (-kind(item[1]), item[0]))
    clear = {rank: explained(error, root) for rank, error in ordered}
    said = {rank: _words(error) for rank, error in clear.items()}
    if len(set(said.values())) == 1:
        return clear[ordered[0][0]]
    return StageError("; ".join(f"worker {rank}: {text}" for rank, text in said.items()))


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
        resumed, steps = _fetch_checkpoint(local, settings["left"])
        pulse = _begin_attempt(Path(settings["folder"]), local) if rank == 0 else None
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
    return {"resumed_epoch": resumed, "resumed_step": steps, "peak_memory": _most(memory.read(), device)}


def _fetch_checkpoint(folder: Path, left: Iterable[str]) -> tuple[int, int]:
    """Put Ray Train's last checkpoint into `folder`; whole epochs and steps that it holds, 0 where there is none.

    `left`: files to try instead, in turn, where Ray Train knows of none.
    """
    from ray.train import get_checkpoint

    from ssl_core.pretraining import position

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


def _begin_attempt(folder: Path, local: Path) -> Pulse:
    """Note an attempt that starts from the checkpoint in `local`, whose file keeps the time at which it was taken."""
    path = local / CHECKPOINT
    return Pulse(Attempts(folder).begin(path.stat().st_mtime if path.exists() else None))


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
            self._pulse.beat(why="its node was about to be taken away" if said else None)
        return said
