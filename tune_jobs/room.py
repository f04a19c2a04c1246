"""What a cluster's nodes have, and where the workers of a stage find room: a worker is never split over nodes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tune_jobs.stage import Demand

#: Of sums of fractions of an accelerator.
ROUNDING = 1e-9

#: CPUs and accelerators.
Pair = tuple[float, float]


@dataclass(frozen=True)
class Capacity:
    """What a cluster has in all, and which of its nodes has what of it. Without nodes: one that has it all."""

    cpus: float
    accelerators: float = 0.0
    nodes: tuple[tuple[str, float, float], ...] = ()  # its name, CPUs, accelerators
    most_cpus: float = 0.0  # that an autoscaler may bring it to
    most_accelerators: float = 0.0

    @property
    def by_node(self) -> dict[str, Pair]:
        return {name: (cpus, accs) for name, cpus, accs in self.nodes} or {"": (self.cpus, self.accelerators)}

    @property
    def may_have(self) -> float:
        """Accelerators that it has, or may be brought to."""
        return max(self.accelerators, self.most_accelerators)

    def holds(self, demand: Demand) -> bool:
        """Whether there is room for a stage where nothing else runs, or may be: of nodes to come nothing is known."""
        if place(demand.workers, each(demand, self), self.by_node) is not None:
            return True
        cpus, accelerators = totals(demand, self)
        return cpus <= self.most_cpus and accelerators <= self.may_have


@functools.lru_cache(maxsize=256)
def _each(demand: Demand, accelerators: float) -> Pair:
    settled = demand.on(accelerators)
    assert settled.accelerators is not None
    return settled.cpus, settled.accelerators


def each(demand: Demand, cluster: Capacity) -> Pair:
    """CPUs and accelerators that each worker of a stage takes on a cluster of this capacity."""
    return _each(demand, cluster.may_have)


def totals(demand: Demand, cluster: Capacity) -> Pair:
    """CPUs and accelerators that a stage takes in all on a cluster of this capacity."""
    cpus, accelerators = each(demand, cluster)
    return demand.workers * cpus, demand.workers * accelerators


def place(workers: int, needed: Pair, free: Mapping[str, Pair], near: str = "") -> tuple[str, ...] | None:
    """Nodes for the workers of a stage, a node named once for each of them; None where there is no room for all.

    As few nodes as can be: first `near`, then those on which the least is left, so that large gaps are kept.
    """
    found: list[str] = []
    for name in sorted(free, key=lambda n: (n != near, free[n][1], free[n][0])):
        found += [name] * min(_fitting(needed, free[name]), workers - len(found))
        if len(found) == workers:
            return tuple(found)
    return None


def _fitting(needed: Pair, free: Pair) -> int:
    """Workers that find room in what is free of a node."""
    counts = [int((has + ROUNDING) / need) for need, has in zip(needed, free, strict=True) if need > 0]
    return max(0, min(counts, default=1_000_000))


def take(free: dict[str, Pair], nodes: Iterable[str], needed: Pair, sign: int = 1) -> None:
    """Take what workers need from the nodes that they are on, as far as these are still there; -1 gives it back."""
    for name in nodes:
        if name in free:
            free[name] = (free[name][0] - sign * needed[0], free[name][1] - sign * needed[1])


def common(one: Mapping[str, Pair], other: Mapping[str, Pair]) -> dict[str, Pair]:
    """What is free of each node in both."""
    return {n: (min(one[n][0], other[n][0]), min(one[n][1], other[n][1])) for n in one}


def here() -> Capacity:
    """What a local Ray has."""
    return Capacity(os.cpu_count() or 1, _accelerators())


def _accelerators() -> float:
    """Accelerators of this machine, without importing torch: what Ray will find."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return float(len([d for d in visible.split(",") if d.strip()]))
    return float(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))
