"""Stages on a real local Ray, for the tests that submit them one by one, and kill their workers."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tune_jobs.cluster import local_ray
from tune_jobs.executor import Done
from tune_jobs.prepare import packed, planned
from tune_jobs.reaper import descendants
from tune_jobs.runner import RayRunner
from tune_jobs.stage import Stage
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.train import SNAPSHOT


@contextlib.contextmanager
def local(root: Path, study: Study) -> Iterator[OnRay]:
    """A Ray with two CPUs, the study's dataset packed below `root`."""
    with local_ray(2):
        found = OnRay(root)
        for stage in planned(study, found.store).of_kind("data"):
            packed(study.dataset, found.store, stage, {})
        yield found


class OnRay:
    """Stages submitted to a real local Ray, as a study submits them."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.runner = RayRunner(self.store, {})
        self.alone = RayRunner(self.store, {}, alone=True)
        self.ended: dict[str, Done] = {}

    def end_of(self, stage: Stage) -> BaseException | None:
        self.until(lambda: stage.key in self.ended)
        return self.ended[stage.key].error

    def until(self, holds: Callable[[], Any], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.ended
            self.ended |= {done.stage.key: done for runner in (self.runner, self.alone) for done in runner.wait(0.05)}

    def attempts(self, stage: Stage) -> list[Path]:
        return sorted((self.store.train_folder(stage) / "attempts").glob("*.json"))

    def checkpoints(self, stage: Stage) -> list[Path]:
        """Those that Ray Train would go on from: it hears of a written one some seconds later, and lists it then."""
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # it writes its list in place
            results = json.loads((self.store.train_folder(stage) / SNAPSHOT).read_text())["checkpoint_results"]
            return [self.store.train_folder(stage) / result["checkpoint_dir_name"] for result in results]
        return []


def train_worker() -> int:
    """Ray Train's newest worker process below this one."""
    return max(train_workers())


def train_workers() -> list[int]:
    """Ray Train's worker processes below this one."""
    return _processes("RayTrainWorker")


def stage_process(stage: Stage) -> int:
    """The process below this one that does the stage's work, or waits for the workers that do."""
    (found,) = _processes(f"ray::{stage.name}")
    return found


def _processes(word: str) -> list[int]:
    found = []
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found
