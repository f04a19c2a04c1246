"""What a search tells in numbers: planted effects are found, and what the trials cannot tell is not told."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from pandas import DataFrame
from scipy.stats import t

from analysis.least_squares import least_squares
from analysis.search import block_effects, completed, ranked, saved
from tests.analysis.search_fixture import EPOCHS, search


def factorial(score, *, loss="mse", repeats=1, combinations=None):
    """Completed trials, every block subset `repeats` times; `score` takes the four switches."""
    rows = []
    for on in [*(combinations or product((False, True), repeat=4))] * repeats:
        params = {f"params_block_{b}": switch for b, switch in enumerate(on, 1)}
        rows.append({"trial": len(rows), "state": "complete", "score": score(*on), "params_loss": loss, **params})
    return DataFrame(rows)


def planted(one, two, three, four):
    return 0.8 + 0.03 * two + 0.02 * three - 0.01 * four + 0.04 * (two and three)


def main(table, block):
    return table[(table["kind"] == "main") & (table["block"] == block)].iloc[0]


def pair(table, a, b):
    return table[(table["kind"] == "interaction") & (table["block"] == a) & (table["other"] == b)].iloc[0]


def test_planted_effects_of_blocks_are_found_in_a_full_factorial():
    table = block_effects(factorial(planted))
    assert len(table) == 4 + 6
    for block, effect in ((1, 0.0), (2, 0.03 + 0.02), (3, 0.02 + 0.02), (4, -0.01)):  # half of the interaction each
        row = main(table, block)
        assert_allclose([row["effect"], row["difference"]], effect, atol=1e-12)
        assert (row["n_on"], row["n_off"], row["reason"]) == (8, 8, "")
    for a, b in ((1, 2), (1, 3), (1, 4), (2, 4), (3, 4)):
        assert_allclose([pair(table, a, b)["effect"], pair(table, a, b)["difference"]], 0.0, atol=1e-12)
    assert_allclose([pair(table, 2, 3)["effect"], pair(table, 2, 3)["difference"]], 0.04, atol=1e-12)
    assert (pair(table, 2, 3)["n_on"], pair(table, 2, 3)["n_off"]) == (4, 12)


def test_adjusted_effects_undo_what_an_unbalanced_search_mixes_up():
    # block 1 does nothing, but was mostly on where block 2 was
    combinations = [(a, a if i % 4 else not a, bool(i % 3), bool(i % 5 % 2)) for i in range(40) for a in (True, False)]
    table = block_effects(
        factorial(lambda _, two, three, __: 0.8 + 0.03 * two + 0.01 * three, combinations=combinations)
    )
    assert main(table, 1)["difference"] > 0.01
    assert_allclose(main(table, 1)["effect"], 0.0, atol=1e-12)
    assert_allclose(main(table, 2)["effect"], 0.03, atol=1e-12)


def test_the_kind_of_loss_is_no_effect_of_the_blocks_that_were_tried_with_it():
    combinations = list(product((False, True), repeat=4))
    mse = factorial(planted, loss="mse", combinations=combinations)
    barlow = factorial(lambda *on: planted(*on) + 0.1, loss="barlow", combinations=[c for c in combinations if c[0]])
    both = pd.concat([mse, barlow], ignore_index=True)
    assert_allclose(main(block_effects(both), 1)["effect"], 0.0, atol=1e-12)
    assert main(block_effects(both.drop(columns="params_loss")), 1)["effect"] > 0.02


def test_the_interval_is_that_of_ordinary_least_squares():
    noise = np.random.default_rng(0)
    trials = factorial(lambda *on: planted(*on) + 0.01 * noise.normal(), repeats=2)
    x = np.column_stack([np.ones(32), trials[[f"params_block_{b}" for b in (1, 2, 3, 4)]].to_numpy(float)])
    y = trials["score"].to_numpy()
    solved = np.linalg.inv(x.T @ x) @ x.T @ y
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * ((y - x @ solved) ** 2).sum() / 27)
    for block in (1, 2, 3, 4):
        row = main(block_effects(trials), block)
        half = t.ppf(0.975, 27) * errors[block]
        expected = [solved[block], solved[block] - half, solved[block] + half, 27]
        assert_allclose([row["effect"], row["low"], row["high"], row["df"]], expected)


def test_effects_know_neither_the_order_of_trials_nor_the_zero_and_the_unit_of_the_score():
    noise = np.random.default_rng(1)
    trials = factorial(lambda *on: planted(*on) + 0.01 * noise.normal())
    numbers = ["difference", "effect", "low", "high"]
    here = block_effects(trials)[numbers]
    assert_allclose(block_effects(trials.sample(frac=1, random_state=1))[numbers], here, atol=1e-12)
    assert_allclose(block_effects(trials.assign(score=5 + 100 * trials["score"]))[numbers], 100 * here, atol=1e-9)
    renamed = trials.rename(columns={"params_block_1": "params_block_2", "params_block_2": "params_block_1"})
    assert_allclose(main(block_effects(renamed), 1)["effect"], main(block_effects(trials), 2)["effect"])


@pytest.mark.parametrize(
    ("combinations", "reason"),
    [
        ([c for c in product((False, True), repeat=4) if c[1]], "block 2 was on in all 8 trials"),
        ([c for c in product((False, True), repeat=4) if not c[1]], "block 2 was off in all 8 trials"),
        ([c for c in product((False, True), repeat=4) if c[1] == c[2]], "cannot be told apart from block 3"),
        ([(True, True, True, True), (False, False, False, True)], "2 trials are too few for 5 coefficients"),
    ],
)
def test_an_effect_that_the_trials_cannot_tell_has_a_reason_and_no_number(combinations, reason):
    row = main(block_effects(factorial(planted, combinations=combinations)), 2)
    assert np.isnan([row["effect"], row["low"], row["high"]]).all()
    assert row["reason"] == reason


def test_an_interaction_needs_all_four_combinations():
    table = block_effects(
        factorial(planted, combinations=[c for c in product((False, True), repeat=4) if c[0] or c[1]])
    )
    row = pair(table, 1, 2)
    assert np.isnan([row["difference"], row["effect"], row["low"]]).all()
    assert row["reason"] == "no trial had neither 1 nor 2"
    assert_allclose(pair(table, 2, 3)["effect"], 0.04, atol=1e-12)  # others are told all the same


def test_an_exact_fit_for_want_of_trials_has_no_interval():
    trials = [(False, False, False, False), *(tuple(b == i for b in range(4)) for i in range(4))]
    row = main(block_effects(factorial(planted, combinations=trials)), 2)
    assert_allclose(row["effect"], 0.03)
    assert math.isnan(row["low"])
    assert row["df"] == 0
    assert "leave nothing to judge the spread by" in row["reason"]


def test_effects_rest_on_completed_trials_that_have_blocks():
    trials = factorial(planted)
    more = trials.head(4).assign(state=["pruned", "failed", "running", "complete"], score=9.0)
    more = more.astype(object)
    more.loc[3, [c for c in more if c.startswith("params_")]] = None
    pd.testing.assert_frame_equal(block_effects(pd.concat([trials, more], ignore_index=True)), block_effects(trials))


def test_a_space_without_blocks_has_no_effects():
    trials = DataFrame({"trial": [0, 1], "state": "complete", "score": [0.1, 0.2], "params_learning_rate": [0.1, 0.2]})
    assert block_effects(trials).empty
    assert (
        block_effects(search(3).trials.assign(state="pruned"))["reason"]
        .eq("no completed trial has a block to switch")
        .sum()
        == 10
    )


def test_least_squares_tells_what_can_be_told_beside_what_cannot():
    noise = np.random.default_rng(2)
    a, b = noise.normal(size=(2, 20))
    told, doubled, _ = least_squares(3 * a + b, {"the mean": np.ones(20)}, {"a": a, "b": b, "b again": 2 * b})
    assert_allclose(told["effect"], 3)
    assert doubled["reason"] == "cannot be told apart from b again"
    assert math.isnan(doubled["effect"])


def test_a_pruned_trial_has_no_result():
    found = search()
    assert set(completed(found.trials, "score")["state"]) == {"complete"}
    values = ranked(found)["score"]
    assert values.is_monotonic_decreasing
    assert len(values) == (found.trials["state"] == "complete").sum()


def test_ties_go_to_the_earlier_trial_and_the_front_comes_first():
    found = search(objectives=("score", "peak_memory"))
    assert ranked(found)["pareto"].astype(int).is_monotonic_decreasing
    level = search(trials=search().trials.assign(score=0.5))
    assert ranked(level)["trial"].is_monotonic_increasing
    cheap = ranked(search(objectives=("seconds",)))
    assert cheap["seconds"].is_monotonic_increasing


def test_what_pruning_saved_is_the_rest_of_each_pruned_trial():
    found = search()
    states = found.trials["state"].value_counts()
    result = saved(found.trials, found.curves)
    assert result.pruned == states["pruned"]
    assert result.epochs == states["pruned"] * (EPOCHS - 3)
    assert_allclose(result.seconds, states["pruned"] * 0.5 * (EPOCHS - 3))
    assert_allclose(result.epochs_run, found.trials["epochs"].sum())
    assert_allclose(result.share, result.seconds / (result.seconds + found.trials["seconds"].sum()))
    assert result.unknown == 0
    without = saved(found.trials.drop(columns="epochs"), found.curves)
    assert (without.epochs, without.epochs_run) == (result.epochs, result.epochs_run)
    assert saved(found.trials, found.curves, epochs=60).epochs == states["pruned"] * 57
    assert saved(found.trials, found.curves, epochs=1).epochs == 0


def test_a_pruned_trial_of_its_own_length_saves_no_more_than_that():
    trials = DataFrame(
        {"trial": [0, 1, 2], "state": ["complete", "pruned", "pruned"], "epochs": [60, 5, 5], "seconds": [60.0, 5, 5]}
    ).assign(params_epochs=[30, 10, 20], seeds="7 8", saved_seconds=[0.0, 15.0, None])
    result = saved(trials, DataFrame(columns=["trial", "epoch", "score"]))
    assert result.epochs == (20 - 5) + (40 - 5)
    assert (result.seconds, result.unknown) == (15.0, 1)


def test_nothing_run_is_nothing_saved():
    result = saved(search(3).trials.iloc[:0], search(3).curves.iloc[:0])
    assert (result.pruned, result.epochs, result.seconds) == (0, 0.0, 0.0)
    assert math.isnan(result.share)
    assert math.isnan(result.epochs_share)
