"""One CKA of as many images as ChestX-ray14 tests, in a process of its own, so that its peak memory can be told.

    python -m tests.benchmarks.all_images linear|rbf [--images 22432] [--width 2048]

Prints a line of JSON: seconds, peak GiB, and what was found. Features are made up: half of one side is the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import cka

IMAGES, WIDTH, PERMUTATIONS = 22_432, 2048, 20


def features(images: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two float32 [images, width], the second half the first, half noise; none negative, as after a ReLU."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((images, width), dtype=np.float32) for _ in range(2))
    for at in range(0, images, 1024):  # a few rows at a time: what is made here must not set the peak
        y[at : at + 1024] += np.roll(x[at : at + 1024], 1, axis=1)
    return np.maximum(x, 0, out=x), np.maximum(y, 0, out=y)


@cache
def measured(kernel: str, images: int = IMAGES, width: int = WIDTH) -> dict[str, Any]:
    """What a process for this kernel says, once for each."""
    sizes = ["--images", str(images), "--width", str(width)]
    command = [sys.executable, "-m", "tests.benchmarks.all_images", kernel, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kernel", choices=("linear", "rbf"))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--width", type=int, default=WIDTH)
    asked = parser.parse_args()
    x, y = features(asked.images, asked.width)
    about: dict[str, Any] = {"permutations": PERMUTATIONS, "rng": np.random.default_rng(0)}
    began, spent = time.perf_counter(), time.process_time()
    found = cka.linear(x, y, **about) if asked.kernel == "linear" else cka.rbf(x, y, bandwidth=0.8, **about)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    print(json.dumps({"seconds": seconds, "cpu_seconds": spent, "peak_GiB": _peak(), **asdict(found)}))


def _peak() -> float:
    """Most memory this process has held so far, in GiB. Not `getrusage`: its figure begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 2**20


if __name__ == "__main__":
    main()
