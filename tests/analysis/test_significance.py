"""Verdicts between arms: p-values against full enumeration and scipy, families, and what few seeds allow."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.significance import holm, seeds_needed, sign_flip, verdicts
from ssl_core.errors import DataError


def table(values, **cell):
    """A tidy table of {arm: values by seed}."""
    rows = [
        {"dataset": "d", "mode": "full", "label_fraction": 1.0, "block": None, "metric": "auroc", **cell}
        | {"arm": arm, "seed": seed, "value": value}
        for arm, by_seed in values.items()
        for seed, value in (by_seed.items() if isinstance(by_seed, dict) else enumerate(by_seed))
    ]
    return pd.DataFrame(rows)


def noise(n, seed=0, scale=0.01):
    return np.random.default_rng(seed).normal(0, scale, n)


def test_the_p_value_equals_full_enumeration_and_scipys_permutation_test():
    for n, seed in product([1, 2, 3, 6, 9], range(5)):
        d = noise(n, seed) + 0.005
        flipped = [abs(np.dot(signs, d)) for signs in product([1, -1], repeat=n)]
        assert sign_flip(d) == pytest.approx(np.mean(np.array(flipped) >= abs(d.sum()) - 1e-12), abs=1e-12)
        if n > 1:
            reference = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
            assert sign_flip(d) == pytest.approx(reference.pvalue, abs=1e-12)


def test_the_p_value_ignores_sign_and_unit_and_counts_ties():
    d = noise(8) + 0.01
    assert sign_flip(-1e6 * d) == sign_flip(d)
    assert sign_flip(np.array([0.1, 0.2, 0.3])) == 2 / 8
    assert sign_flip(np.array([0.1, 0.2, 0.3, -0.1])) == 6 / 16  # |sums|: 0.7 x2, 0.5 x4 reach 0.5
    assert sign_flip(np.zeros(5)) == 1
    assert sign_flip(np.full(40, 0.1)) == pytest.approx(2 / 2**40)


def test_holm_steps_down_and_never_up():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02])


def test_seeds_needed_is_the_fewest_that_can_be_significant():
    for comparisons in (1, 3, 6, 18, 100):
        m = seeds_needed(comparisons)
        assert 2 / 2**m * comparisons <= 0.05 < 2 / 2 ** (m - 1) * comparisons


def test_a_clear_difference_over_enough_seeds_is_better_or_worse():
    base = 0.8 + noise(8)
    found = verdicts(table({"moco": base, "mse": base + 0.02 + noise(8, 1, 0.002)}), "moco").iloc[0]
    assert (found["arm"], found["against"], found["n"]) == ("mse", "moco", 8)
    assert found["verdict"] == "better"
    assert found["p"] == 2 / 2**8
    assert found["effect"] == pytest.approx(0.02, abs=0.002)
    paired = stats.ttest_rel(base + 0.02 + noise(8, 1, 0.002), base).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((paired.low, paired.high), abs=1e-12)
    worse = verdicts(table({"moco": base, "mse": base - 0.02}), "moco").iloc[0]
    assert (worse["verdict"], worse["effect"] < 0) == ("worse", True)


@pytest.mark.parametrize("metric", ["ks", "ece", "brier"])
def test_lower_distances_and_calibration_errors_are_better(metric):
    base = 0.3 + noise(8)
    found = verdicts(table({"moco": base, "mse": base - 0.02}, metric=metric), "moco").iloc[0]
    assert found["verdict"] == "better"


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_few_seeds_are_never_significant_however_large_the_effect(seeds):
    found = verdicts(table({"moco": [0.5] * seeds, "mse": [0.99] * seeds}), "moco").iloc[0]
    assert found["verdict"] == f"needs more seeds: {seeds} seeds can never reach p < 0.05, at least 6"
    assert found["seeds_needed"] == 6
    assert np.isnan(found["low"]) == (seeds == 1)


def test_no_effect_is_no_difference_shown():
    found = verdicts(table({"moco": 0.8 + noise(8), "mse": 0.8 + noise(8, 1)}), "moco").iloc[0]
    assert found["verdict"] == "no difference shown"
    assert found["low"] < 0 < found["high"]


def test_arms_are_paired_by_seed_on_the_seeds_that_both_have():
    first = {seed: 0.8 + 0.01 * seed for seed in (0, 1, 2, 3, 4, 5, 6)}
    second = {seed: 0.9 + 0.01 * seed for seed in (6, 5, 4, 3, 2, 1, 9)} | {0: np.nan}
    found = verdicts(table({"moco": first, "mse": second}), "moco").iloc[0]
    assert found["n"] == 6
    assert found["effect"] == pytest.approx(0.1)
    assert found["verdict"] == "better"
    apart = verdicts(table({"moco": {0: 0.5, 1: 0.5}, "mse": {2: 0.9}}), "moco").iloc[0]
    assert apart["n"] == 0
    assert np.isnan(apart["effect"])
    assert apart["verdict"].startswith("needs more seeds: 0 seeds")


def test_every_pair_is_compared_and_the_baseline_is_always_the_one_compared_against():
    found = verdicts(table({"mse": noise(3), "moco": noise(3), "barlow": noise(3)}), "moco")
    assert list(zip(found["arm"], found["against"], strict=True)) == [
        ("mse", "moco"),
        ("barlow", "moco"),
        ("barlow", "mse"),
    ]


def test_the_family_is_all_comparisons_of_one_metric_and_dataset():
    base = 0.8 + noise(8)
    arms = {"moco": base, "mse": base + 0.02}
    tables = [table(arms, label_fraction=f) for f in (0.01, 0.06, 1.0)]
    found = verdicts(pd.concat([*tables, table(arms, metric="f1"), table(arms, dataset="other")]), "moco")
    p = 2 / 2**8
    assert found["p_holm"].tolist() == pytest.approx([3 * p, 3 * p, 3 * p, p, p])
    assert found["seeds_needed"].tolist() == [7, 7, 7, 6, 6]
    assert found["metric"].tolist() == ["auroc", "auroc", "auroc", "f1", "auroc"]


def test_blocks_and_modes_are_cells_of_their_own():
    base = 0.8 + noise(4)
    tables = [table({"a": base, "b": base + i}, block=i, mode=m) for i, m in [(1, "probe"), (2, "probe"), (2, "full")]]
    found = verdicts(pd.concat(tables), "a")
    assert found["effect"].tolist() == pytest.approx([1, 2, 2])
    assert found["block"].tolist() == [1, 2, 2]


def test_an_arm_trained_from_scratch_is_compared_with_fully_fine_tuned_ones():
    base = 0.8 + noise(8)
    both = pd.concat([table({"moco": base}), table({"supervised": base - 0.1}, mode="scratch")])
    found = verdicts(both, "moco").iloc[0]
    assert (found["arm"], found["mode"], found["verdict"]) == ("supervised", "full", "worse")
    ambiguous = pd.concat([table({"moco": base}), table({"moco": base - 0.1}, mode="scratch")])
    assert verdicts(ambiguous, "moco").empty


def test_nullable_columns_and_seeds_in_any_order_are_understood():
    base = 0.8 + noise(8)
    nullable = table({"moco": base, "mse": base + 0.02}).sample(frac=1, random_state=0)
    nullable = nullable.astype({"arm": "string", "mode": "string", "metric": "string", "seed": "Int64"})
    nullable["block"] = pd.array([pd.NA] * len(nullable), dtype="Int64")
    nullable["mode"] = nullable["mode"].mask(nullable["mode"] == "full")
    found = verdicts(nullable, "mse").iloc[0]
    assert (found["arm"], found["against"], found["verdict"]) == ("moco", "mse", "worse")
    assert found["effect"] == pytest.approx(-0.02)


@pytest.mark.parametrize("dtype", ["object", "boolean", "bool"])
def test_a_saturated_similarity_has_no_better_or_worse(dtype):
    base = 0.8 + noise(8)
    saturated = table({"moco": np.ones(8), "mse": np.ones(8) - 1e-13}, metric="cka_authors", uninformative=True)
    sound = table({"moco": base, "mse": base + 0.1}, metric="cka_rbf", uninformative=False)
    found = verdicts(pd.concat([saturated, sound]).astype({"uninformative": dtype}), "moco")
    assert found["verdict"].tolist() == ["uninformative", "better"]
    mixed = pd.concat([saturated, table({"moco": base, "mse": base + 0.1})])  # no flag where it does not apply
    assert verdicts(mixed, "moco")["verdict"].tolist() == ["uninformative", "better"]


def test_no_rows_give_no_verdicts():
    assert verdicts(table({}).reindex(columns=["arm", "seed", "metric", "value"]), "moco").empty
    assert verdicts(table({"moco": [0.1, 0.2]}), "moco").empty


def test_two_values_for_one_seed_are_refused():
    twice = pd.concat([table({"moco": [0.1]}), table({"moco": [0.2]})])
    with pytest.raises(DataError, match=r"two values for dataset d, mode full, .*arm moco, seed 0"):
        verdicts(twice, "moco")
