"""What a study asks of a model before it may become the champion: frozen, checked once at construction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from ssl_core.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # MLflow allows more; this goes into addresses as it is


@dataclass(frozen=True, kw_only=True)
class PromotionConfig:
    """Bounds of the gates, measured on the validation images, and the registered model's name."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}
    ece: float = 0.1  # expected calibration error at most (`analysis.calibration`)
    worst_class: float = 0.5  # at least: lowest recall of a class; multi-label: lowest AUROC of a label
    model: str | None = None  # the registered model's name; the study's where not given
    temperature: bool = False  # scale the logits by one number, fitted on validation, before they become probabilities
    # an exported file's probabilities at most so far from the evaluated ones; both are computed in float32
    export_within: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("ece", "worst_class", "export_within"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"promotion.{name} {value} must lie in [0, 1]")
        if self.model is not None and not _NAME.fullmatch(self.model):
            raise ConfigError(
                f"promotion.model: name {self.model!r} may hold letters, digits, - and _ alone, 100 at most"
            )
