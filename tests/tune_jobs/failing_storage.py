"""A store on a small file system of its own, which is read-only for a while, then full. Prints what it saw as JSON.

unshare --mount python failing_storage.py FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch  # here, because importing it would take longer than storage refuses

from ssl_core.errors import StageError
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store, read_manifest
from tune_jobs.work import perform

MEGABYTES = 8


def mount(folder: Path, *words: str) -> None:
    subprocess.run(["mount", *words, str(folder)], check=True)


def written(stage: Stage, store: Store, work: Path, *_: Any) -> dict[str, Any]:
    """Leaves as many megabytes as the stage says."""
    with (work / "bytes").open("wb") as file:
        for _ in range(stage.config["megabytes"]):
            file.write(b"x" * 2**20)
    return {}


def seconds_to_perform(store: Store, stage: Stage, do: Any = written) -> float:
    began = time.monotonic()
    perform(stage, store, Demand(), {}, lambda values: None, do=do)
    return time.monotonic() - began


def main(folder: Path) -> None:
    mount(folder, "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs")
    store = Store(folder)
    store.stages.mkdir()
    first, second, large = (Stage(kind="probe", config={"megabytes": n}) for n in (1, 2, MEGABYTES + 1))
    seen: dict[str, Any] = {"torch": torch.__version__}

    def refuse(seconds: float) -> None:
        mount(folder, "-o", "remount,ro")
        threading.Timer(seconds, mount, (folder, "-o", "remount,rw")).start()

    refuse(1.5)  # before the work: no folder can be made
    seen["refused_at_begin"] = seconds_to_perform(store, first)

    attempts = 0

    def written_then_refused(*words: Any) -> dict[str, Any]:
        nonlocal attempts
        attempts += 1
        found = written(*words)
        refuse(1.5)  # after it: it cannot be published
        return found

    seen["refused_at_publishing"] = seconds_to_perform(store, second, written_then_refused)
    seen["attempts"] = attempts
    seen["files"] = [list(read_manifest(store.path(stage))["files"]) for stage in (first, second)]

    began = time.monotonic()
    try:
        seconds_to_perform(store, large)
    except StageError as error:
        seen["full"] = str(error)
    seen["seconds_until_full_was_said"] = time.monotonic() - began
    seen["left"] = [path.name for path in (store.stages / ".work").iterdir()]
    seen["finished"] = [store.finished(stage) for stage in (first, second, large)]
    mount(folder, "-o", f"remount,size={4 * MEGABYTES}m")
    seconds_to_perform(store, large)
    seen["bytes_with_room"] = read_manifest(store.path(large))["files"]["bytes"]["bytes"]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
