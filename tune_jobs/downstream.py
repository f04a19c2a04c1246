"""Fine-tuning and features with several workers: together they do what one would, and worker 0 leaves the files."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_jobs.attempts import Attempts
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import Report, leave, settle_device
from tune_jobs.workers import Job, room_held, run


def with_workers(stage: Stage, store: Store, work: Path, demand: Demand, report: Report) -> dict[str, Any]:
    """Do the stage's work with `demand.workers` Ray Train workers; leave its files in `work`.

    There are no checkpoints: where a worker is lost, all begin at the stage's start. `report` goes to worker 0, so it
    has to be pickled. Returns what the manifest should say: the workers of the process group that did it, the memory of
    the one that took most, why attempts before this one ended, and their seconds.
    """
    folder = store.train_folder(stage)
    attempts = Attempts(folder)
    settings = {"stage": stage, "root": str(store.root), "work": str(work), "demand": demand, "report": report}
    job = Job(
        do=_worker,
        settings=lambda: settings,
        folder=folder,
        ended=lambda why: attempts.ended(why, alive=time.time()),
        goes_on="from its start",
        with_less="lower resources.downstream_workers",
    )
    try:
        made, workers, peak = run(job, demand, store.root)
        facts = {"workers": workers, "peak_memory": peak, **attempts.facts()}
    finally:
        store.forget_training(stage)
    for path in (work / made).iterdir():
        path.rename(work / path.name)
    for attempt in work.glob("attempt-*"):
        shutil.rmtree(attempt, ignore_errors=True)
    return facts


def _worker(settings: dict[str, Any]) -> tuple[str, int, int | None]:
    """One Ray Train worker's part; of worker 0 (folder below `work` with the files, workers, most memory of one).

    Each attempt has a folder of its own: a worker that was given up may not know it yet, and go on writing.
    """
    from ray.train import get_context

    from ssl_core import devices, distributed
    from tune_jobs.train import most

    stage, store, demand = settings["stage"], Store(settings["root"]), settings["demand"]
    device = settle_device(demand)
    memory = devices.PeakMemory(devices.choose(device))
    if get_context().get_world_rank() > 0:
        with tempfile.TemporaryDirectory(prefix="intermoco-") as own:
            leave(stage, store, Path(own), _unheard, device)
        return "", distributed.world(), most(memory)
    Attempts(store.train_folder(stage)).begin(None, room=room_held())
    made = Path(tempfile.mkdtemp(prefix="attempt-", dir=settings["work"]))
    leave(stage, store, made, settings["report"], device)
    return made.name, distributed.world(), most(memory)


def _unheard(values: Mapping[str, Any]) -> None:
    """Reports to nobody: all workers know the same, worker 0 says it."""
    del values
