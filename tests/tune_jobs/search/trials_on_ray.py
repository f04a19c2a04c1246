"""What may happen to trials, on one local Ray: `python trials_on_ray.py FOLDER` prints what was seen, as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from test_running import END, EVALUATION, Seen, Told

from tune_jobs.stage import Demand


def train(config: dict[str, Any], folder: Path) -> None:
    from ray import tune

    number = config["number"]
    with (folder / f"process-{number}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if number == 1:
        raise ValueError("one line\nand another")
    if number in (2, 3) and not (folder / f"died-{number}").exists():
        (folder / f"died-{number}").touch()
        if number == 3:
            tune.report(report(1))
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        for epoch in range(1, 4):
            tune.report(report(epoch))
    except SystemExit:
        time.sleep(0.3)  # what a stopped trial has to tidy up
        if number == 4:  # while the process is being made ready for the next trial
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / f"left-{number}").touch()
        raise
    if number != 5:
        tune.report({**{k: v for k, v in END.items() if "/" not in k}, "scores": {0: 0.4, 7: 0.6}})


def report(epoch: int) -> dict[str, Any]:
    return {**EVALUATION, "step": epoch, "score": epoch / 10}


def several(config: dict[str, Any], folder: Path) -> None:
    """The driver of a trial with two workers: what of the cluster is free beside it."""
    import ray
    from ray import tune

    (folder / f"free-{config['number']}").write_text(str(ray.available_resources().get("CPU", 0.0)))
    tune.report({**END, "event": "end"})


class Broken(Told):
    """A ledger whose storage fails when a trial has ended."""

    def complete(self, number: int, outcome: Any) -> None:
        raise OSError("disk full")


def main(folder: Path) -> dict[str, Any]:
    from tune_jobs.cluster import local_ray
    from tune_jobs.search.run import run_trials

    seen: dict[str, Any] = {}

    def run(ledger: Told, trainable: Any, demand: Demand | None = None, concurrent: Any = 1) -> tuple[Told, Seen]:
        watcher = Seen()
        run_trials(
            ledger, lambda config: trainable(config, folder), demand=demand or Demand(), concurrent=concurrent,
            folder=folder / ".tune", watcher=watcher,
        )  # fmt: skip
        return ledger, watcher

    with local_ray(cpus=2):
        ledger, watcher = run(Told(left=8, prunes={4: 2, 7: 3}), train)
        seen["ends"], seen["steps"], seen["events"] = ledger.ends, ledger.steps, watcher.events
        seen["outcome"] = ledger.outcome
        (folder / "two").mkdir()
        folder, before = folder / "two", folder
        seen["two"] = sorted(run(Told(left=4), several, concurrent="auto")[0].ends)
        seen["workers"] = sorted(run(Told(left=2), several, Demand(workers=2), "auto")[0].ends)
        seen["free"] = [float((folder / f"free-{number}").read_text()) for number in (0, 1)]
        seen["none"] = run(Told(left=0), several)[0].ends
        try:
            run(Broken(left=3), several)
        except OSError as error:
            seen["error"] = str(error)
        seen["left"] = [str(path) for path in before.rglob(".tune*")]
    return seen


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
