"""Kills workers, nodes and drivers under repeated studies, and compares what comes out with undisturbed ones.

    python -m tests.chaos --kills 50 --seed 0

Prints a table, and one JSON line at the end; exit status 1 where a study did not end or ended otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from tests.chaos.cluster import Cluster
from tests.chaos.kills import KINDS, PER_STUDY, Disturbed, Told, left_behind, planned
from tests.chaos.namespace import inside
from tests.chaos.study import differences


def main() -> int:
    options = _options()
    if not options.inside:
        import subprocess

        return subprocess.run(inside([sys.executable, "-m", "tests.chaos", "--inside", *sys.argv[1:]])).returncode
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    clock = time.monotonic()
    cluster = Cluster(folder / "cluster", nodes=2)
    try:
        found = _repeat(cluster, folder, options)
    finally:
        cluster.stop()
    print(json.dumps({**found, "seconds": round(time.monotonic() - clock), "seed": options.seed}))
    if found["amiss"]:
        print(f"kept: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of the studies' pretrainings, in turn")
    parser.add_argument("--arms", type=int, choices=(1, 2), default=2, help="of a study")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--doing", default="", help="shoot only at processes with this in their names")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no further kill afterwards")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _repeat(cluster: Cluster, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Studies until the kills are used up; what they told in all."""
    until = time.monotonic() + 60 * options.minutes
    # as many as it takes: one that comes when its study has just ended hits nobody
    kills = takewhile(lambda _: time.monotonic() < until, planned(sys.maxsize, options.seed, options.kinds))
    undisturbed: dict[int, Path] = {}
    all_told: list[Told] = []
    while (left := options.kills - sum(len(told.kills) for told in all_told)) > 0 and time.monotonic() < until:
        workers = options.workers[len(all_told) % len(options.workers)]
        if workers not in undisturbed:
            undisturbed[workers] = folder / f"undisturbed-{workers}"
            calm = Disturbed(cluster, undisturbed[workers], workers, options.arms).run(iter(()))
            if calm.amiss:
                raise RuntimeError(f"already undisturbed: {calm.amiss}")
            print(f"{workers} workers, undisturbed: {calm.seconds:.0f} s", flush=True)
        root = folder / f"study-{len(all_told)}"
        told = Disturbed(cluster, root, workers, options.arms, options.doing).run(islice(kills, min(left, PER_STUDY)))
        if not told.amiss:
            told.amiss += differences(root, undisturbed[workers])
            told.amiss += [f"left behind: {path}" for path in left_behind(root)]
        all_told.append(told)
        _print(len(all_told), workers, told)
    return {
        "studies": len(all_told),
        "kills": sum(len(told.kills) for told in all_told),
        "killed": [text for told in all_told for text in told.kills],
        "by_kind": dict(Counter(text.split()[0] for told in all_told for text in told.kills)),
        "recomputed_seconds": round(sum(told.recomputed for told in all_told), 1),
        "recomputed_seconds_in_manifests": round(sum(told.noted for told in all_told), 1),
        "filled_with_rubbish": sum(told.rubbish for told in all_told),
        "amiss": [f"study {i}: {text}" for i, told in enumerate(all_told) for text in told.amiss],
    }


def _print(number: int, workers: int, told: Told) -> None:
    kinds = Counter(text.split()[0] for text in told.kills)
    print(
        f"study {number:3} of {workers} workers: {told.seconds:5.0f} s, killed {kinds['worker']} workers "
        f"{kinds['node']} nodes {kinds['driver']} drivers, {told.recomputed:5.1f} s done again: "
        f"{'; '.join(told.amiss) or 'as undisturbed'}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
