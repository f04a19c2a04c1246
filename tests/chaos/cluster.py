"""A Ray cluster of several nodes on one machine, by `ray start`, that may be shot at.

Meant for a network and process namespace of its own (`tests.chaos.namespace`): it listens there alone and dies
with it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from tune_jobs.reaper import descendants

HOST, PORT = "127.0.0.1", 6379
ADDRESS = f"{HOST}:{PORT}"
#: Seconds for a node to come up on a busy machine.
PATIENCE = 180.0
#: A node that does not answer is lost after three seconds instead of fifteen.
SOON = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3"}  # fmt: skip
#: What a test's process may have set for a local Ray, and a cluster's must not have.
LOCAL = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_AUTH_TOKEN_PATH")
#: Names of Ray's processes that do no work of a study.
IDLE = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::SPILL", "ray::RESTORE")


def python() -> dict[str, str]:
    """Environment of a command of the project: one thread, this cluster's token, no word to the outside."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


@dataclass
class Node:
    """One node: `ray start --block`, and all below it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    host: str

    def up(self) -> bool:
        return self.process.poll() is None and b"Ray runtime started" in self.log.read_bytes()

    def kill(self) -> int:
        """SIGKILL to every process of the node, as if its plug had been pulled; how many there were."""
        pids = [self.process.pid, *descendants(self.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        return len(pids)


class Cluster:
    """A head and `nodes` others with one CPU each; the folder is Ray's and the processes' temporary one.

    `hosts`: the addresses of the head, of the next node, ... ; they are this machine's.
    """

    def __init__(self, folder: Path, nodes: int, hosts: Iterable[str] = repeat(HOST)) -> None:
        self.folder, self._count, self._hosts = folder, 0, iter(hosts)
        (folder / "tmp").mkdir(parents=True)
        for name in LOCAL:
            os.environ.pop(name, None)
        os.environ.update(SOON, TMPDIR=str(folder / "tmp"), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        # the head's loss would be the cluster's: it is never shot at
        head = ("--head", f"--port={PORT}", f"--temp-dir={folder / 'ray'}", "--include-dashboard=false", "--no-monitor")
        self.head = self._start(*head)
        self.nodes: list[Node] = []
        self._await_up()
        for _ in range(nodes):  # one after the other: of two at once, Ray at times loses one
            self.nodes.append(self.add())
            self._await_up()

    def add(self) -> Node:
        """A further node; it is up some seconds later."""
        return self._start(f"--address={self.head.host}:{PORT}")

    def replace(self, lost: Node) -> None:
        """A new node in the place of a lost one."""
        self.nodes[self.nodes.index(lost)] = self.add()

    def mend(self) -> None:
        """Replace nodes that ended by themselves: on a busy machine Ray gives up starting one after half a minute."""
        for node in [node for node in self.nodes if node.process.poll() is not None]:
            node.kill()
            self.replace(node)

    def _await_up(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not all(node.up() for node in self.all):
            if time.monotonic() > deadline or self.head.process.poll() is not None:
                raise RuntimeError(f"the cluster did not start: {self.head.log.read_text()[-2000:]}")
            self.mend()
            time.sleep(0.1)

    @property
    def all(self) -> list[Node]:
        return [self.head, *self.nodes]

    def workers_of(self, node: Node) -> dict[int, str]:
        """Processes that do a study's work now, with their names: training workers, stages, Train's controllers."""
        named = {pid: name_of(pid) for pid in descendants(node.process.pid)}
        return {pid: name for pid, name in named.items() if name.startswith("ray::") and not name.startswith(IDLE)}

    def stop(self) -> None:
        for node in (*self.nodes, self.head):
            node.kill()

    def _start(self, *words: str) -> Node:
        name, self._count = f"node {self._count}", self._count + 1
        log = self.folder / f"node-{self._count}.log"
        host = next(self._hosts)
        command = [str(Path(sys.executable).with_name("ray")), "start", *words, f"--node-ip-address={host}",
                   "--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats",
                   "--include-log-monitor=false", "--block"]  # fmt: skip
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, cwd=self.folder, env=python(), start_new_session=True
            )
        return Node(name, process, log, host)


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
