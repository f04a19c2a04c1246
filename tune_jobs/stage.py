"""A stage is data: what to do, with which configuration, from which inputs. Its identity is a hash of just that."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Kind = Literal["data", "audit", "pretrain", "finetune", "features", "probe", "reuse", "ks", "score"]

#: Raised by hand when a kind's code starts to leave other results for the same config and inputs.
VERSIONS: Mapping[str, int] = {
    "data": 2,
    "audit": 1,
    "pretrain": 3,
    "finetune": 4,
    "features": 2,
    "probe": 2,
    "reuse": 2,
    "ks": 1,
    "score": 1,
}


def canonical(value: Any) -> str:
    """JSON with sorted keys and shortest floats: equal values give equal text on every machine."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """How a stage runs: what it asks of the cluster. Never part of its identity."""

    workers: int = 1
    least_workers: int | None = None  # go on with as few where nodes are lost; None: with `workers` alone
    cpus: float = 1.0  # a worker
    accelerators: float | None = 0.0  # a worker; None: `share` of one where the cluster has any
    share: float = 1.0
    checkpoint_seconds: float = 60.0  # between the checkpoints of a stage that can be resumed
    restarts: int = 3  # where a worker or its node was lost

    def on(self, cluster_accelerators: float) -> Demand:
        """This demand with the accelerators settled for a cluster that has so many."""
        if self.accelerators is not None:
            return self
        enough = cluster_accelerators >= self.workers * self.share
        return dataclasses.replace(self, accelerators=self.share if enough else 0.0)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One cached unit of work, a node of the study's DAG.

    `inputs` maps the role of an input to the key of the stage that leaves it. `labels` say what the stage is in this
    study (arm, seed, mode, label_fraction); two arms with the same configuration share one stage under two labels.
    """

    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    demand: Demand = field(default_factory=Demand)

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits: kind, the kind's version, complete config and the inputs' keys. No path, host or date."""
        identity = {
            "kind": self.kind,
            "version": VERSIONS.get(self.kind, 0),
            "config": self.config,
            "inputs": dict(self.inputs),
        }
        return hashlib.sha256(canonical(identity).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """Name of the stage's folder in the store."""
        return f"{self.kind}-{self.key}"

    @property
    def name(self) -> str:
        """What a person calls it: `finetune moco_mse seed 0 full 1%`."""
        words = [self.kind]
        if "arm" in self.labels:
            words.append(str(self.labels["arm"]))
        if "seed" in self.labels:
            words.append(f"seed {self.labels['seed']}")
        if "mode" in self.labels:
            words.append(str(self.labels["mode"]))
        if "label_fraction" in self.labels:
            words.append(f"{100 * self.labels['label_fraction']:g}%")
        if "of" in self.labels:
            words.append(f"({self.labels['of']})")
        return " ".join(words)
