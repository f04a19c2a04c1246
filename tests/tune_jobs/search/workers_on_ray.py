"""Trials of two workers on one local Ray: `python workers_on_ray.py FOLDER TRIALS` prints what was seen, as JSON.

Trial 0 loses a worker, goes on and then fails; trial 1 is pruned, as each third one after it; trial 2 loses its own
process; trial 3 is the same arm again. The rest run to their end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from test_running import Seen, Told
from test_trial import ARM, RESOURCES, settings

from ssl_core.errors import DataError
from tune_jobs.search.config import SchedulerConfig

EPOCHS = 3
KILLED = {0: "worker", 2: "trial"}


class Fails(SchedulerConfig):
    """Worker 0 fails in the last epoch, where it asks whether to evaluate."""

    def looks(self, epoch: int, epochs: int) -> bool:
        if epoch == epochs:
            raise DataError("no label is left")
        return True


def train(config: dict[str, Any], shared: Any, folder: Path) -> None:
    from ray import tune

    from tune_jobs.search.trial import run_trial

    number = config["number"]
    if number == 0:
        shared = dataclasses.replace(shared, scheduler=Fails(kind="median"))

    def report(values: Any) -> None:
        with (folder / f"reports-{number}").open("a") as file:
            file.write(json.dumps({**values, "pid": os.getpid(), "time": time.time()}) + "\n")
        # after the second epoch, when the first one's checkpoint is there
        if values.get("step") == 2 and number in KILLED and not (folder / f"killed-{number}").exists():
            (folder / f"killed-{number}").touch()
            pid = os.getpid() if KILLED[number] == "trial" else workers()[1]
            os.kill(pid, signal.SIGKILL)
        tune.report(values)

    run_trial(config, shared, report)


def workers() -> list[int]:
    """Processes of Ray Train's workers on this machine that run below this test's own session."""
    session = os.getsid(0)
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if "RayTrainWorker" in line and os.getsid(int(entry.name)) == session:
            found.append(int(entry.name))
    return sorted(found)


def groups(workers: bool = False) -> set[str]:
    """Placement groups that are there; only those that hold workers, if asked so."""
    from ray.util import placement_group_table

    there = {name: facts["bundles"] for name, facts in placement_group_table().items() if facts["state"] != "REMOVED"}
    return {name for name, bundles in there.items() if not workers or "CPU" in bundles[0]}


class Watch(Seen):
    """Measures how long after its end a trial's placement groups are there."""

    def __init__(self) -> None:
        super().__init__()
        self.freed: list[float] = []
        self.threads: list[threading.Thread] = []

    def finished(self, number: int, state: str, outcome: Any) -> None:
        super().finished(number, state, outcome)
        if state == "pruned":
            self.threads.append(threading.Thread(target=self.wait, args=(groups(workers=True), time.monotonic())))
            self.threads[-1].start()

    def wait(self, held: set[str], began: float) -> None:
        while held & groups():
            time.sleep(0.05)
        self.freed.append(time.monotonic() - began)


def main(folder: Path, trials: int) -> dict[str, Any]:
    from tune_jobs.cluster import local_ray
    from tune_jobs.machine import LOOPBACK, listening
    from tune_jobs.plan import as_config
    from tune_jobs.search.run import run_trials
    from tune_jobs.stage import Demand

    demand = Demand(workers=2, cpus=1, accelerators=0.0, checkpoint_seconds=0)
    shared = dataclasses.replace(
        settings(folder / "runs"),
        demand=demand,
        resources=dataclasses.replace(RESOURCES, workers=2),
        scheduler=SchedulerConfig(kind="median"),  # looks after each epoch
    )
    ledger, watch, began = Told(left=trials, prunes=dict.fromkeys(range(1, trials, 3), 1)), Watch(), time.monotonic()

    def trainable(config: dict[str, Any]) -> None:
        number = 2 if config["number"] == 3 else config["number"]
        arm = dataclasses.replace(ARM, epochs=EPOCHS, learning_rate=0.01 * (1 + number))
        train({**config, "arm": as_config(arm), "seeds": [0]}, shared, folder)

    with local_ray(cpus=2, dashboard=True):
        import ray
        from ray.util.state import get_actor

        sockets = listening(os.getpid()) or []
        dashboard = bool(get_actor("0" * 32) is None and sockets)
        run_trials(ledger, trainable, demand=demand, concurrent="auto", folder=folder / ".tune", watcher=watch)
        seconds = time.monotonic() - began
        for thread in watch.threads:
            thread.join(30)
        deadline = time.monotonic() + 10
        while (left := groups()) and time.monotonic() < deadline:
            time.sleep(0.1)
        free = ray.available_resources().get("CPU", 0.0)
    return {
        "ends": ledger.ends,
        "steps": ledger.steps,
        "freed": watch.freed,
        "groups": sorted(left),
        "cpus": free,
        "seconds": seconds,
        "outside": [entry for entry in sockets if entry[0] not in LOOPBACK],
        "dashboard": dashboard,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
