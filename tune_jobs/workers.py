"""Work of several processes at once, by Ray Train's workers: where there is room for them, what a lost one costs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from ssl_core.errors import StageError
from tune_jobs.attempts import Attempts
from tune_jobs.failures import Kind, explained, kind, one_line, pauses
from tune_jobs.lone_worker import LoneWorker
from tune_jobs.rendezvous import SeveralWorkers
from tune_jobs.stage import Demand
from tune_jobs.waiting import ROOM_SECONDS

log = logging.getLogger(__name__)

#: Runs a trainer to its end.
Fit = Callable[[TorchTrainer], Any]


@dataclass(frozen=True)
class Job:
    """What workers do together, and how it goes on where one of them is lost."""

    do: Callable[[dict[str, Any]], Any]  # what each worker calls, with the settings
    settings: Callable[[], dict[str, Any]]  # made anew for each attempt
    folder: Path  # Ray Train's; its name is the run's
    ended: Callable[[str], bool]  # called with the reason when an attempt has failed; whether notice had been given
    goes_on: str  # where the next attempt begins: "from its last checkpoint"
    with_less: str  # the setting that asks for less room: "set resources.least_workers"


def run(job: Job, demand: Demand, root: Path, fit: Fit = TorchTrainer.fit) -> Any:
    """Have `demand.workers` Ray Train workers do a job; what worker 0 returned.

    Where a worker is lost all begin again, `demand.restarts` times, not counting those whose node was taken away with
    notice; where storage refuses, after growing pauses. Raises StageError where they were lost more often or there is
    no room for them, else what they raised, as `failure` says.
    `root`, the folder of the stages, is named in errors.
    """
    lost, waits, no_room_since = 0, pauses(), None
    while True:
        give_back(job.folder)
        trainer = TorchTrainer(
            job.do,
            train_loop_config=job.settings(),
            torch_config=LoneWorker() if demand.workers == 1 else SeveralWorkers(),
            scaling_config=_scaling(demand),
            run_config=RunConfig(
                name=job.folder.name,
                storage_path=str(job.folder.parent),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                # what fails comes back here, but for workers that Ray Train itself moves off a node in time
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        try:
            return fit(trainer).return_value
        except (TrainingFailedError, RayError) as error:
            if _waited_for_room(error):
                no_room_since = None if _room(demand) else (no_room_since or time.monotonic())
                if no_room_since is not None and time.monotonic() - no_room_since > ROOM_SECONDS:
                    raise _no_room(job, demand) from None
                continue
            no_room_since = None
            reason = failure(_by_rank(error), root)
            noticed, pause = job.ended(one_line(reason)), 0.0
            match kind(error):
                case Kind.LOST if noticed:
                    pass
                case Kind.LOST if lost < demand.restarts:
                    lost += 1
                case Kind.PASSING if (pause := next(waits, 0.0)) > 0:
                    pass
                case Kind.LOST:
                    raise StageError(
                        f"lost a worker {lost + 1} times, and resources.restarts is {demand.restarts}; look at its "
                        f"nodes, memory first; run again, it goes on {job.goes_on} ({one_line(reason)})"
                    ) from None
                case _:
                    raise reason from None
            log.warning("%s; going on %s", one_line(reason), job.goes_on)
            time.sleep(pause)


def room_held() -> str | None:
    """In a worker: the placement group that it and its fellows hold, in hexadecimal."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    return None if group is None else str(group.id.hex())


def give_back(folder: Path) -> None:
    """Give back the room that earlier attempts of this driver still hold; `folder` is Ray Train's.

    Where the process that called Ray Train was killed, Ray keeps the room until the driver ends. Train's own cleaner
    gives it back only where Ray's dashboard runs, and where the cleaner itself was not killed. Then the next attempt
    would wait for ever for room that nobody uses.
    """
    import ray
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    rooms = Attempts(folder).rooms()
    if not rooms:
        return
    driver, there = ray.get_runtime_context().get_job_id(), placement_group_table()
    for room in (room for room in rooms if room.endswith(driver)):  # a group's id ends with its driver's
        if there.get(room, {}).get("state", "REMOVED") != "REMOVED":
            log.warning("%s: an attempt before this one ended and left its room held; it is given back", folder.name)
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(room))))


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


def _no_room(job: Job, demand: Demand) -> StageError:
    least = demand.least_workers or demand.workers
    each = f"{demand.cpus:g} CPUs" + (f" and {demand.accelerators:g} accelerators" if demand.accelerators else "")
    return StageError(
        f"for {ROOM_SECONDS:g} s the cluster's nodes had no room for {least} workers of {each}; add nodes and run "
        f"again, it goes on {job.goes_on}, or {job.with_less}"
    )


def _waited_for_room(error: BaseException) -> bool:
    """Whether the workers did not start because their resources were not free in time."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _by_rank(error: BaseException) -> Mapping[int, BaseException]:
    """What went wrong, by the worker's rank; what ended Ray Train itself counts as worker 0's."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return {rank: getattr(e, "health_check_failure", e) for rank, e in error.worker_failures.items()}
    return {0: getattr(error, "controller_failure", error)}


def failure(errors: Mapping[int, BaseException], root: Path) -> BaseException:
    """One error for what went wrong on workers, by rank: what all of them say, or each of them.

    The gravest comes first: that the others lost touch with that worker follows from it.
    """
    ordered = sorted(errors.items(), key=lambda item: (-kind(item[1]), item[0]))
    clear = {rank: explained(error, root) for rank, error in ordered}
    said = {rank: one_line(error) for rank, error in clear.items()}
    if len(set(said.values())) == 1:
        return clear[ordered[0][0]]
    return StageError("; ".join(f"worker {rank}: {text}" for rank, text in said.items()))
