from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest

#: Python runs the `sitecustomize.py` there as a process starts; this process may have been started without it.
STARTUP = Path(__file__).with_name("startup")
if str(STARTUP) not in (paths := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(STARTUP), *paths)))
    runpy.run_path(str(STARTUP / "sitecustomize.py"))
# As many processes as cores run side by side; the second thread of each would spin while it waits for its turn.
for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")
# glibc gives tensors of megabytes back at once and asks for them again, each time to be filled with zeros: a fifth of
# the time of a small training. For processes that start from here on, those of pytest-xdist among them.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**30))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, as their timeouts say: the short ones then fill what is left of the other core."""

    def seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0.0

    items.sort(key=lambda item: -seconds(item))
