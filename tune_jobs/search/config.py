"""What a study says about its search: frozen, typed, checked once at construction. No optuna is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from analysis.config import ProbeConfig
from ssl_core.config import PretrainConfig
from ssl_core.errors import ConfigError
from tune_jobs.search.space import Space

#: What a trial may be judged by. `score` is validated, never tested; seconds are of training alone.
Objective = Literal["score", "ece", "seconds", "accelerator_seconds", "peak_memory"]
#: Those that are better the higher they are.
MAXIMISED = ("score",)

_STRICT: dict[str, Any] = {"extra": "forbid"}


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Who suggests the next trial: one of Optuna's samplers."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    # tpe: multivariate, grouped by condition; grid: every combination of the discrete parameters, the rest at random
    kind: Literal["tpe", "gp", "nsga2", "nsga3", "cmaes", "random", "grid"] = "tpe"
    startup: int = 10  # random trials before the model is asked (tpe, gp)
    population: int = 20  # of a generation (nsga2, nsga3)
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.startup >= 1, f"startup {self.startup} must be at least 1 trial")
        _require(self.population >= 2, f"population {self.population} must be at least 2")
        _require(self.seed >= 0, f"seed {self.seed} must not be negative")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Who stops a trial that does badly: one of Optuna's pruners, asked after each evaluation."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    kind: Literal["asha", "hyperband", "median", "none"] = "asha"
    # what counts as progress; seconds are accelerator seconds where the trial has any, else CPU seconds of training
    on: Literal["epochs", "seconds"] = "epochs"
    first: int = 1  # epochs or seconds before the first decision
    reduction: int = 3  # asha, hyperband: of so many trials that reach a rung one goes on

    def __post_init__(self) -> None:
        _require(self.first >= 1, f"first {self.first} must be at least 1")
        _require(self.reduction >= 2, f"reduction {self.reduction} must be at least 2")

    def looks(self, epoch: int, epochs: int) -> bool:
        """Whether a trial of so many `epochs` is evaluated after `epoch`: where it may be stopped, and at its end.

        On digits an evaluation costs as much as a sixth of an epoch; at the rungs alone it is a few in all.
        """
        if self.kind in ("asha", "hyperband") and self.on == "epochs":
            rung = self.first
            while rung < epoch:
                rung *= self.reduction
            return epoch in (rung, epochs)
        return True


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Ray Tune and Optuna over a study's space. A trial that runs to its end is a pretrain stage like any other."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {**_STRICT, "arbitrary_types_allowed": True}
    space: Space
    bases: Mapping[str, PretrainConfig]  # by the loss that is on, what a trial is before its parameters are laid on it
    objectives: tuple[Objective, ...]
    score: ProbeConfig  # linear probe of one block's pooled features, at the label fraction that the study names
    seeds: tuple[int, ...]  # replicates within a trial, apart from the study's: the winner must not be the luckiest
    trials: int = 50  # that are trained; a suggestion that was there before is not
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    warm_starts: tuple[Mapping[str, Any], ...] = ()  # tried after the paper's settings, before anything is sampled
    promote: int = 2  # best trials that become arms, pretrained anew with the study's seeds
    controls: bool = True  # whether each of those is compared with itself without its block losses, as an arm more
    concurrent: int | Literal["auto"] = "auto"  # trials at a time; auto: what the cluster holds
    storage: str | None = None  # of Optuna, e.g. postgresql://...; null: SQLite in the study's folder

    def __post_init__(self) -> None:
        _require(self.trials >= 1, f"trials {self.trials} must be at least 1")
        _require(self.promote >= 0, f"promote {self.promote} must not be negative")
        _require(
            self.concurrent == "auto" or (isinstance(self.concurrent, int) and self.concurrent >= 1),
            f"concurrent {self.concurrent!r} must be at least 1, or auto",
        )
        _require(len(self.seeds) > 0, "seeds: name at least one")
        _require(
            len(set(self.seeds)) == len(self.seeds) and min(self.seeds) >= 0,
            f"seeds {list(self.seeds)} must be distinct and not negative",
        )
        _require(len(self.objectives) > 0, "objectives: name at least one, e.g. `objectives: [score]`")
        _require(
            len(set(self.objectives)) == len(self.objectives), f"objectives {list(self.objectives)}: one is named twice"
        )
        _require(len(self.score.blocks) == 1, f"score.blocks {list(self.score.blocks)}: name the one block that counts")
