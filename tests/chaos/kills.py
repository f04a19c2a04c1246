"""Kills at seeded times, while a study runs, and what they cost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import yaml

from tests.chaos.cluster import ADDRESS, Cluster, Node, name_of, python
from tests.chaos.study import NAME, Published, values, write_images
from tune_jobs.attempts import Attempt
from tune_jobs.store import read_manifest

KINDS = ("worker", "node", "driver")
#: Kills a study takes at most: it shall also end, and another begin.
PER_STUDY = 8
#: Seconds after its last kill after which a study that has not ended counts as one that never will.
ENDLESS = 1200.0
#: A kill waits until something was achieved since the last one, but for some that come as they fall, and for this long.
PATIENCE, HASTY = 90.0, 0.2
#: Longest pause, in seconds, before a kill.
PAUSE = 8.0


@dataclass(frozen=True)
class Kill:
    """A kill that will be: what, how long after the study's last sign of progress, who of those that there are."""

    what: str
    pause: float  # seconds
    hasty: bool  # wait for no progress since the last kill
    who: float  # in [0, 1)


def planned(count: int, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Kill]:
    """Kills in a random order, all kinds equally often."""
    draw = random.Random(seed)
    left: list[str] = []
    for _ in range(count):
        if not left:
            left = draw.sample(kinds, k=len(kinds))
        yield Kill(left.pop(), draw.uniform(0, PAUSE), draw.random() < HASTY, draw.random())


@dataclass
class Told:
    """What became of one study."""

    kills: list[str] = field(default_factory=list)
    amiss: list[str] = field(default_factory=list)
    seconds: float = 0.0
    recomputed: float = 0.0  # seconds of pretraining and of other stages that were done again
    noted: float = 0.0  # of them, what the manifests of pretrainings say: to five seconds an attempt
    rubbish: int = 0  # half-written stages that were filled with rubbish, for nobody may read them
    result: dict[str, object] = field(default_factory=dict)


class Disturbed:
    """One study, from its start to its end, with kills on the way.

    `workers`: of each of its pretrainings, one an arm. `doing`: only processes with this in their names, and their
    nodes, are shot at.
    """

    def __init__(self, cluster: Cluster, root: Path, workers: int, arms: int, doing: str = "") -> None:
        self.cluster, self.root, self.doing, self.told = cluster, root, doing, Told()
        root.mkdir(parents=True)
        self.study, self.log = root / "study.yaml", root / "driver.log"
        if not (images := root.parent / "images.npz").is_file():
            write_images(images)
        self.study.write_text(yaml.safe_dump(values(workers, arms, images)))
        self._published = Published(root)
        self._tries: dict[str, list[tuple[str, float]]] = defaultdict(list)  # stage -> working folders, when seen first
        self._attempts: dict[str, dict[str, Attempt]] = defaultdict(dict)  # stage -> file -> attempt of its pretraining
        self._kills: list[float] = []  # when, in seconds since 1970
        self._spoilt = set[Path]()

    def run(self, kills: Iterator[Kill]) -> Told:
        """Takes from `kills` as many as fit into the study's life."""
        began = time.monotonic()
        driver = self._drive()
        try:
            while driver.poll() is None:
                kill = next(kills, None)
                if kill is None or not self._wait(driver, kill):
                    break
                driver = self._strike(driver, kill)
            calm = time.monotonic()
            while driver.poll() is None:
                self._look()
                if time.monotonic() - calm > ENDLESS:
                    self.told.amiss.append(f"it did not end within {ENDLESS:g} s of its last kill")
                    driver.kill()
                time.sleep(0.2)
        finally:
            driver.kill()
            driver.wait()
        self.told.seconds = time.monotonic() - began
        self._conclude(driver.returncode)
        return self.told

    def _drive(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tune_jobs.cli", "ablate", str(self.study), "--address", ADDRESS, "--output",
                   str(self.root), "--json"]  # fmt: skip
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=python(), start_new_session=True)

    def _wait(self, driver: subprocess.Popen[bytes], kill: Kill) -> bool:
        """Until the kill is due and there is somebody to kill; False where the study ended before."""
        before, now = self._achieved(), time.monotonic()
        deadline, due = now + PATIENCE, now + kill.pause if kill.hasty else None
        while due is None or time.monotonic() < due or not self._victims(kill.what):
            if driver.poll() is not None:
                return False
            if due is None and (self._achieved() - before or time.monotonic() > deadline):
                due = time.monotonic() + kill.pause
            self._look()
            time.sleep(0.1)
        return True

    def _victims(self, what: str) -> Sequence[int | Node]:
        """Processes at work, nodes with such processes, or nobody but the driver itself."""

        def at_work(node: Node) -> dict[int, str]:
            return {pid: name for pid, name in self.cluster.workers_of(node).items() if self.doing in name}

        match what:
            case "worker":
                found = [item for node in self.cluster.all for item in at_work(node).items()]
                return [pid for pid, _ in sorted(found, key=lambda item: (item[1], item[0]))]
            case "node":
                return [node for node in self.cluster.nodes if at_work(node)]
            case _:
                return [0]

    def _strike(self, driver: subprocess.Popen[bytes], kill: Kill) -> subprocess.Popen[bytes]:
        """The driver that runs afterwards."""
        self._kills.append(time.time())
        there = self._victims(kill.what)
        match there[int(kill.who * len(there))] if there else None:
            case None:  # it ended just now
                pass
            case Node() as lost:
                doing = sorted(self.cluster.workers_of(lost).values())
                lost.kill()
                self._note(f"node with {', '.join(doing)}")
                self.cluster.replace(lost)
            case 0:
                os.kill(driver.pid, signal.SIGKILL)
                driver.wait()
                self._note("driver")
                driver = self._drive()
            case pid:
                self._note(f"worker {name_of(pid)}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.told.amiss += self._published.amiss()
        return driver

    def _note(self, text: str) -> None:
        self.told.kills.append(text)
        print(f"    {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def _achieved(self) -> set[str]:
        """Names of finished stages, attempts and checkpoints."""
        stages = self.root / "stages"
        patterns = ("*/manifest.json", ".train/*/checkpoint_*", ".train/*/attempts/*.json")
        return {str(path) for pattern in patterns for path in stages.glob(pattern)}

    def _look(self) -> None:
        """Note tries of stages as they begin; fill with rubbish what an earlier, killed try of the same has left."""
        self.cluster.mend()
        for path in (self.root / "stages" / ".train").glob("*/attempts/*.json"):
            if path.name not in self._attempts[path.parts[-3]]:
                with contextlib.suppress(OSError):  # published meanwhile, and gone
                    self._attempts[path.parts[-3]][path.name] = Attempt(**json.loads(path.read_text()))
        for path in (self.root / "stages" / ".work").glob("*"):
            tries = self._tries[path.name.rpartition("-")[0]]
            if all(name != path.name for name, _ in tries):
                tries.append((path.name, time.time()))
            for name, _ in tries[:-1]:
                self._spoil(path.with_name(name))

    def _spoil(self, work: Path) -> None:
        if work in self._spoilt or not work.is_dir():
            return
        self._spoilt.add(work)
        with contextlib.suppress(OSError):  # the next driver sweeps it away meanwhile
            for path in [p for p in work.rglob("*") if p.is_file()]:
                path.write_bytes(b"rubbish")
            (work / "manifest.json").write_text("{}")
            self.told.rubbish += 1

    def _conclude(self, status: int) -> None:
        self.told.amiss += self._published.amiss()
        text = self.log.read_text(errors="replace")
        if status != 0:
            self.told.amiss.append(f"exit status {status}: {text[-1500:]}")
            return
        self.told.result = json.loads(text.strip().splitlines()[-1])
        manifests = [read_manifest(path) for path in (self.root / "stages").glob("pretrain-*")]
        self.told.noted = sum(manifest["recomputed_seconds"] for manifest in manifests)
        self.told.recomputed = self._done_again()

    def _done_again(self) -> float:
        """Seconds of tries until the last kill before the next one, less what a checkpoint kept of them."""
        spans = [
            (began, again)
            for stage, tries in self._tries.items()
            if not stage.startswith("pretrain-")  # these go on from their checkpoints
            for (_, began), (_, again) in pairwise(tries)
        ]
        for attempts in self._attempts.values():
            for before, after in pairwise(sorted(attempts.values(), key=lambda attempt: attempt.started)):
                spans.append((max(before.started, after.resumed or 0.0), after.started))
        ends = [(began, max((t for t in self._kills if t < again), default=began)) for began, again in spans]
        return sum(max(0.0, ended - began) for began, ended in ends)


def left_behind(root: Path) -> list[str]:
    """What a study that ended should not have left: checkpoints of Ray Train's."""
    return [str(path) for path in (root / "stages" / ".train").glob("*")] if (root / NAME).is_dir() else []
