"""What the parts of a study must agree on; a ConfigError names the key and the remedy."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.config import DecisionConfig
from ssl_core.config import PretrainConfig
from ssl_core.errors import ConfigError
from tune_jobs.study import Downstream, Resources
from tune_jobs.tracking_client import HIDDEN


def check_whole(key: str, address: str | None, instead: str) -> None:
    """ConfigError for an address of which a run left the password out of its study.yaml."""
    if address and HIDDEN in address:
        raise ConfigError(
            f"{key}: {address} lacks its password, which no run writes to a file; give it whole by --set, or {instead}"
        )


def check_elastic(resources: Resources, pretrained: Mapping[str, PretrainConfig | None]) -> None:
    """ConfigError where a result would depend on which nodes are lost."""
    if resources.least_workers is None:
        return
    for name, config in pretrained.items():
        if config is None:
            continue
        if config.batch_norm == "worker" and resources.workers > 1:
            raise ConfigError(
                f"resources.least_workers {resources.least_workers}: arm {name} has batch_norm worker, so its result "
                "would depend on which nodes are lost; set pretrain.batch_norm: sync, or least_workers: null"
            )


def check_comparable(name: str, own: Downstream, study: Downstream) -> None:
    """Arms of a study are compared at the same fractions in the same metric."""
    for key in ("metric", "fractions", "linear_fractions"):
        if getattr(own, key) != getattr(study, key):
            raise ConfigError(f"arms.{name}.downstream.{key}: arms are compared in one {key}; set downstream.{key}")


def check_fractions(where: str, fractions: tuple[float, ...], known: tuple[float, ...] | None = None) -> None:
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise ConfigError(f"{where}: {fraction} must lie in (0, 1]; 0.01 is one percent of the training labels")
        if known is not None and fraction not in known:
            raise ConfigError(f"{where}: {fraction} is not among downstream.fractions {list(known)}; add it there")
    if len(set(fractions)) < len(fractions):
        raise ConfigError(f"{where}: a fraction is named twice in {list(fractions)}")


def check_seeds(seeds: tuple[int, ...]) -> None:
    if not seeds:
        raise ConfigError("seeds: name at least one, e.g. `seeds: [0, 1, 2]`")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"seeds: {list(seeds)} must be distinct and not negative")


def label_fraction(decision: DecisionConfig, downstream: Downstream) -> float | None:
    """Of the models that a decision compares: as it says, or the largest; None where no model is trained in its mode.

    Raises ConfigError for a fraction at which nothing is trained.
    """
    key = "linear_fractions" if decision.mode == "linear" else "fractions"
    trained: tuple[float, ...] = getattr(downstream, key)
    if decision.fraction is None:
        return max(trained, default=None)
    if decision.fraction not in trained:
        raise ConfigError(
            f"decision.fraction: {decision.fraction} is not among downstream.{key} {list(trained)}; add it there, or "
            "choose one of them"
        )
    return decision.fraction
