"""A study: one question, one YAML file, as one frozen value (`tune_jobs.resolution` makes it)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import yaml

from analysis.config import DecisionConfig, KsConfig, ProbeConfig, ReuseConfig
from ssl_core.config import (
    EncoderConfig,
    FinetuneConfig,
    LabelsConfig,
    Metric,
    PretrainConfig,
)
from ssl_core.data.config import DatasetConfig
from ssl_core.errors import ConfigError
from tune_jobs.promotion.config import PromotionConfig
from tune_jobs.protocol import Protocol
from tune_jobs.schema import plain
from tune_jobs.search.config import SearchConfig
from tune_jobs.tracking_client import mask

_STRICT: dict[str, Any] = {"extra": "forbid"}
#: Of a fine-tuning: what the study sets, and what it sets for linear, full and probe alike.
SET_BY_STUDY = ("mode", "fraction", "seed", "encoder")
#: Of a dataset: what an arm may set for itself.
PACKING = ("size", "crop", "channels", "intensity")
SHARED = ("metric", "bootstrap", "resample", "paper_spread", "labels")
#: Of a search's score: what the study sets.
SCORE_SET = ("metric", "bootstrap", "labels", "seed")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What stages ask of the cluster. Changes no result, so it is no part of a stage's identity.

    But `workers` above 1 is, where batch norm sees a worker's own share of the batch (`pretrain.batch_norm: worker`).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    workers: int = 1  # of one pretraining
    downstream_workers: int = 1  # of one fine-tuning, and of one extraction of features
    least_workers: int | None = None  # go on with as few where nodes are lost; null: wait. Needs batch_norm: sync
    cpus: int = 1  # of a worker, and of every other stage
    accelerators: float | Literal["auto"] = "auto"  # of a worker; auto: one where the cluster has any
    # of an accelerator, for stages that train no encoder (features, linear fine-tuning): several share one
    accelerator_share: float = 0.25
    # that a cluster's autoscaler may be asked for, in all; 0: a study makes do with the nodes that are there
    most_cpus: float = 0.0
    most_accelerators: float = 0.0
    checkpoint_seconds: float = 60.0  # between a pretraining's checkpoints
    restarts: int = 3  # of a stage whose worker or node was lost; an error of its own is not tried again

    def __post_init__(self) -> None:
        for name in ("workers", "downstream_workers", "cpus"):
            if getattr(self, name) < 1:
                raise ConfigError(f"resources.{name} {getattr(self, name)} must be at least 1")
        if self.least_workers is not None and not 1 <= self.least_workers <= self.workers:
            raise ConfigError(
                f"resources.least_workers {self.least_workers} must lie in [1, resources.workers {self.workers}]"
            )
        if not 0 < self.accelerator_share <= 1:
            raise ConfigError(f"resources.accelerator_share {self.accelerator_share} must lie in (0, 1]")
        if self.restarts < 0:
            raise ConfigError(f"resources.restarts {self.restarts} must not be negative")
        if self.accelerators != "auto" and self.accelerators < 0:
            raise ConfigError(f"resources.accelerators {self.accelerators} must not be negative")
        for name in ("checkpoint_seconds", "most_cpus", "most_accelerators"):
            if getattr(self, name) < 0:
                raise ConfigError(f"resources.{name} {getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where MLflow is. Without a uri: SQLite below the output folder."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    uri: str | None = None
    experiment: str | None = None  # the study's name where not given


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """Fine-tuning: which label fractions, in which modes, with which settings; what is reported, and how."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    metric: Metric = "auroc"
    bootstrap: int = 1000
    resample: Literal["groups", "images"] = "groups"
    paper_spread: Literal["score", "labels"] = "score"
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    fractions: tuple[float, ...] = (0.01, 0.06, 1.0)  # modes full and scratch (paper Table 2)
    linear_fractions: tuple[float, ...] = (1.0,)  # mode linear (paper Table 1)
    linear: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(mode="linear"))
    full: FinetuneConfig = field(default_factory=FinetuneConfig)  # scratch trains as full does


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything a study is, resolved. An arm is its pretraining, or None for `scratch`: no pretraining."""

    study: str
    question: str = ""
    protocol: Protocol
    dataset: DatasetConfig
    seeds: tuple[int, ...]
    baseline: str
    encoder: EncoderConfig
    arms: Mapping[str, PretrainConfig | None]
    downstream: Downstream
    tuned_apart: Mapping[str, Downstream]  # arms with downstream settings of their own
    packed_apart: Mapping[str, DatasetConfig]  # arms that see the images at another size
    probe: ProbeConfig | None
    probe_fractions: tuple[float, ...]
    reuse: ReuseConfig | None
    reuse_fractions: tuple[float, ...]
    ks: KsConfig | None
    search: SearchConfig | None
    decision: DecisionConfig
    resources: Resources
    tracking: Tracking
    promotion: PromotionConfig

    def downstream_of(self, arm: str) -> Downstream:
        return self.tuned_apart.get(arm, self.downstream)

    def dataset_of(self, arm: str) -> DatasetConfig:
        return self.packed_apart.get(arm, self.dataset)

    def to_yaml(self) -> str:
        """The study with every default written out; reading it back gives an equal study, if it holds no password.

        Passwords in the addresses of MLflow and of Optuna's storage are left out.
        """
        return yaml.safe_dump(_plain_study(self), sort_keys=False, allow_unicode=True, width=110)


def _plain_study(study: Study) -> dict[str, Any]:
    """The resolved study in the schema of its YAML: what the study sets itself is left out again."""

    def without(config: Any, *names: str) -> dict[str, Any]:
        return {k: v for k, v in plain(config).items() if k not in names}

    def downstream(down: Downstream) -> dict[str, Any]:
        modes = {mode: without(getattr(down, mode), *SET_BY_STUDY, *SHARED) for mode in ("linear", "full")}
        return {**without(down, "linear", "full"), "labels": without(down.labels, "salt"), **modes}

    def search(config: SearchConfig) -> dict[str, Any]:
        bases = {loss: without(base, "seed") for loss, base in config.bases.items()}
        said = {**without(config, "space", "bases", "score"), "score": without(config.score, *SCORE_SET)}
        said["storage"] = config.storage and mask(config.storage)
        return {"space": plain(config.space.raw), **said, "bases": bases}

    def arm(name: str) -> dict[str, Any] | str:
        config = study.arms[name]
        values: dict[str, Any] = {"scratch": True} if config is None else without(config, "seed")
        if own := study.tuned_apart.get(name):
            values["downstream"] = downstream(own)
        if packed := study.packed_apart.get(name):
            values["dataset"] = {key: plain(getattr(packed, key)) for key in PACKING}
        return "scratch" if values == {"scratch": True} else values

    return {
        "study": study.study,
        "question": study.question,
        "protocol": study.protocol,
        "dataset": plain(study.dataset),
        "seeds": list(study.seeds),
        "baseline": study.baseline,
        "encoder": plain(study.encoder),
        "arms": {name: arm(name) for name in study.arms},
        "downstream": downstream(study.downstream),
        "probe": study.probe
        and {**without(study.probe, "fraction", "seed", "labels"), "fractions": list(study.probe_fractions)},
        "reuse": study.reuse and {**without(study.reuse, "seed"), "fractions": list(study.reuse_fractions)},
        "ks": study.ks and plain(study.ks),
        "search": study.search and search(study.search),
        "decision": plain(study.decision),
        "resources": plain(study.resources),
        "tracking": {**plain(study.tracking), "uri": study.tracking.uri and mask(study.tracking.uri)},
        "promotion": plain(study.promotion),
    }
