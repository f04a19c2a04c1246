"""A cluster of several nodes on one machine, as test_nodes.py asks of it. Run in a network namespace of its own.

    python nodes_scenario.py FOLDER ADDRESS

Prints one line of JSON: what was seen; to stderr, how far it is. FOLDER/shared is the storage, FOLDER/copy another
intermoco, FOLDER/broken none.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ssl_core.errors import ConfigError
from tune_jobs import doctor, fitness, nodes
from tune_jobs.cluster import joined_ray

BIN = Path(sys.executable).parent
SERVER = "http://127.0.0.1:9"  # nothing listens there
SMALL = ("--num-cpus=1", "--object-store-memory=80000000", "--include-log-monitor=false")


def start(address: str, *, own_storage: Path | None = None, path: Path | None = None) -> None:
    """A node: with storage of its own laid over a folder, or with other packages in front."""
    node = [str(BIN / "ray"), "start", f"--address={address}", *SMALL]
    if own_storage:
        node = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {own_storage} && exec "$@"', "sh", *node]
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else None
    subprocess.run(node, check=True, env=environment, stdout=subprocess.DEVNULL)


def raylets() -> set[int]:
    return {int(p.parent.name) for p in Path("/proc").glob("[0-9]*/comm") if p.read_text().strip() == "raylet"}


def refused(root: Path, tracking: str | None) -> str:
    """What `ablate` would say of the cluster; nothing where it would start."""
    try:
        fitness.require_fit(root, tracking)
    except ConfigError as error:
        return str(error)
    return ""


def answers(seen: nodes.Survey) -> dict[str, Any]:
    return {judgement.__name__: judgement(seen) for judgement in fitness.ALL}


def step(what: str) -> None:
    print(f"{time.strftime('%X')} {what}", file=sys.stderr, flush=True)


def main(folder: Path, address: str) -> dict[str, Any]:
    root, sqlite, seen = folder / "shared", f"sqlite:///{folder}/shared/mlflow.db", dict[str, Any]()
    step("head")
    node = [str(BIN / "ray"), "start", "--head", "--node-ip-address=127.0.0.1", f"--port={address.rpartition(':')[2]}"]
    node += ["--include-dashboard=false", "--no-monitor", f"--temp-dir={folder}/ray", *SMALL]
    subprocess.run(node, check=True, stdout=subprocess.DEVNULL)
    head = raylets()
    with joined_ray(address):
        step("a node alone")
        seen["alone"] = refused(root / "not" / "there", sqlite)

        step("second node")
        start(address)
        (second,) = raylets() - head
        step("survey")
        good = nodes.survey(root, thorough=True)
        good = replace(good, tracking=nodes.look_at_tracking(SERVER, ask=False))
        seen["good"], seen["survey"] = answers(good), good.as_json()
        seen["files"] = good.driver.facts and dict(good.driver.facts.code)
        step("gate")
        began = time.monotonic()
        seen["two"] = refused(root, SERVER)
        seen["seconds"] = time.monotonic() - began
        seen["sqlite"] = refused(root, sqlite)

        step("silence")
        os.kill(second, signal.SIGSTOP)  # its process lives, and says nothing
        seen["silent"] = asdict(nodes.survey(root, thorough=False, patience=3).nodes[1])
        os.kill(second, signal.SIGCONT)

        step("odd and broken node")
        start(address, own_storage=root, path=folder / "copy")
        start(address, path=folder / "broken")
    step("doctor")
    whole = doctor.examine
    doctor.examine = lambda root, *, looks, before, after: whole(root, looks=looks[:1], invariants=())
    with contextlib.redirect_stdout(io.StringIO()) as said:
        seen["doctor_exit"] = doctor.run(root, address=address, tracking=SERVER, as_json=True)
    seen["doctor"] = said.getvalue()
    step("ablate")
    ablate = [str(BIN / "intermoco"), "ablate", "quickstart", "--address", address, "--output", str(root)]
    done = subprocess.run(ablate, capture_output=True, text=True, check=False)
    seen["exit"], seen["said"] = done.returncode, done.stderr
    return seen


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
