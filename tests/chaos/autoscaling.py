"""An autoscaling cluster whose head has no CPU: a study makes a node start, uses it, and lets it go.

    python -m tests.chaos.autoscaling

Runs stages that do nothing on Ray's fake node provider, in a network namespace of its own. Takes about two minutes;
prints one line of JSON. Not part of `make test`, which asks the same of the executor with a runner that grows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.chaos.namespace import inside

ADDRESS = "127.0.0.1:6379"
REPOSITORY = Path(__file__).parents[2]
SECONDS = 150.0


def config(folder: Path) -> Path:
    """Of a cluster that may have two nodes with one CPU each beside its head, and drops those that idle for 6 s."""
    path = folder / "autoscaling.json"
    node = {
        "resources": {"CPU": 1, "object_store_memory": 80_000_000},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = {
        "type": "fake_multinode", "gcs_address": ADDRESS, "use_node_id_as_ip": True, "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }  # fmt: skip
    path.write_text(
        json.dumps({
            "cluster_name": "fake", "max_workers": 2, "upscaling_speed": 10.0, "idle_timeout_minutes": 0.1,
            "docker": {}, "provider": provider, "auth": {}, "available_node_types": {"ray.worker": node,
            "ray.head.default": head}, "head_node_type": "ray.head.default", "file_mounts": {},
            "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [],
            "rsync_filter": [], "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
            "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
        })
    )  # fmt: skip
    return path


def scenario(folder: Path) -> dict[str, Any]:
    os.environ.update(
        RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 64,
        RAY_USAGE_STATS_ENABLED="0", TMPDIR=str(folder), PYTHONPATH=str(REPOSITORY),
    )  # fmt: skip
    ray_command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--port=6379", "--num-cpus=0"]
    ray_command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--object-store-memory=80000000"]
    ray_command += [f"--autoscaling-config={config(folder)}", f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"]
    subprocess.run(ray_command, check=True, stdout=subprocess.DEVNULL)

    from tests.benchmarks.stages import _do_nothing, _run, layered
    from tune_jobs.cluster import joined_ray
    from tune_jobs.runner import RayRunner
    from tune_jobs.store import Store

    with joined_ray(ADDRESS):
        import ray

        def nodes() -> int:
            return sum(node["Alive"] for node in ray.nodes())

        def until(count: int) -> float:
            began = time.monotonic()
            while nodes() != count and time.monotonic() - began < SECONDS:
                time.sleep(0.5)
            return round(time.monotonic() - began, 1)

        store = Store(folder / "runs")
        seen: dict[str, Any] = {"nodes_before": nodes()}
        runner = RayRunner(store, {}, most=(2.0, 0.0))
        runner._task = ray.remote(_do_nothing)
        began = time.monotonic()
        try:
            outcome = _run(layered(12, 3), store, runner)
        finally:
            runner.close()
        seen |= {"executed": len(outcome.executed), "failed": [str(e) for e in outcome.failed.values()]}
        seen |= {"seconds": round(time.monotonic() - began, 1), "nodes_at_the_end": nodes()}
        seen |= {"let_go_after_s": until(1), "nodes_after": nodes()}
    return seen


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        with tempfile.TemporaryDirectory(prefix="intermoco-") as name:
            print(json.dumps(scenario(Path(name))))
    else:
        command = [sys.executable, "-m", "tests.chaos.autoscaling", "--inside"]
        sys.exit(subprocess.run(inside(command), cwd=REPOSITORY).returncode)
