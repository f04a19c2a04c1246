"""The ranking against its definition written out, and what must not move it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.model_costs import model_costs
from analysis.ranking import Ranking, rank
from analysis.tables import Finished

OBJECTIVES = ("score", "accelerator_seconds", "peak_memory")


def measures(
    scores: Mapping[str, Sequence[float] | Mapping[int, float]],
    seconds: Mapping[str, float] | None = None,
    memory: Mapping[str, float] | None = None,
    **columns: Any,
) -> pd.DataFrame:
    rows = []
    for arm, values in scores.items():
        by_seed = values if isinstance(values, Mapping) else dict(enumerate(values))
        for seed, score in by_seed.items():
            cost = (seconds or {}).get(arm, 100.0)
            row = {"arm": arm, "mode": "full", "seed": seed, "score": score, "devices": "GPU"}
            row |= {"accelerator_seconds": cost, "wall_seconds": 2 * cost, "peak_memory": (memory or {}).get(arm, 1e9)}
            rows.append(row)
    return pd.DataFrame(rows).assign(**columns)


def order(ranking: Ranking) -> list[str]:
    return [c.arm for c in ranking.configurations]


def test_means_errors_and_gaps_are_those_written_out() -> None:
    a, b = np.array([0.90, 0.93, 0.88, 0.91]), np.array([0.89, 0.925, 0.885, 0.90])
    found = rank(measures({"b": b, "a": a}), OBJECTIVES)
    assert order(found) == ["a", "b"]
    assert found.of("a").means["score"] == pytest.approx(a.mean())
    assert found.of("a").error == pytest.approx(a.std(ddof=1) / 2)
    assert found.of("b").gap == pytest.approx((a - b).mean())
    assert found.of("b").gap_error == pytest.approx((a - b).std(ddof=1) / 2)  # not that of unpaired means: 0.012
    assert found.of("b").gap_error < 0.5 * found.of("b").error
    assert found.of("a").gap == 0
    assert found.seeds == (0, 1, 2, 3)


def test_the_cheapest_within_one_standard_error_of_the_paired_difference_is_chosen() -> None:
    best = np.array([0.90, 0.93, 0.88, 0.91])
    scatter = np.array([0.02, -0.02, 0.01, -0.01])  # mean 0, standard error 0.00913
    near, far = best - 0.009 + scatter, best - 0.0093 + scatter
    costs = {"best": 100.0, "near": 50.0, "far": 10.0}
    found = rank(measures({"best": best, "near": near, "far": far}, costs), OBJECTIVES)
    assert (found.best, found.chosen) == ("best", "near")
    assert [found.of(arm).within for arm in ("best", "near", "far")] == [True, True, False]
    assert scatter.std(ddof=1) / 2 == pytest.approx(found.of("near").gap_error)
    dearer = rank(measures({"best": best, "near": near, "far": far}, {**costs, "near": 101.0}), OBJECTIVES)
    assert dearer.chosen == "best"


def test_scatter_that_all_arms_share_widens_no_margin() -> None:
    shared = np.array([0.1, -0.1, 0.05, -0.05])
    found = rank(measures({"a": 0.8 + shared, "b": 0.79 + shared + [0, 1e-4, 0, 1e-4]}, {"b": 1.0}), OBJECTIVES)
    assert found.of("a").error > 0.01
    assert (found.chosen, found.of("b").within) == ("a", False)


def test_the_front_is_what_no_other_dominates() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        scores, seconds, memory = (draw.integers(1, 5, 8) / 8 for _ in range(3))
        arms = [f"arm{i}" for i in range(8)]
        found = rank(
            measures(
                {a: [s, s] for a, s in zip(arms, scores, strict=True)},
                dict(zip(arms, seconds, strict=True)),
                dict(zip(arms, memory, strict=True)),
            ),
            OBJECTIVES,
        )
        points = np.stack([scores, -seconds, -memory], axis=1)
        front = {
            arms[i]
            for i in range(8)
            if not any((points[j] >= points[i]).all() and (points[j] > points[i]).any() for j in range(8))
        }
        assert {c.arm for c in found.ranked if c.front} == front
        assert found.chosen in front


def random_study(draw: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, float]]:
    arms = ["moco", "moco_mse", "moco_barlow", "supervised"]
    scores = {arm: 0.8 + draw.normal(0, 0.01) + draw.normal(0, 0.01, 3) for arm in arms}
    return scores, {a: draw.uniform(10, 100) for a in arms}, {a: draw.uniform(1e9, 4e9) for a in arms}


def test_the_order_of_arms_and_the_units_of_cost_change_nothing() -> None:
    draw = np.random.default_rng(1)
    for _ in range(10):
        scores, seconds, memory = random_study(draw)
        first = rank(measures(scores, seconds, memory), OBJECTIVES, baseline="moco")
        for arms in list(permutations(scores))[::7]:
            other = rank(measures({a: scores[a] for a in arms}, seconds, memory), OBJECTIVES, baseline="moco")
            assert (order(other), other.chosen) == (order(first), first.chosen)
            assert [c.front for c in other.ranked] == [c.front for c in first.ranked]
        scaled = measures(scores, {a: 3600 * s for a, s in seconds.items()}, {a: m / 2**20 for a, m in memory.items()})
        assert rank(scaled, OBJECTIVES, baseline="moco").chosen == first.chosen
        moved = rank(measures({a: s + 0.05 for a, s in scores.items()}, seconds, memory), OBJECTIVES)
        assert (order(moved), moved.chosen) == (order(first), first.chosen)


def test_a_configuration_that_is_dominated_is_never_chosen_however_much_it_scatters() -> None:
    best = np.array([0.90, 0.91, 0.92, 0.93])
    steady, wild = best - 0.02 + [1e-3, 0, -1e-3, 0], best - 0.03 + [0.09, -0.09, 0.09, -0.09]
    found = rank(
        measures({"best": best, "steady": steady, "wild": wild}, {"best": 100, "steady": 10, "wild": 20}), OBJECTIVES
    )
    assert found.of("wild").within
    assert not found.of("steady").within
    assert not found.of("wild").front
    assert found.chosen == "best"


def test_costs_that_differ_by_noise_decide_nothing() -> None:
    best = np.array([0.90, 0.93, 0.88])
    near = best - 0.001 + np.array([0.01, -0.01, 0.0])
    scores = {"best": best, "near": near}
    assert rank(measures(scores, {"best": 104.0, "near": 100.0}), OBJECTIVES).chosen == "best"
    assert rank(measures(scores, {"best": 106.0, "near": 100.0}), OBJECTIVES).chosen == "near"


def test_equal_arms_go_by_cost_then_by_baseline_then_by_name() -> None:
    same = [0.9, 0.8]
    assert order(rank(measures({"b": same, "a": same}), OBJECTIVES)) == ["a", "b"]
    assert order(rank(measures({"b": same, "a": same}), OBJECTIVES, baseline="b")) == ["b", "a"]
    assert order(rank(measures({"b": same, "a": same}, {"a": 101.0}), OBJECTIVES, baseline="a")) == ["b", "a"]
    twins = rank(measures({"b": same, "a": same}), OBJECTIVES)
    assert all(c.front and c.within for c in twins.ranked)
    assert twins.of("b").gap == 0


def test_one_seed_has_no_standard_error_so_the_best_is_chosen() -> None:
    found = rank(measures({"best": [0.9], "near": [0.8999]}, {"near": 1.0}), OBJECTIVES)
    assert found.chosen == "best"
    assert math.isnan(found.of("best").error)
    assert not found.of("near").within
    assert "needs more seeds" in found.of("near").verdict
    level = measures({"best": [0.9], "near": [0.9]}, {"near": 1.0}).assign(ece=[0.1, 0.2])
    assert rank(level, ("score", "ece", "accelerator_seconds")).chosen == "best"


def test_two_seeds_are_never_significant_and_the_number_needed_is_that_of_all_pairs() -> None:
    found = rank(measures({"a": [0.9, 0.9], "b": [0.5, 0.5], "c": [0.4, 0.4], "d": [0.3, 0.3]}), OBJECTIVES)
    assert found.seeds_needed == 8  # 2 / 2^8 x 6 pairs = 0.047
    assert all("needs more seeds" in c.verdict for c in found.ranked[1:])
    assert found.of("a").verdict == ""


def test_with_seeds_enough_a_worse_arm_is_called_worse() -> None:
    noise = np.random.default_rng(0).normal(0, 0.001, (2, 10))
    found = rank(measures({"a": 0.9 + noise[0], "b": 0.8 + noise[1]}), OBJECTIVES)
    assert (found.of("b").verdict, found.of("b").p) == ("worse", pytest.approx(2 / 2**10))


def test_arms_are_compared_over_the_seeds_that_all_have() -> None:
    full = {0: 0.70, 1: 0.90, 2: 0.92}
    found = rank(measures({"a": full, "b": {1: 0.89, 2: 0.90}}), OBJECTIVES)
    assert found.seeds == (1, 2)
    assert found.of("a").means["score"] == pytest.approx(0.91)  # seed 0, which b lacks, does not pull it down
    assert found.best == "a"
    assert found.of("a").seeds == (0, 1, 2)


def test_an_arm_with_few_seeds_is_named_but_neither_ranked_nor_chosen_nor_allowed_to_narrow_the_others() -> None:
    found = rank(measures({"a": [0.8, 0.81, 0.82], "b": [0.79, 0.8, 0.8], "new": {0: 0.99}}), OBJECTIVES)
    assert (found.best, found.chosen, found.seeds) == ("a", "a", (0, 1, 2))
    assert order(found) == ["a", "b", "new"]
    assert found.of("new").rank is None
    assert found.of("new").note == "not ranked: 1 seed, most arms have 3"
    begun = rank(measures({"a": [0.8, 0.9], "b": [0.79], "c": [0.82]}), OBJECTIVES)  # a is ahead in time, not in score
    assert (begun.best, begun.seeds) == ("c", (0,))


def test_nan_counts_as_a_seed_that_is_missing() -> None:
    nan = math.nan
    found = rank(measures({"a": [0.8, nan, 0.82], "b": [0.9, 0.9, 0.9], "c": [nan, nan, nan]}), OBJECTIVES)
    assert found.seeds == (0, 2)
    assert found.of("c").note == "not ranked: 0 seeds, most arms have 2; its score is undefined for 3 more"
    with pytest.raises(ValueError, match="no arm"):
        rank(measures({"a": [nan]}), OBJECTIVES)


def test_seeds_that_no_two_arms_share_are_ranked_with_a_warning() -> None:
    found = rank(measures({"a": {0: 0.8}, "b": {1: 0.7}}, {"b": 1.0}), OBJECTIVES)
    assert (found.chosen, found.seeds) == ("a", ())
    assert any("No seed is common" in note for note in found.notes)


def test_without_an_accelerator_wall_time_is_the_cost_and_the_ranking_says_so() -> None:
    best, near = [0.90, 0.93], [0.91, 0.91]
    cpu = measures({"best": best, "near": near}, accelerator_seconds=0.0)
    cpu.loc[cpu["arm"] == "near", "wall_seconds"] = 1.0
    found = rank(cpu, OBJECTIVES)
    assert found.objectives == ("score", "wall_seconds", "peak_memory")
    assert (found.cost, found.chosen) == ("wall_seconds", "near")
    assert any("without an accelerator" in note for note in found.notes)


def test_what_one_arm_did_not_measure_decides_nothing() -> None:
    table = measures({"best": [0.90, 0.93], "near": [0.91, 0.91]}, {"near": 1.0})
    table.loc[table["arm"] == "near", "accelerator_seconds"] = math.nan
    found = rank(table, OBJECTIVES)
    assert (found.objectives, found.chosen) == (("score", "peak_memory"), "best")
    assert "Of near the accelerator time is not known, so it decides nothing here." in found.notes


def test_without_a_cost_the_best_is_chosen_and_an_error_is_better_the_lower_it_is() -> None:
    table = measures({"a": [0.90, 0.93], "b": [0.91, 0.91]}, {"b": 1.0})
    assert rank(table, ("score",)).chosen == "a"
    by_ece = rank(table.assign(ece=[0.2, 0.3, 0.1, 0.05]), ("ece",))
    assert order(by_ece) == ["b", "a"]
    assert by_ece.of("a").gap == pytest.approx(0.175)
    assert not by_ece.of("a").front


def stage(kind: str, seconds: float, memory: int | None = None, device: str = "GPU", **labels: Any) -> Finished:
    key = "-".join(map(str, labels.values()))
    return Finished(kind, key, labels, None, (), seconds, seconds / 2, memory, device)  # type: ignore[arg-type]


def test_a_model_costs_its_pretraining_and_its_fine_tuning() -> None:
    moco, mse = {"arm": "moco", "seed": 0}, {"arm": "mse", "seed": 0}
    tuned = {"mode": "full", "label_fraction": 1.0}
    finished = [
        stage("pretrain", 100, 3, **moco),
        stage("pretrain", 100, 3, **mse),  # shared by both arms: each needs it
        stage("finetune", 10, 5, **moco, **tuned),
        stage("finetune", 20, None, "other GPU", **mse, **tuned),
        stage("finetune", 7, None, **moco, mode="full", label_fraction=0.1),
        stage("finetune", 7, None, **moco, mode="linear", label_fraction=1.0),
        stage("finetune", 30, None, arm="supervised", seed=0, mode="scratch", label_fraction=1.0),
        stage("finetune", 10, 5, arm="moco", seed=1, **tuned),  # its pretraining is gone
    ]
    found = model_costs(finished, modes=("full", "scratch"), fraction=1.0).set_index(["arm", "seed"])
    assert found["wall_seconds"].tolist() == pytest.approx([110, 120, 30, math.nan], nan_ok=True)
    assert found["accelerator_seconds"].tolist() == pytest.approx([55, 60, 15, math.nan], nan_ok=True)
    assert found["peak_memory"].tolist() == pytest.approx([5, 3, math.nan, 5], nan_ok=True)
    assert found["devices"].tolist() == ["GPU", "GPU + other GPU", "GPU", "GPU"]
