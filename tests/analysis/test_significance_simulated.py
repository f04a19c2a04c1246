"""Whole studies simulated, 2,000 at a time, through the verdicts that a report states: false findings, and power."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.significance import ALPHA, seeds_needed, sign_flip, verdicts

STUDIES = 2000
ARMS, FRACTIONS, METRICS = ("moco", "mse", "barlow"), (0.01, 0.06, 1.0), ("auroc", "f1")


def normal(rng, shape):
    return rng.normal(size=shape)


def skewed(rng, shape):
    """Runs that fail now and then: skewed in each arm alike, so symmetric in differences."""
    return rng.exponential(size=shape)


def heavy(rng, shape):
    return rng.standard_t(2, size=shape)


def uneven(rng, shape):
    """Seeds of which some are far noisier than others."""
    return rng.normal(size=shape) * np.exp(rng.normal(size=(shape[0], 1, 1, 1, shape[-1])))


def simulated(seeds, noise, *, effect=None, fractions=FRACTIONS, arms=ARMS, metrics=METRICS, missing=0.0, seed=0):
    """A tidy table of STUDIES studies, each a dataset of its own.

    As in a real study, everything hangs together: a seed's luck (batches, label subset) is shared by all arms, an
    encoder's by its fine-tunings on every fraction and by both scores. `effect` adds to arms: {arm: shift}.
    """
    rng = np.random.default_rng(seed)
    shape = (STUDIES, len(arms), len(fractions), len(metrics), seeds)
    value = rng.normal(size=(STUDIES, 1, len(fractions), 1, seeds))
    value = value + noise(rng, (STUDIES, len(arms), 1, 1, seeds)) + 0.5 * noise(rng, shape)
    for arm, shift in (effect or {}).items():
        value[:, arms.index(arm)] += shift
    value[rng.random(shape) < missing] = np.nan
    study, arm, fraction, metric, run = np.indices(shape).reshape(5, -1)
    return pd.DataFrame({
        "dataset": study,
        "arm": np.array(arms)[arm],
        "label_fraction": np.array(fractions)[fraction],
        "metric": np.array(metrics)[metric],
        "seed": run,
        "value": value.ravel(),
    })  # fmt: skip


def families_with(found, wrong):
    """Of each metric, the number of studies whose family holds one such verdict."""
    return wrong.groupby([found["metric"], found["dataset"]]).any().groupby(level=0).sum()


def upper_bound(count):
    """Clopper-Pearson: were the rate above this, so few of STUDIES would come up in 1 of 100 simulations."""
    return stats.beta.ppf(0.99, count + 1, STUDIES - count)


@pytest.mark.parametrize("noise", [normal, skewed, heavy, uneven])
def test_without_an_effect_at_most_one_family_in_twenty_holds_a_finding(noise):
    """Three arms, three fractions, ten seeds of which 3% of runs are missing: nine comparisons a family.

    The bound is met with its Monte-Carlo error: 2,000 families tell a rate of 0.05 within 0.011 (99%, one side).
    """
    found = verdicts(simulated(10, noise, missing=0.03), "moco")
    assert len(found) == STUDIES * 2 * 3 * 3
    count = families_with(found, found["verdict"].isin(["better", "worse"]))
    assert count.min() > 0
    assert upper_bound(count.max()) <= ALPHA
    assert families_with(found, found["p"] <= ALPHA).min() > 0.2 * STUDIES  # what Holm is there for


def test_the_arms_without_an_effect_stay_so_where_another_has_one():
    """Strong control: mse leaves the others far behind, so Holm's steps are spent on what is true."""
    found = verdicts(simulated(10, normal, effect={"mse": 8.0}), "moco")
    true = (found["arm"] == "mse") | (found["against"] == "mse")
    assert (found.loc[true, "verdict"] != "no difference shown").mean() > 0.99
    count = families_with(found, ~true & found["verdict"].isin(["better", "worse"]))
    assert count.max() <= ALPHA * STUDIES  # close below the bound by design: 2,000 families tell it within 0.011
    assert count.min() > 0.015 * STUDIES  # and it spends what it has


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_the_power_of_one_comparison_agrees_with_its_closed_form(shift):
    """Six seeds, one comparison: 2 / 2^6 = 0.031 is the only p-value at or under 0.05, the next is 4 / 2^6 = 0.0625.

    So a finding is six differences of one sign. Seeds are independent, and a difference is positive with probability
    q = Phi(shift / sd), where sd^2 = 2 (1 + 0.5^2) is the variance of two arms' noise. Hence P(better) = q^6 and
    P(worse) = (1 - q)^6.
    """
    q = stats.norm.cdf(shift / np.sqrt(2 * 1.25))
    table = simulated(6, normal, effect={"mse": shift}, arms=("moco", "mse"), fractions=(0.01,), metrics=("auroc",))
    found = verdicts(table, "moco")["verdict"]
    for verdict, power in (("better", q**6), ("worse", (1 - q) ** 6)):
        assert (found == verdict).mean() == pytest.approx(power, abs=3.5 * np.sqrt(power * (1 - power) / STUDIES))


def test_the_power_of_a_family_agrees_with_its_closed_form():
    """Three independent comparisons, seven seeds: 3 x 2 / 2^7 = 0.047 is significant, 3 x 4 / 2^7 = 0.094 is not.

    So a family has a finding exactly where one of its comparisons has all signs alike, which happens with probability
    r = q^7 + (1 - q)^7 in each: P = 1 - (1 - r)^3. With Laplace noise of scale 1 in the difference,
    q = 1 - exp(-shift) / 2.
    """
    rng, shift = np.random.default_rng(0), 1.5
    differences = rng.laplace(shift, 1, size=(STUDIES, 3, 7))
    base = rng.normal(size=differences.shape)
    study, fraction, seed = np.indices(differences.shape).reshape(3, -1)
    cells = {"dataset": study, "label_fraction": np.array(FRACTIONS)[fraction], "metric": "auroc", "seed": seed}
    table = pd.concat([
        pd.DataFrame({**cells, "arm": arm, "value": value.ravel()})
        for arm, value in (("moco", base), ("mse", base + differences))
    ])  # fmt: skip
    found = verdicts(table, "moco")
    q = 1 - np.exp(-shift) / 2
    power = 1 - (1 - q**7 - (1 - q) ** 7) ** 3
    rate = families_with(found, found["verdict"] == "better").iloc[0] / STUDIES
    assert 0.3 < power < 0.9
    assert rate == pytest.approx(power, abs=3.5 * np.sqrt(power * (1 - power) / STUDIES))


NUMBERS = st.floats(0, 1, allow_nan=False) | st.sampled_from([0.0, 0.5, 1.0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_two_seeds_are_never_significant_whatever_they_measured(data):
    arms = data.draw(st.integers(2, 4))
    rows = [
        {"arm": f"arm{arm}", "seed": seed, "label_fraction": fraction, "metric": metric, "value": data.draw(NUMBERS)}
        for arm, seed, fraction, metric in product(
            range(arms), range(data.draw(st.integers(1, 2))), FRACTIONS[: data.draw(st.integers(1, 3))], ("auroc", "ks")
        )
    ]
    found = verdicts(pd.DataFrame(rows), "arm0")
    assert len(found)
    assert found["verdict"].str.startswith("needs more seeds").all()
    assert (found["p"] >= 0.5).all()
    assert (found["p_holm"] >= found["p"]).all()


@pytest.mark.parametrize("comparisons", [1, 3, 10, 30])
def test_as_many_seeds_as_are_said_to_be_needed_are_enough_and_one_less_is_not(comparisons):
    needed = seeds_needed(comparisons)

    def verdict(seeds):
        rows = [
            {"arm": arm, "seed": seed, "label_fraction": cell, "metric": "auroc", "value": value + 0.01 * seed}
            for arm, value in (("moco", 0.5), ("mse", 0.9))
            for seed in range(seeds)
            for cell in range(comparisons)
        ]
        return set(verdicts(pd.DataFrame(rows), "moco")["verdict"])

    assert verdict(needed) == {"better"}
    assert verdict(needed - 1) == {f"needs more seeds: {needed - 1} seeds can never reach p < 0.05, at least {needed}"}


@pytest.mark.parametrize("seeds", [1, 2, 5, 8, 11, 12, 13])
def test_comparisons_judged_together_are_judged_as_each_alone(seeds):
    """Both ways of counting patterns, with ties: values are rounded, so many sums are equal."""
    table = simulated(seeds, normal, seed=seeds)
    table = table[table["dataset"] < 15].assign(value=lambda t: t["value"].round(1))
    found = verdicts(table, "moco")
    wide = table.pivot_table(index=["dataset", "label_fraction", "metric"], columns=["arm", "seed"], values="value")
    for row in found.to_dict("records"):
        runs = wide.loc[row["dataset"], row["label_fraction"], row["metric"]]
        differences = (runs[row["arm"]] - runs[row["against"]]).to_numpy()
        assert row["p"] == pytest.approx(sign_flip(differences), abs=1e-12)
        assert row["effect"] == pytest.approx(differences.mean(), abs=1e-12)
