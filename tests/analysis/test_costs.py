"""What a study took: an arm's price is that of the same seeds of the baseline."""

from dataclasses import replace

import pytest

from analysis import costs
from analysis.tables import Finished


def run(arm, seed, wall, accelerator=0.0):
    return Finished("pretrain", f"{arm}{seed}", {"arm": arm, "seed": seed}, None, (), wall, accelerator)


def test_an_arm_is_priced_over_the_seeds_that_it_shares_with_the_baseline():
    runs = [run("moco", 0, 10.0), run("moco", 1, 30.0), run("mse", 1, 45.0)]
    moco, mse = costs.by_arm(runs, "moco")
    assert (moco.what, moco.stages, moco.wall, moco.times) == ("moco", 2, 20.0, None)
    assert (mse.stages, mse.wall, mse.times) == (1, 45.0, pytest.approx(1.5))


def test_accelerator_time_counts_where_both_arms_have_any():
    runs = [run("moco", 0, 10.0, 10.0), run("mse", 0, 8.0, 32.0)]  # four workers: faster, and dearer
    assert costs.by_arm(runs, "moco")[1].times == pytest.approx(3.2)
    without = [runs[0], replace(runs[1], accelerator_seconds=0.0)]
    assert costs.by_arm(without, "moco")[1].times == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("wall", "words"),
    [(10.04, "the same with mse."), (13.8, "38% more with mse."), (9.3, "7% less with mse."), (23.0, "2.3 times that")],
)
def test_the_price_is_said_in_words(wall, words):
    said = costs.sentence([run("moco", 0, 10.0), run("mse", 0, wall)], "moco")
    assert "no accelerator; a pretraining took 10 s with MoCo, " in said
    assert words in said


def test_without_a_baseline_or_other_arms_there_is_no_comparison():
    assert costs.sentence([], "moco") == ""
    assert costs.sentence([run("moco", 0, 4.0)], "moco") == "The one finished stage took 4.0 s and no accelerator."
    assert "pretraining" not in costs.sentence([run("mse", 0, 4.0), run("b", 0, 4.0)], "moco")


def test_a_stage_that_two_arms_share_ran_once():
    shared = [replace(run("a", 0, 5.0), key="k"), replace(run("b", 0, 5.0), key="k")]
    assert [(each.what, each.stages, each.wall) for each in costs.by_kind(shared)] == [
        ("pretraining", 1, 5.0),
        ("all stages", 1, 5.0),
    ]
    assert [each.wall for each in costs.by_arm(shared, "a")] == [5.0, 5.0]
