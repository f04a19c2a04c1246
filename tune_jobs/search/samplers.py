"""Who suggests the next trial: Optuna's samplers, made anew for each suggestion so that a kill leaves no trace."""

from __future__ import annotations

import io
import itertools
import pickle
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial

from ssl_core.errors import ConfigError
from tune_jobs.search.config import SamplerConfig
from tune_jobs.search.space import Space

#: Combinations that a grid may have; a space of more is not walked through.
LARGEST_GRID = 10_000


def check_sampler(config: SamplerConfig, objectives: Sequence[str]) -> None:
    """ConfigError where the sampler cannot work for these objectives."""
    if config.kind == "cmaes" and len(objectives) > 1:
        raise ConfigError(
            f"search.sampler.kind: cmaes takes one objective, not {', '.join(objectives)}; "
            "use nsga2, or name one objective"
        )


def make_sampler(config: SamplerConfig, index: int, *, on_score: bool) -> BaseSampler:
    """The sampler of the trial with this index; its seed is of the study's seed and the index alone.

    `on_score`: the score is the one objective, so what a pruned trial last scored says something. A grid is chosen
    from by `Combinations.sampler`.
    """
    seed = seed_of(config.seed, index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # TPE's group, NSGA-III, CMA-ES over pruned trials
        match config.kind:
            case "tpe":
                return optuna.samplers.TPESampler(
                    n_startup_trials=config.startup, multivariate=True, group=True, seed=seed
                )
            case "gp":
                return optuna.samplers.GPSampler(
                    n_startup_trials=config.startup, seed=seed, warn_independent_sampling=False
                )
            case "nsga2":
                return optuna.samplers.NSGAIISampler(population_size=config.population, seed=seed)
            case "nsga3":
                return optuna.samplers.NSGAIIISampler(population_size=config.population, seed=seed)
            case "cmaes":
                return _ConditionalCmaEs(seed=seed, consider_pruned_trials=on_score, warn_independent_sampling=False)
            case _:
                return RandomSampler(seed=seed)


def seed_of(seed: int, index: int) -> int:
    """A seed for the trial of this index."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


class _ConditionalCmaEs(CmaEsSampler):  # type: ignore[misc]
    """CMA-ES over the numbers that every trial had. Optuna's gives up for good once a trial lacks one of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._search_space = IntersectionSearchSpace(include_pruned=True)
        self._dimensions = 0

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        space: dict[str, Any] = super().infer_relative_search_space(study, trial)
        self._dimensions = len(space)
        return space if len(space) > 1 else {}  # cmaes asks for two at least

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """Of the newest trial that has one. Optuna's unpickles, and so runs, whatever the storage holds."""
        for trial in reversed(completed_trials):
            attrs = {key: v for key, v in trial.system_attrs.items() if key.startswith(self._attr_key_optimizer)}
            if attrs:
                optimizer = _optimizer(self._concat_optimizer_attrs(attrs), trial.number)
                return optimizer if optimizer.dim == self._dimensions else None
        return None


class _NumbersAlone(pickle.Unpickler):
    """Unpickles an optimizer of CMA-ES and its arrays, and nothing else."""

    ALLOWED = frozenset(
        {
            ("cmaes._cma", "CMA"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _optimizer(text: str, trial: int) -> Any:
    """The optimizer that a trial was stored with, in hexadecimal; ConfigError where it is none."""
    try:
        optimizer = _NumbersAlone(io.BytesIO(bytes.fromhex(text))).load()
        optimizer.dim  # noqa: B018  # what is no optimizer has none
    except Exception as error:  # a stream of bytes that somebody made raises anything
        raise ConfigError(
            f"search.storage: trial {trial} holds no optimizer of CMA-ES ({error}), so somebody else has written to "
            "the storage; nothing of it was run. Give another search.storage or --output"
        ) from error
    return optimizer


class Combinations:
    """Every combination of a space's discrete parameters, conditions kept, in an order of the seed's.

    `whole`: there is nothing but discrete parameters. ConfigError where there are more than `LARGEST_GRID`.
    """

    def __init__(self, space: Space, seed: int) -> None:
        walk = list(itertools.islice(_walk(space), LARGEST_GRID + 1))
        if len(walk) > LARGEST_GRID:
            raise ConfigError(
                f"search.sampler.kind: a grid over this space has more than {LARGEST_GRID} combinations; "
                "use random or tpe, or name fewer values"
            )
        self.whole = all(whole for _, whole in walk)
        self._all = [dict(values) for values, _ in walk]
        self._names = frozenset(name for values in self._all for name in values)
        random.Random(seed).shuffle(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def visited(self, trials: Sequence[FrozenTrial]) -> Counter[frozenset[Any]]:
        """How often each was tried."""
        return Counter(self._key(t.params) for t in trials)

    def done(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether each was tried and nothing else is left to vary."""
        return self.whole and self.visited(trials).keys() >= {self._key(values) for values in self._all}

    def sampler(self, trials: Sequence[FrozenTrial], seed: int) -> BaseSampler:
        """Takes the first of the least tried, and draws what is not discrete at random."""
        visited = self.visited(trials)
        return _Chosen(min(self._all, key=lambda values: visited[self._key(values)]), seed)

    def _key(self, values: Mapping[str, Any]) -> frozenset[Any]:
        return frozenset((name, value) for name, value in values.items() if name in self._names)


class _Chosen(RandomSampler):  # type: ignore[misc]
    """Values that were chosen, the rest at random."""

    def __init__(self, values: Mapping[str, Any], seed: int) -> None:
        super().__init__(seed=seed)
        self._values = values

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        if param_name in self._values:
            return self._values[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)


def _walk(space: Space) -> Iterator[tuple[dict[str, Any], bool]]:
    """Depth first through the space: each combination, and whether no parameter was left out for being continuous."""
    path: list[int] = []
    while True:
        step = _Step(path)
        space.suggest(step)
        yield step.values, step.whole
        path = step.taken
        while path and path[-1] + 1 == step.widths[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


class _Step:
    """What `Space.suggest` needs of a trial: takes each discrete option that `path` says, the first else."""

    def __init__(self, path: Sequence[int]) -> None:
        self._path = path
        self.taken: list[int] = []
        self.widths: list[int] = []
        self.values: dict[str, Any] = {}
        self.whole = True

    def _choose(self, name: str, options: Sequence[Any]) -> Any:
        if name not in self.values:
            at = len(self.taken)
            self.taken.append(self._path[at] if at < len(self._path) else 0)
            self.widths.append(len(options))
            self.values[name] = options[self.taken[at]]
        return self.values[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._choose(name, choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, **_: Any) -> int:
        value: int = self._choose(name, range(low, high + 1, step))
        return value

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, **_: Any) -> float:
        if step is None:
            self.whole = False
            return low
        distribution = optuna.distributions.FloatDistribution(low, high, step=step)
        count = round((distribution.high - low) / step) + 1
        value: float = self._choose(name, [min(low + i * step, distribution.high) for i in range(count)])
        return value
