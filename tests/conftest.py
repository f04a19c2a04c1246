from __future__ import annotations

import os
from pathlib import Path

import pytest

#: Python runs the `sitecustomize.py` there as a process of a test starts.
STARTUP = str(Path(__file__).with_name("startup"))
if STARTUP not in (paths := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (STARTUP, *paths)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, as their timeouts say: the short ones then fill what is left of the other core."""

    def seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0.0

    items.sort(key=lambda item: -seconds(item))
