"""Which configuration to ship, from finished stages alone: their validation predictions and what they cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pandas import DataFrame

from analysis.config import QUALITIES, DecisionConfig
from analysis.costs import COSTS, model_costs
from analysis.ranking import Configuration, Ranking, lower_is_better, rank
from analysis.tables import Finished
from analysis.validation import validation_table
from ssl_core.errors import InputError

#: Modes whose models compete, by `decision.mode`: an arm without pretraining trains all weights, too.
MODES: Mapping[str, tuple[str, ...]] = {"full": ("full", "scratch"), "linear": ("linear",)}


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model that may be shipped: of its arm's seeds the one that does best on validation."""

    arm: str
    mode: str
    seed: int
    value: float  # of the first objective, of this seed alone
    stage: Finished  # its fine-tuning


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A ranking of the study's configurations, and of each the model to ship."""

    metric: str  # the study's score
    objective: str  # the first one, which ranks
    label_fraction: float
    ranking: Ranking
    models: Mapping[str, Model]  # by arm
    missing: tuple[tuple[str, int], ...]  # (arm, seed) of models that the study plans and nobody has finished

    @property
    def chosen(self) -> Model:
        """The model of the recommended configuration."""
        return self.models[self.ranking.chosen]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values; what does not exist is None."""
        model, ranking = self.chosen, self.ranking
        return {
            "recommended": {
                "arm": model.arm,
                "mode": model.mode,
                "label_fraction": self.label_fraction,
                "seed": model.seed,
                "seed_value": model.value,
                "stage": model.stage.name,
                "key": model.stage.key,
            },
            "best_mean": ranking.best,
            "metric": self.metric,
            "objectives": list(ranking.objectives),
            "cost": ranking.cost,
            "seeds": list(ranking.seeds),
            "seeds_needed": ranking.seeds_needed,
            "missing": [{"arm": arm, "seed": seed} for arm, seed in self.missing],
            "ranking": [_plain(c) for c in ranking.configurations],
        }


def recommend(
    finished: Sequence[Finished],
    config: DecisionConfig,
    *,
    metric: str,
    baseline: str = "",
    dataset: str = "",
    planned: Collection[tuple[str, int]] = (),
) -> Decision:
    """Rank the arms of `finished`, and name the model to ship. Test predictions are not opened.

    Args:
        finished: stages of a study; fine-tunings of the config's mode and label fraction count (None: the largest that
            is there), with the pretrainings that they began from.
        metric: the study's score. baseline: wins among equals.
        planned: (arm, seed) of all models that the study would compare, so that missing ones can be named.

    Of a configuration's seeds the one that does best on validation is the model to ship, among equals the lowest seed.

    Raises InputError where no such model is finished, or its score is undefined for every one; DataError where
    predictions cannot be read.
    """
    modes = MODES[config.mode]
    tuned = [s for s in finished if s.kind == "finetune" and s.labels.get("mode") in modes]
    there = {float(str(s.labels["label_fraction"])) for s in tuned}
    fraction = config.fraction if config.fraction is not None else max(there, default=math.nan)
    tuned = [s for s in tuned if s.labels["label_fraction"] == fraction]
    if not tuned:
        others = f"; there are models at {', '.join(f'{100 * f:g}%' for f in sorted(there))}" if there else ""
        at = "" if math.isnan(fraction) else f" at {100 * fraction:g}% of the labels"
        raise InputError(f"no model of mode {' or '.join(modes)}{at} is finished{others}: run the study on, or choose "
                         "others by --set decision.fraction=... or --set decision.mode=...")  # fmt: skip
    table = validation_table(dataset, tuned)
    measures = _measures(table, model_costs(finished, modes=modes, fraction=fraction), metric)
    first = config.objectives[0]
    if measures[first].isna().all():
        raise InputError(
            f"the {metric if first == 'score' else first} of no finished model is defined on the validation images: "
            "they lack a class; choose another by --set decision.objectives=..., or other validation images"
        )
    ranking = rank(measures, config.objectives, baseline=baseline)
    stages = {(str(s.labels["arm"]), int(str(s.labels["seed"]))): s for s in tuned}
    return Decision(
        metric=metric,
        objective=first,
        label_fraction=fraction,
        ranking=ranking,
        models={c.arm: _model(c, measures, first, stages) for c in ranking.configurations if c.seeds},
        missing=tuple(model for model in planned if model not in stages),
    )


def _measures(table: DataFrame, costs: DataFrame, metric: str) -> DataFrame:
    """A row a model: every quality and every cost in a column of its own."""
    named = table[["arm", "mode", "seed", "metric", "value"]].replace({"metric": {metric: "score"}})
    named = named[named["metric"].isin(QUALITIES)]
    wide = named.set_index(["arm", "mode", "seed", "metric"])["value"].unstack("metric").reset_index()  # keeps NaN
    joined: DataFrame = wide.merge(costs, on=["arm", "mode", "seed"], how="left", validate="one_to_one")
    return joined


def _model(
    configuration: Configuration, measures: DataFrame, objective: str, stages: Mapping[tuple[str, int], Finished]
) -> Model:
    own = measures[(measures["arm"] == configuration.arm) & measures[objective].notna()]
    values = {int(seed): float(value) for seed, value in zip(own["seed"], own[objective], strict=True)}
    sign = 1.0 if lower_is_better(objective) else -1.0
    seed = min(values, key=lambda s: (sign * values[s], s))
    arm, mode = configuration.arm, configuration.mode
    return Model(arm=arm, mode=mode, seed=seed, value=values[seed], stage=stages[arm, seed])


def _plain(c: Configuration) -> dict[str, Any]:
    numbers = {"error": c.error, "gap": c.gap, "gap_error": c.gap_error, "p": c.p}
    costs = {name: c.means[name] for name in COSTS}
    quality = {name: value for name, value in c.means.items() if name not in COSTS}
    return {
        "arm": c.arm,
        "mode": c.mode,
        "rank": c.rank,
        "seeds": list(c.seeds),
        **{name: None if math.isnan(value) else value for name, value in {**quality, **costs, **numbers}.items()},
        "within_one_error": c.within,
        "front": c.front,
        "verdict": c.verdict or None,
        "note": c.note or None,
    }
