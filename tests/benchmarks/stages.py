"""What a stage costs beside its work, and whether ten thousand of them are held.

    python -m tests.benchmarks.stages [--stages 1000] [--plan 10000]

Runs a layered DAG of stages that do nothing through the real executor, runner and store on a local Ray of two CPUs,
then plans a study of ten thousand stages and runs it with a runner that takes no time. One line of JSON each.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tune_jobs.executor import Done, Outcome, execute
from tune_jobs.plan import Plan, plan
from tune_jobs.resolution import resolve
from tune_jobs.room import Capacity
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import MANIFEST, Store
from tune_jobs.study import Study
from tune_jobs.watch import Watch

LAYERS = 20
#: Stages of one arm and seed in `wide`.
OF_AN_ARM = 8


def layered(stages: int, layers: int = LAYERS) -> Plan:
    """Layers of equal width; each stage needs two of the layer before."""
    made: list[Stage] = []
    width, before = stages // layers, list[Stage]()
    for layer in range(layers):
        needs = [{b.key: b.key for b in (before[i], before[(i + 1) % width])} if before else {} for i in range(width)]
        before = [Stage(kind="no-op", config={"name": f"{layer}.{i}"}, inputs=needs[i]) for i in range(width)]
        made += before
    return Plan(tuple(made))


def wide(stages: int) -> Study:
    """A study of about so many stages: many arms, fifty seeds."""
    arms = {f"mse_{i}": {"mse": {"blocks": [1, 4], "scale": (i + 1) / 100}} for i in range(stages // OF_AN_ARM // 50)}
    return resolve({
        "study": "wide", "dataset": {"source": "digits"}, "seeds": list(range(50)), "arms": arms,
        "encoder": {"arch": "resnet18", "stem": "small"}, "downstream": {"fractions": [0.06, 1.0]},
    })  # fmt: skip


class Instant:
    """Runs a stage in no time: its folder and an empty manifest are there at once."""

    def __init__(self, store: Store, cpus: float = 64.0) -> None:
        self.store, self.cpus = store, cpus
        self.running: deque[Stage] = deque()

    def capacity(self) -> Capacity:
        return Capacity(self.cpus)

    def submit(self, stage: Stage, nodes: Sequence[str]) -> None:
        self.running.append(stage)

    def want(self, running: Iterable[Demand], ready: Iterable[Demand]) -> bool:
        return False

    def wait(self, seconds: float) -> Iterable[Done]:
        stage = self.running.popleft()
        folder = self.store.path(stage)
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text("{}")
        return [Done(stage)]

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return {}


def run_instantly(full: Plan, root: Path) -> Outcome:
    """The whole plan, with what a person sees of it written into the void."""
    store = Store(root)
    with Watch(full, console=Console(file=io.StringIO())) as watch:
        return execute(full, store, Instant(store), watch)


def held(stages: int) -> dict[str, Any]:
    """Seconds to plan so many stages, to set their execution up with and without finished ones, to run them."""
    study = wide(stages)
    with tempfile.TemporaryDirectory() as name:
        clock = Clock()
        full = plan(study, "f" * 64)
        count, planned = len(full.by_key), clock()
        run_instantly(full, Path(name))
        ran = clock()
        assert len(run_instantly(full, Path(name)).cached) == count
        return {"stages": count, "plan_s": planned, "run_s": ran, "all_cached_s": clock()}


class Clock:
    """Seconds since the last call."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return round(self._last - last, 3)


def on_ray(stages: int) -> dict[str, Any]:
    """A layered DAG of stages that do nothing, on a local Ray of two CPUs."""
    from tune_jobs.cluster import local_ray

    full, root = layered(stages), Path(tempfile.mkdtemp(prefix="intermoco-bench-"))
    try:
        with local_ray(2):
            from tune_jobs.runner import RayRunner

            store = Store(root)
            runner = RayRunner(store, {})
            runner._task = runner._ray.remote(_do_nothing)
            _run(layered(20, 2), store, runner)  # two processes are up, torch is imported
            shutil.rmtree(store.stages)
            memory, cpu, clock = _resident(), time.process_time(), time.perf_counter()
            outcome = _run(full, store, runner)
            seconds, cpu, memory = time.perf_counter() - clock, time.process_time() - cpu, _resident() - memory
        assert len(outcome.executed) == len(full.by_key)
        walls = [json.loads(path.read_text())["wall_seconds"] for path in store.stages.glob(f"*/{MANIFEST}")]
        return {
            "stages": len(full.by_key),
            "stages_per_s": round(stages / seconds, 1),
            "driver_cpu_ms_a_stage": round(1e3 * cpu / stages, 2),
            "driver_memory_grown_MiB": round(memory / 2**20, 1),
            "driver_memory_peak_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "median_ms_of_the_work_itself": round(1e3 * statistics.median(walls), 2),
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _run(full: Plan, store: Store, runner: Any) -> Outcome:
    with Watch(full, console=Console(file=io.StringIO())) as watch:
        return execute(full, store, runner, watch)


def _do_nothing(stage: Stage, root: str, demand: Demand, facts: Mapping[str, Any], report: Any, _: bool) -> None:
    from tune_jobs.work import perform

    perform(stage, Store(root), demand, facts, report, do=_nothing)


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


def _resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--plan", type=int, default=10_000)
    asked = parser.parse_args()
    yield held(asked.plan)
    yield on_ray(asked.stages)


if __name__ == "__main__":
    for said in main():
        print(json.dumps(said), flush=True)
