"""MLflow's real server killed in the middle of a study and started again on the same database."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from finished_stages import finish, small, study_folder
from mlflow_store import shown

from tune_jobs.executor import Done, execute
from tune_jobs.plan import Plan
from tune_jobs.room import Capacity
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.tracking import default_uri, follow, sync, ui_command
from tune_jobs.tracking_client import IMPATIENCE

pytestmark = pytest.mark.timeout(240)

SECONDS = 0.6  # of a stage
LINES = 12  # of a stage's metrics.jsonl


class Server:
    """`mlflow server` on the database below a root, which can be killed and started again at the same address."""

    def __init__(self, root: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        self.command, self.environment = ui_command(default_uri(root), root, port)
        self.log = root / "server.log"
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **self.environment}, stdout=log, stderr=log, start_new_session=True
            )

    def await_up(self, seconds: float = 120) -> None:
        """Until it answers: six seconds on an idle machine."""
        deadline = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Timed:
    """Finishes one stage after another, each after a moment; hears of each, and notes when that was."""

    def __init__(self, planned: Plan, store: Store) -> None:
        self.planned, self.store, self.ends = planned, store, [time.monotonic()]
        self._running: list[Stage] = []

    def capacity(self) -> Capacity:
        return Capacity(1.0)

    def submit(self, stage: Stage, nodes: Sequence[str]) -> None:
        self._running.append(stage)

    def want(self, running: Iterable[Demand], ready: Iterable[Demand]) -> bool:
        return False

    def wait(self, seconds: float) -> Iterable[Done]:
        time.sleep(SECONDS)
        stage = self._running.pop()
        finish(stage, self.planned, self.store, LINES)
        return [Done(stage)]

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    @property
    def longest(self) -> float:
        """Seconds from the end of one stage to that of the next, at most."""
        return max(after - before for before, after in zip(self.ends, self.ends[1:], strict=False))


class Tracked:
    """What a study does as its stages finish; kills the server after some, starts it again after some more."""

    def __init__(self, add: Any, timed: Timed, server: Server, dies: int, returns: int) -> None:
        self.add, self.timed, self.server, self.at = add, timed, server, {dies: server.kill, returns: server.start}

    def finished(self, stage: Stage, seconds: float) -> None:
        self.add(stage.key)
        self.timed.ends.append(time.monotonic())
        if act := self.at.get(len(self.timed.ends) - 1):
            act()

    def cached(self, stage: Stage) -> None: ...

    def started(self, stage: Stage) -> None: ...

    def failed(self, stage: Stage, error: BaseException) -> None: ...

    def skipped(self, stage: Stage, cause: Stage) -> None: ...

    def tick(self, progress: Mapping[str, Mapping[str, Any]]) -> None: ...


def seen(root: Path) -> dict[str, Any]:
    """State, parameters, metrics and tags of every run; where artifacts lie and when a parent began may differ.

    Of a parent's metrics, which grow with the study (seconds so far), the last value.
    """
    found = {}
    for path, (info, params, metrics, tags, _) in shown(root).items():
        whole = "intermoco.stage" in tags
        found[path] = (info[0], params, metrics if whole else {k: v[-1:] for k, v in metrics.items()}, tags)
    return found


def test_a_server_lost_for_a_while_slows_nothing_and_holds_every_metric_once(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in IMPATIENCE.items():
        monkeypatch.setenv(name, value)
    root, calm = tmp_path / "runs", tmp_path / "calm"
    for each in (root, calm):
        each.mkdir()
        shutil.copy(empty_database, each / "mlflow.db")
    store, server = Store(root), Server(root)
    try:
        study, planned = small(seeds=[0])
        server.await_up()
        follower = follow(study, planned, store, uri=server.uri)
        timed = Timed(planned, store)
        count = len(planned.by_key)
        outcome = execute(planned, store, timed, Tracked(follower.add, timed, server, count // 4, count // 2))
        assert len(outcome.executed) == count
        assert timed.longest < SECONDS + 2  # a call to a server that is away takes longer
        follower.close(timeout=1, settle=60)
        partly = sum(path.startswith("toy|/") for path in seen(root))
        server.await_up()
        done = sync(study, planned, store, uri=server.uri, folder=study_folder(study, store))
        assert partly > 0
        assert done.created + done.already_there == len(planned.stages)
        assert done.already_there > 0
    finally:
        server.kill()
    (calm / "stages").symlink_to(root / "stages")
    sync(study, planned, Store(calm), uri=default_uri(calm), folder=root / study.study)
    assert seen(root) == seen(calm)
    for path, (_, _, metrics, tags) in seen(root).items():
        log = root / "stages" / tags.get("intermoco.stage", "") / "metrics.jsonl"
        if log.is_file():
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            assert metrics["loss"] == [(line["step"], line["loss"]) for line in lines], path
