"""Ten thousand stages: planned in seconds, and run, with all that a person sees, in time that grows as they do."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks.stages import layered, run_instantly, wide  # noqa: E402
from tune_jobs.plan import Plan, plan  # noqa: E402


@pytest.fixture
def quick() -> Iterator[Path]:
    """A folder in memory where there is one: a disk that is busy with twenty thousand files would be measured."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


def cpu_seconds_to_run(full: Plan, root: Path) -> float:
    began = time.process_time()
    outcome = run_instantly(full, root)
    assert len(outcome.executed) == len(full.by_key)
    return time.process_time() - began


def test_ten_thousand_stages_plan_in_under_five_seconds() -> None:
    study = wide(10_000)
    began = time.process_time()
    full = plan(study, "f" * 64)
    assert len(full.by_key) >= 10_000
    assert time.process_time() - began < 5


def test_running_ten_thousand_costs_five_times_what_two_thousand_cost(quick: Path) -> None:
    few = cpu_seconds_to_run(layered(2_000), quick / "few")
    many = cpu_seconds_to_run(layered(10_000), quick / "many")
    assert many < 10 * few  # were anything looked through at each stage's end, it would be 25 times
    began = time.process_time()
    assert len(run_instantly(layered(10_000), quick / "many").cached) == 10_000
    assert time.process_time() - began < 5
