"""Combinations against the product written out; samplers that Optuna would let stop sampling."""

from __future__ import annotations

import itertools
from collections import Counter
from statistics import fmean
from typing import Any

import optuna
import pytest
from ledgers import BLOCKS, Toy
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from ssl_core.errors import ConfigError
from tune_jobs.search import samplers
from tune_jobs.search.config import SamplerConfig
from tune_jobs.search.samplers import Combinations, make_sampler, seed_of


def _trial(values: dict[str, Any]) -> Any:
    distributions = {name: CategoricalDistribution([value]) for name, value in values.items()}
    return create_trial(params=values, distributions=distributions, state=TrialState.FAIL)


def test_combinations_are_the_product_under_its_conditions() -> None:
    expected = [{"loss": "none"}]
    for loss, *switches in itertools.product(("mse", "barlow", "both"), *[[False, True]] * 4):
        values = {"loss": loss} | {f"block_{b}": on for b, on in zip(BLOCKS, switches, strict=True)}
        widths = (64, 128) if loss != "mse" and any(switches) else (None,)
        expected += [values if width is None else {**values, "barlow.width": width} for width in widths]
    for space in (Toy(), Toy(rates=False)):
        combinations, seen = Combinations(space, 0), []  # type: ignore[arg-type]
        assert len(combinations) == len(expected)
        for _ in expected:
            assert not combinations.done(seen)
            trial = optuna.create_study(sampler=combinations.sampler(seen, len(seen))).ask()
            space.suggest(trial)
            seen.append(_trial(trial.params))
        discrete = [{k: v for k, v in t.params.items() if k in ("loss", "barlow.width") or "block" in k} for t in seen]
        assert all(discrete.count(values) == 1 for values in expected)
        assert combinations.done(seen) is not space.rates  # continuous ones can always be drawn anew
        assert set(combinations.visited(seen).values()) == {1}


def test_orders_of_combinations_are_the_seeds() -> None:
    def first(seed: int) -> list[Any]:
        return Combinations(Toy(), seed)._all[:5]  # type: ignore[arg-type]

    assert first(0) == first(0) != first(1)


def test_steps_of_a_range_are_discrete() -> None:
    class Stepped:
        def suggest(self, trial: Any) -> dict[str, Any]:
            return {
                "a": trial.suggest_float("a", 0.1, 0.5, step=0.2),
                "b": trial.suggest_int("b", 1, 6, step=2),
                "again": trial.suggest_int("b", 1, 6, step=2),
            }

    combinations = Combinations(Stepped(), 0)  # type: ignore[arg-type]
    found = sorted((values["a"], values["b"]) for values in combinations._all)
    assert found == [(pytest.approx(a), b) for a in (0.1, 0.3, 0.5) for b in (1, 3, 5)]
    for _ in range(9):  # each is one that Optuna's distribution holds
        optuna.create_study(sampler=combinations.sampler([], 0)).ask(
            {"a": optuna.distributions.FloatDistribution(0.1, 0.5, step=0.2)}
        )


def test_a_grid_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "LARGEST_GRID", 75)
    with pytest.raises(ConfigError, match=r"more than 75 combinations; use random or tpe"):
        Combinations(Toy(), 0)  # type: ignore[arg-type]


def test_seeds_differ_by_trial_and_by_study() -> None:
    seeds = Counter(seed_of(seed, index) for seed in range(20) for index in range(200))
    assert max(seeds.values()) == 1
    assert seed_of(3, 7) == seed_of(3, 7)


def test_cmaes_goes_on_where_trials_lack_some_of_the_numbers() -> None:
    """Optuna's own samples at random for good once a trial lacks a number that the first one had."""
    study = optuna.create_study(direction="maximize")
    space, guided, rates = Toy(), 0, []
    for index in range(40):
        study.sampler = make_sampler(SamplerConfig(kind="cmaes"), index, on_score=True)
        if index < 8:  # so far all have the loss's scale
            study.enqueue_trial({"loss": "mse", "block_1": True})
        trial = study.ask()
        values = space.suggest(trial)
        attrs = study.get_trials(deepcopy=False)[-1].system_attrs
        guided += index >= 20 and "cma:generation" in attrs
        rates.append(values["learning_rate"])
        trial.report(values["learning_rate"], 1)
        if index % 2:
            study.tell(trial, values["learning_rate"])
        else:
            study.tell(trial, state=TrialState.PRUNED)
    assert guided == 20
    assert fmean(rates[-10:]) > 1.5 * fmean(rates[:10])
