"""On two nodes: do stages go to the node that has their inputs, and does that leave a node idle?

    python -m tests.chaos.affinity [--stages 200]

Runs chains of stages that do nothing, then single ones that all read what one node has, with and without the wish for
a node, in a network namespace of its own. One line of JSON: shares of stages on their input's node, stages per second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.cluster import ADDRESS, Cluster
from tests.chaos.namespace import inside
from tune_jobs.plan import Plan
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import MANIFEST, Store

REPOSITORY = Path(__file__).parents[2]
#: Seconds of a stage that reads what one node has: long enough that both nodes are wanted.
SECONDS = 0.05


def chains(count: int) -> Plan:
    """Pairs: a stage, and one that reads what it left."""
    firsts = [Stage(kind="no-op", config={"name": f"first {i}"}) for i in range(count // 2)]
    return Plan((
        *firsts, *(Stage(kind="no-op", config={"name": f"then {i}"}, inputs={"x": s.key}) for i, s in enumerate(firsts))
    ))  # fmt: skip


def fan(count: int) -> Plan:
    """Stages that all read what a single one left."""
    root = Stage(kind="no-op", config={"name": "root"})
    names = (f"leaf {i}" for i in range(count))
    return Plan((root, *(Stage(kind="no-op", config={"name": n, "s": SECONDS}, inputs={"x": root.key}) for n in names)))


def _on_a_node(stage: Stage, root: str, demand: Demand, facts: Any, report: Any) -> None:
    from tune_jobs.work import perform

    perform(stage, Store(root), demand, facts, report, do=_note)


def _note(stage: Stage, *_: Any) -> dict[str, Any]:
    import ray

    time.sleep(stage.config.get("s", 0.0))
    return {"node": ray.get_runtime_context().get_node_id()}


def measured(full: Plan, root: Path, *, rather: bool) -> dict[str, Any]:
    """One run; `rather`: with the wish for a node."""
    from tests.benchmarks.stages import _run
    from tune_jobs.runner import RayRunner

    class Anywhere(RayRunner):
        def submit(self, stage: Stage, nodes: Sequence[str] = ()) -> None:
            super().submit(stage, ())

    store = Store(root)
    runner = RayRunner(store, {}) if rather else Anywhere(store, {})
    runner._task = runner._ray.remote(_on_a_node)
    began = time.monotonic()
    outcome = _run(full, store, runner)
    seconds = time.monotonic() - began
    assert len(outcome.executed) == len(full.by_key)
    node = {key: json.loads((store.path(s) / MANIFEST).read_text())["node"] for key, s in full.by_key.items()}
    reads = [(key, needed) for key, s in full.by_key.items() for needed in s.inputs.values()]
    return {
        "on_its_inputs_node": round(sum(node[key] == node[needed] for key, needed in reads) / len(reads), 3),
        "stages_per_s": round(len(full.by_key) / seconds, 1),
        "by_node": sorted(Counter(node.values()).values()),
    }


def scenario(stages: int) -> dict[str, Any]:
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    with tempfile.TemporaryDirectory(prefix="intermoco-") as name:
        cluster = Cluster(Path(name), nodes=1)
        from tune_jobs.cluster import joined_ray

        try:
            with joined_ray(ADDRESS):
                roots = (Path(name) / f"runs-{i}" for i in range(100))
                measured(chains(20), next(roots), rather=True)  # processes are up on both
                plans = {"chains": chains(stages), "fan": fan(stages)}
                return {
                    f"{what} {how}": measured(full, next(roots), rather=how == "near")
                    for what, full in plans.items()
                    for how in ("near", "anywhere")
                }
        finally:
            cluster.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=200)
    parser.add_argument("--inside", action="store_true")
    asked = parser.parse_args()
    if asked.inside:
        print(json.dumps(scenario(asked.stages)))
    else:
        command = [sys.executable, "-m", "tests.chaos.affinity", "--inside", "--stages", str(asked.stages)]
        sys.exit(subprocess.run(inside(command), cwd=REPOSITORY).returncode)
