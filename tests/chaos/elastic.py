"""A pretraining of two workers whose nodes come and go, or go with notice. Nodes have addresses of their own.

By hand; each takes minutes, and prints one line of JSON:

    python -m tests.chaos.elastic grow FOLDER      a node is lost, one worker goes on; another node joins, two go on
    python -m tests.chaos.elastic drain FOLDER     Ray is told that a node will be taken away, and then it is
    python -m tests.chaos.elastic compare FOLDER   the encoder of either with that of one process, undisturbed
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.cluster import PORT, Cluster, Node, python
from tests.chaos.namespace import inside
from tests.chaos.study import values, write_images
from tune_jobs.machine import listening
from tune_jobs.store import read_manifest

#: Seconds until something that should happen is given up.
PATIENCE = 240.0
#: Seconds from the notice to the node's end.
NOTICE = 25


def hosts() -> Iterator[str]:
    """Addresses that are not the loopback's, though on it: Ray and torch then meet as on several machines."""
    for number in count(1):
        subprocess.run(["ip", "address", "add", f"10.77.0.{number}/16", "dev", "lo"], check=True)
        if number == 1:  # whom a process takes itself for
            subprocess.run(["ip", "route", "add", "default", "dev", "lo", "src", "10.77.0.1"], check=True)
        yield f"10.77.0.{number}"


@dataclass
class Run:
    """One study with one pretraining, until that is published."""

    cluster: Cluster
    root: Path  # its folder for all
    resources: dict[str, Any]
    epochs: int
    seen: list[str] = field(default_factory=list)  # what happened, with the seconds since the start

    def __post_init__(self) -> None:
        write_images(images := self.root / "images.npz")
        study = values(2, 1, images)
        study["dataset"] |= {"size": 16}
        study["pretrain"] |= {"epochs": self.epochs, "learning_rate": 0.001}  # rounding then stays rounding
        study["resources"] |= self.resources
        (self.root / "study.yaml").write_text(yaml.safe_dump(study))
        self.began, self.log = time.time(), self.root / "driver.log"
        command = [sys.executable, "-m", "tune_jobs.cli", "ablate", str(self.root / "study.yaml"), "--address",
                   f"{self.cluster.head.host}:{PORT}", "--output", str(self.root)]  # fmt: skip
        with self.log.open("wb") as log:
            self.driver = subprocess.Popen(command, stdout=log, stderr=log, env=python(), start_new_session=True)

    def note(self, text: str) -> None:
        self.seen.append(f"{time.time() - self.began:.0f} s: {text}")
        print(self.seen[-1], file=sys.stderr, flush=True)

    def until(self, holds: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if self.driver.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"not seen: {what}; {self.seen}; {self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        self.note(what)

    def paths(self, pattern: str) -> list[Path]:
        return sorted((self.root / "stages").glob(pattern))

    def attempts(self) -> int:
        return len(self.paths(".train/*/attempts/*.json"))

    def checkpoint(self) -> float:
        """When the newest was taken."""
        return max((p.stat().st_mtime for p in self.paths(".train/*/checkpoint_*/checkpoint.pt")), default=0.0)

    def workers(self) -> dict[str, Node]:
        """Training workers, and their nodes."""
        found = {}
        for node in self.cluster.all:
            for pid, name in self.cluster.workers_of(node).items():
                if "RayTrainWorker" in name:
                    found[str(pid)] = node
        return found

    def on_its_way(self, attempt: int, workers: int) -> None:
        self.until(lambda: self.attempts() == attempt, f"attempt {attempt} began")
        now = time.time()
        self.until(lambda: self.checkpoint() > now, "it took a checkpoint")
        assert len(self.workers()) == workers, self.workers()
        sockets = set().union(*(listening(int(pid)) or () for pid in self.workers()))
        self.note(f"{workers} workers train, and listen on {sorted({address for address, _ in sockets})}")

    def end(self) -> dict[str, Any]:
        self.until(lambda: self.paths("pretrain-*/manifest.json"), "published")
        manifest = read_manifest(self.paths("pretrain-*")[0])
        os.kill(self.driver.pid, signal.SIGINT)
        self.driver.wait()
        told = {name: manifest[name] for name in ("restarts", "recomputed_seconds", "wall_seconds", "resumed_step")}
        return {**told, "seen": self.seen}


def grow(cluster: Cluster, root: Path, epochs: int) -> dict[str, Any]:
    run = Run(cluster, root, {"checkpoint_seconds": 5, "least_workers": 1}, epochs)
    run.on_its_way(1, 2)
    (lost,) = cluster.nodes
    lost.kill()
    run.note("a node is lost")
    run.on_its_way(2, 1)
    cluster.replace(lost)
    run.until(cluster.nodes[0].up, "another joined")
    run.on_its_way(3, 2)
    return run.end()


def drain(cluster: Cluster, root: Path, epochs: int) -> dict[str, Any]:
    """No checkpoint is due and no restart allowed: what is not lost, the notice has kept."""
    run = Run(cluster, root, {"checkpoint_seconds": 3600, "restarts": 0}, epochs)
    run.until(lambda: run.attempts() == 1, "attempt 1 began")
    time.sleep(20)
    (going, *_) = [node for node in run.workers().values() if node is not cluster.head]
    assert run.checkpoint() == 0.0, "none was due"
    told_at = time.time()
    words = [
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=notice",
        f"--deadline-remaining-seconds={NOTICE}",
    ]
    ray = [str(Path(sys.executable).with_name("ray")), "drain-node", f"--address={cluster.head.host}:{PORT}"]
    subprocess.run([*ray, f"--node-id={node_id(cluster, going)}", *words], check=True, env=python())
    run.note("notice was given")
    run.until(lambda: run.checkpoint() > 0, "it took a checkpoint")
    first = run.checkpoint() - told_at
    while time.time() < told_at + NOTICE:
        time.sleep(0.1)
    last = run.checkpoint()
    going.kill()
    run.note("the node went")
    run.until(lambda: run.attempts() == 2, "attempt 2 began")
    found = run.end()
    return {
        **found,
        "first_checkpoint_after": round(first, 1),
        "last_before_the_end": round(told_at + NOTICE - last, 1),
    }


def node_id(cluster: Cluster, node: Node) -> str:
    """Ray's name of a node."""
    ask = (
        f"import ray; ray.init('{cluster.head.host}:{PORT}', log_to_driver=False); "
        f"print([n['NodeID'] for n in ray.nodes() if n['Alive'] and n['NodeManagerAddress'] == '{node.host}'][0])"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, env=python())
    return done.stdout.split()[-1]


def compare(root: Path) -> dict[str, float]:
    """How far the encoder is from that of one process that nobody disturbs, at most, and for the weights' own size."""
    import torch

    from ssl_core.config import PretrainConfig
    from ssl_core.data.dataset import Dataset
    from ssl_core.pretraining import pretrain
    from tune_jobs.work import Forward, typed

    (stage,), calm = root.glob("stages/pretrain-*"), root / "calm"
    calm.mkdir()
    manifest = read_manifest(stage)
    config = {name: value for name, value in manifest["config"].items() if name != "workers"}
    data = Dataset.open(root / "stages" / f"data-{manifest['inputs']['data']}")
    pretrain(
        typed(PretrainConfig, config), data, calm, Forward(lambda values: None), checkpoint_seconds=1e9, device="cpu"
    )
    ours, theirs = (torch.load(folder / "encoder.pt", weights_only=True)["state"] for folder in (stage, calm))
    floats = [name for name in theirs if theirs[name].is_floating_point()]
    far = [(ours[name] - theirs[name]).abs() for name in floats]
    relative = sum(float(d.square().sum()) for d in far) / sum(float(theirs[name].square().sum()) for name in floats)
    return {"largest_difference": max(float(d.max()) for d in far), "relative_difference": relative**0.5}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.elastic", description=__doc__.splitlines()[0])
    parser.add_argument("scenario", choices=("grow", "drain", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.folder.resolve()
    if options.scenario == "compare":
        print(json.dumps(compare(root)))
        return 0
    if not options.inside:
        return subprocess.run(
            inside([sys.executable, "-m", "tests.chaos.elastic", "--inside", *sys.argv[1:]])
        ).returncode
    scenario, nodes = (grow, 1) if options.scenario == "grow" else (drain, 2)
    cluster = Cluster(root / "cluster", nodes, hosts())
    try:
        print(json.dumps(scenario(cluster, root, options.epochs)))
    finally:
        cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
