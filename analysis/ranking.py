"""Configurations in order: by mean over seeds, with the Pareto front and the one-standard-error choice.

Pure: from a table of measures to a ranking, no file opened. A configuration is an arm in the mode in which its models
were fine-tuned; a measure of one of them is a row of one seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame

from analysis.costs import COSTS, comparable
from analysis.significance import LOWER_IS_BETTER, verdicts

#: Costs within so much of the lowest count as equal: seconds vary by as much from run to run.
SAME_COST = 0.05
_ROUNDING = 1e-12
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One arm's place. Means are over `Ranking.seeds`; NaN where there is nothing to say."""

    arm: str
    mode: str
    rank: int | None  # from 1; None: not ranked, `note` says why
    seeds: tuple[int, ...]  # that have a value of the first objective
    means: Mapping[str, float]  # of every objective and cost
    error: float  # standard error of the first objective's mean: sd over seeds / sqrt(n)
    gap: float  # by how much it is worse than the best, in the first objective: 0 or more
    gap_error: float  # standard error of that difference, paired by seed
    within: bool  # not worse than the best by more than one standard error
    front: bool  # no other is as good in every objective and better in one
    verdict: str  # of the paired test against the best; empty for the best itself
    p: float  # its p-value after Holm
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Configurations, the best mean first, those that are not ranked last."""

    configurations: tuple[Configuration, ...]
    objectives: tuple[str, ...]  # that decide; the first ranks
    cost: str | None  # the first cost among them
    seeds: tuple[int, ...]  # compared: those that all ranked configurations have; () where there is none
    best: str  # arm of the best mean
    chosen: str  # arm to ship
    seeds_needed: int  # with which the most extreme result would be significant; 0 where there is nothing to compare
    notes: tuple[str, ...]  # on what could not be compared

    def of(self, arm: str) -> Configuration:
        return next(c for c in self.configurations if c.arm == arm)

    @property
    def ranked(self) -> tuple[Configuration, ...]:
        return tuple(c for c in self.configurations if c.rank is not None)


def rank(measures: DataFrame, objectives: Sequence[str], *, baseline: str = "") -> Ranking:
    """Rank the arms of `measures`: columns arm, mode, seed, devices, each objective and each of `costs.COSTS`.

    - Ranked are arms with more than half as many seeds as the (lower) median arm; they are compared over the seeds that
      all of them have. NaN of the first objective counts as a seed that is missing.
    - Best: the best mean of the first objective. Among equals the lower costs, then `baseline`, then the arm's name.
    - Pareto front: by the means of all `objectives`, scores up; ece, brier and costs down.
    - Chosen, by the one-standard-error rule (Breiman et al. 1984, section 3.4.3): the cheapest configuration of the
      front whose mean is not worse than the best's by more than one standard error. The error is that of the paired
      difference, sd over seeds of (best - it) / sqrt(n): seeds share labels and first weights, so the scatter that all
      arms share cancels. Cost is the first cost among the objectives; costs within 5% of the lowest count as equal, and
      of those the best mean is chosen. Without a cost, or with one seed, which has no standard error, it is the best.
    - Verdicts: `significance.verdicts` on the compared seeds, Holm over all pairs of ranked arms, as the best is known
      only from the same data.

    Raises ValueError if no arm has a value of the first objective.
    """
    first = objectives[0]
    values = _by_seed(measures, first)
    counts = sorted(len(own) for own in values.values() if own)
    if not counts:
        raise ValueError(f"no arm has a value of {first}")
    usual = counts[(len(counts) - 1) // 2]
    arms = [arm for arm, own in values.items() if 2 * len(own) > usual]
    seeds = tuple(sorted(set.intersection(*(set(values[arm]) for arm in arms))))
    compared = {arm: np.array([values[arm][seed] for seed in seeds]) for arm in arms}

    part = measures[measures["arm"].isin(arms) & measures[first].notna()]
    part = part[part["seed"].isin(seeds)] if seeds else part
    used, notes = comparable(objectives, part)
    if not seeds:
        notes += ("No seed is common to all arms, so their means differ by the seeds' luck, too.",)
    means = {arm: _means(part[part["arm"] == arm], [*objectives, *COSTS]) for arm in arms}
    front = _front(means, used)
    ordered = sorted(arms, key=lambda arm: (*_oriented(means[arm], used), arm != baseline, arm))
    gaps = {arm: _gap(compared[ordered[0]], compared[arm], first) for arm in arms}
    within = [arm for arm in ordered if arm == ordered[0] or _within(*gaps[arm])]
    chosen, cost = ordered[0], next((name for name in used if name in COSTS), None)
    if cost is not None and len(seeds) > 1:
        able = [arm for arm in within if arm in front]
        lowest = min(means[arm][cost] for arm in able)
        chosen = next(arm for arm in able if means[arm][cost] <= (1 + SAME_COST) * lowest)

    judged = _verdicts(part, ordered[0], first)
    modes = {str(arm): str(mode) for arm, mode in zip(measures["arm"], measures["mode"], strict=True)}
    found = [
        Configuration(
            arm=arm,
            mode=modes[arm],
            rank=place,
            seeds=tuple(sorted(values[arm])),
            means=means[arm],
            error=_standard_error(compared[arm]),
            gap=gaps[arm][0],
            gap_error=gaps[arm][1],
            within=arm in within,
            front=arm in front,
            verdict=judged[arm][0] if arm in judged else "",
            p=judged[arm][1] if arm in judged else math.nan,
        )
        for place, arm in enumerate(ordered, start=1)
    ]
    return Ranking(
        configurations=(*found, *_unranked(measures, modes, values, ordered, usual, [*objectives, *COSTS])),
        objectives=used,
        cost=cost,
        seeds=seeds,
        best=ordered[0],
        chosen=chosen,
        seeds_needed=max((needed for _, _, needed in judged.values()), default=0),
        notes=notes,
    )


def _by_seed(measures: DataFrame, objective: str) -> dict[str, dict[int, float]]:
    """Of each arm, in the table's order: seed to value, where there is one."""
    values: dict[str, dict[int, float]] = {str(arm): {} for arm in measures["arm"]}
    for arm, seed, value in zip(measures["arm"], measures["seed"], measures[objective], strict=True):
        if not math.isnan(value):
            values[str(arm)][int(seed)] = float(value)
    return values


def _means(rows: DataFrame, names: Sequence[str]) -> dict[str, float]:
    return {name: float(rows[name].mean()) for name in names}


def lower_is_better(objective: str) -> bool:
    return objective in COSTS or objective in LOWER_IS_BETTER


def _oriented(means: Mapping[str, float], objectives: Sequence[str]) -> tuple[float, ...]:
    """The objectives, each so that lower is better."""
    return tuple(means[name] if lower_is_better(name) else -means[name] for name in objectives)


def _front(means: Mapping[str, Mapping[str, float]], objectives: Sequence[str]) -> set[str]:
    """Arms that no other dominates: as good in every objective and better in one."""
    points = {arm: _oriented(own, objectives) for arm, own in means.items()}

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return {arm for arm, point in points.items() if not any(dominates(other, point) for other in points.values())}


def _gap(best: Floats, own: Floats, objective: str) -> tuple[float, float]:
    """(mean, standard error) of how much worse than the best an arm is, over the compared seeds."""
    if not len(own):
        return math.nan, math.nan
    worse = own - best if lower_is_better(objective) else best - own
    return float(worse.mean()), _standard_error(worse)


def _within(gap: float, error: float) -> bool:
    """NaN is not within; without an error (one seed) only what is not worse at all."""
    return gap <= (0.0 if math.isnan(error) else error) + _ROUNDING


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _verdicts(part: DataFrame, best: str, objective: str) -> dict[str, tuple[str, float, int]]:
    """Of each other arm against the best: (verdict, p after Holm, seeds needed)."""
    judged = verdicts(part[["arm", "seed"]].assign(metric=objective, value=part[objective]), best)
    found = {}
    for row in judged[judged["against"] == best].to_dict("records"):
        found[str(row["arm"])] = (str(row["verdict"]), float(row["p_holm"]), int(row["seeds_needed"]))
    return found


def _unranked(
    measures: DataFrame,
    modes: Mapping[str, str],
    values: Mapping[str, Mapping[int, float]],
    ranked: Sequence[str],
    usual: int,
    names: Sequence[str],
) -> list[Configuration]:
    nan, found = math.nan, []
    for arm in sorted(set(values) - set(ranked)):
        rows, own = measures[measures["arm"] == arm], tuple(sorted(values[arm]))
        undefined = len(rows) - len(own)
        why = f"{len(own)} seed{'' if len(own) == 1 else 's'}, most arms have {usual}"
        why += f"; its score is undefined for {undefined} more" if undefined else ""
        found.append(Configuration(
            arm=arm, mode=modes[arm], rank=None, seeds=own, means=_means(rows, names), error=nan, gap=nan,
            gap_error=nan, within=False, front=False, verdict="", p=nan, note=f"not ranked: {why}",
        ))  # fmt: skip
    return found
