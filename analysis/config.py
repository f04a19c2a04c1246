"""What a user may set about the analyses: frozen, typed, checked once at construction. No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ssl_core.config import BLOCKS, LabelsConfig, Metric
from ssl_core.errors import ConfigError

#: linear: debiased linear CKA; rbf: debiased RBF CKA, bandwidth relative to the median distance; authors: biased RBF
#: CKA with an absolute bandwidth, averaged over random sets of images, as the paper's authors ran it.
Kernel = Literal["linear", "rbf", "authors"]

#: What a configuration may be chosen by: quality on validation, then what one model of it costs.
Quality = Literal["score", "worst_class", "ece", "brier"]
Objective = Literal["score", "worst_class", "ece", "brier", "accelerator_seconds", "wall_seconds", "peak_memory"]
QUALITIES: tuple[Quality, ...] = ("score", "worst_class", "ece", "brier")

_STRICT: dict[str, Any] = {"extra": "forbid"}


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Linear classifiers on the pooled output of each block of a frozen encoder (paper section 3.4.2)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    blocks: tuple[int, ...] = BLOCKS
    fraction: float = 1.0
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-2
    weight_decay: float = 1e-4
    metric: Metric = "auroc"
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [b for b in self.blocks if b not in BLOCKS]
        _require(not unknown, f"probe: block {unknown} does not exist; blocks are 1, 2, 3 and 4")
        _require(len(self.blocks) > 0, "probe: name at least one block")
        _require(0 < self.fraction <= 1, f"probe: label fraction {self.fraction} must lie in (0, 1]")
        for name in ("epochs", "batch_size"):
            _require(getattr(self, name) >= 1, f"probe: {name} {getattr(self, name)} must be at least 1")
        _require(self.learning_rate > 0, f"probe: learning_rate {self.learning_rate} must be above 0")
        for name in ("weight_decay", "bootstrap", "seed"):
            _require(getattr(self, name) >= 0, f"probe: {name} {getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True)
class ReuseConfig:
    """CKA between an encoder's block features before and after full fine-tuning (paper section 3.4.1)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    kernels: tuple[Kernel, ...] = ("linear", "rbf", "authors")
    bandwidth: float = 0.8  # rbf: times the median distance; authors: absolute
    sets: int = 50  # authors: random sets of images
    set_size: int = 1000  # authors: images a set, or all where there are fewer
    max_images: int = 5000  # images compared, a seeded draw where the test set is larger
    permutations: int = 20  # of the null
    seed: int = 0

    def __post_init__(self) -> None:
        _require(len(self.kernels) > 0, "reuse: name at least one of the kernels linear, rbf, authors")
        _require(self.bandwidth > 0, f"reuse: bandwidth {self.bandwidth} must be above 0")
        for name in ("sets", "permutations"):
            _require(getattr(self, name) >= 1, f"reuse: {name} {getattr(self, name)} must be at least 1")
        for name in ("set_size", "max_images"):
            _require(getattr(self, name) >= 4, f"reuse: {name} {getattr(self, name)} must be at least 4")


@dataclass(frozen=True, kw_only=True)
class KsConfig:
    """Kolmogorov-Smirnov distance of a model's test probabilities from the reference's (paper section 3.4.3)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    metric: Metric = "auroc"  # the validation score that picks the reference among the models trained on all labels
    calibration_bins: int = 15  # of the expected calibration error

    def __post_init__(self) -> None:
        _require(self.calibration_bins >= 2, f"ks: calibration_bins {self.calibration_bins} must be at least 2")


@dataclass(frozen=True, kw_only=True)
class DecisionConfig:
    """Which models compete to be shipped, and by what: read from finished stages, so part of no stage's identity."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    mode: Literal["full", "linear"] = "full"  # full: all weights trained, from pretrained weights or from random ones
    fraction: float | None = None  # label fraction of the models compared; None: the study's largest of that mode
    objectives: tuple[Objective, ...] = ("score", "accelerator_seconds", "peak_memory")  # the first of them ranks

    def __post_init__(self) -> None:
        _require(len(self.objectives) > 0, "decision.objectives: name at least one, e.g. [score]")
        first = self.objectives[0]
        _require(
            first in QUALITIES,
            f"decision.objectives: the first ranks, and {first} says nothing of quality; begin with one of "
            f"{', '.join(QUALITIES)}",
        )
        twice = len(set(self.objectives)) < len(self.objectives)
        _require(not twice, f"decision.objectives: one is named twice in {list(self.objectives)}")
        if self.fraction is not None:
            _require(
                0 < self.fraction <= 1,
                f"decision.fraction {self.fraction} must lie in (0, 1]; 0.01 is one percent of the training labels",
            )
