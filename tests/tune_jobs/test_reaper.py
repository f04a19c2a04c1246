from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tune_jobs.reaper import LOOK_SECONDS, descendants

DRIVER = """
import subprocess, sys, time
from tune_jobs.reaper import reaping
with reaping(sys.argv[1]):
    child = subprocess.Popen([sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '60'])"])
    print(child.pid, flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
    time.sleep(float(sys.argv[3]))
"""


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray"


def start(folder: Path, how: str) -> tuple[subprocess.Popen[str], list[int]]:
    words = [sys.executable, "-c", DRIVER, str(folder), how, str(3 * LOOK_SECONDS)]
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    with driver.stdout:
        child = int(driver.stdout.readline())
    deadline = time.monotonic() + 15
    while not descendants(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    return driver, [child, *descendants(child)]


def test_a_killed_driver_takes_its_descendants_and_its_folder_along(folder: Path) -> None:
    driver, pids = start(folder, "wait")
    assert len(pids) == 2
    time.sleep(3 * LOOK_SECONDS)
    driver.kill()
    driver.wait()
    assert gone(pids)
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()


def test_an_orderly_end_kills_nobody(folder: Path) -> None:
    driver, pids = start(folder, "leave")
    driver.wait(timeout=30)
    assert driver.returncode == 0
    assert all(map(alive, pids))
    assert folder.is_dir()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_descendants_are_children_and_theirs_and_nobody_else() -> None:
    child = subprocess.Popen(["sleep", "30"])
    try:
        assert child.pid in descendants(os.getpid())
        assert os.getpid() not in descendants(child.pid)
        assert os.getppid() not in descendants(os.getpid())
    finally:
        child.kill()
        child.wait()
