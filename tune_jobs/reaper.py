"""Ends a local Ray whose driver was killed: Ray's own agents outlive a SIGKILL of the driver by minutes.

A process of its own, started beside a local Ray. Its standard input is a pipe that the driver alone holds open: when
the pipe ends without a word, the driver was killed. Needs /proc; elsewhere Ray's own clean-up has to do.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
LOOK_SECONDS = 0.5


@contextlib.contextmanager
def reaping(folder: str) -> Iterator[None]:
    """While the body runs: should this process die, its descendants are killed and `folder` is removed."""
    if not (PROC / "self" / "stat").exists():
        yield
        return
    command = [sys.executable, "-m", "tune_jobs.reaper", str(os.getpid()), folder]
    # a session of its own: Ctrl-C in the terminal is for the driver
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield
        finally:
            assert process.stdin is not None
            process.stdin.write(b"done")


def watch(driver: int, folder: str) -> None:
    """Note the driver's descendants until standard input ends; if that came without a word, kill those still there."""
    seen: dict[int, str] = {}
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        seen = {pid: born for pid, born in seen.items() if _born(pid) == born} | descendants(driver)
    if sys.stdin.buffer.read():
        return
    seen.pop(os.getpid(), None)
    for pid, born in seen.items():
        if _born(pid) == born:  # still the process that was noted, not another under its number
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(_born(pid) == born for pid, born in seen.items()):
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def descendants(root: int) -> dict[int, str]:
    """Processes below `root`, with the time of their birth."""
    parent: dict[int, int] = {}
    born: dict[int, str] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (facts := _stat(int(entry.name))):
            parent[int(entry.name)], born[int(entry.name)] = int(facts[1]), facts[19]
    below: dict[int, str] = {}
    for pid in parent:
        line = pid
        while line in parent and line != root:
            line = parent[line]
        if line == root and pid != root:
            below[pid] = born[pid]
    return below


def _born(pid: int) -> str | None:
    facts = _stat(pid)
    return facts[19] if facts and facts[0] != "Z" else None


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on; None where the process is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2])
