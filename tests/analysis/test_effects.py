"""The figure at the top: the verdicts' own numbers, no interval made smaller than it is, nothing claimed too soon."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from analysis import effects
from analysis.drawing import PAPER
from analysis.pictures import effects_picture
from analysis.summary import judge
from analysis.tables import Finished, tidy
from tests.analysis import report_fixture as fixture

ARMS = ("moco", "moco_mse", "moco_barlow")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return judged(fixture.study(tmp_path_factory.mktemp("stages")))


def judged(stages):
    tables = tidy("synthetic", stages)
    return {**tables, "verdicts": judge(tables, "moco")}


def runs(values, fraction=0.01):
    """Full fine-tuning, {arm: score by seed}."""
    return [
        Finished(
            "finetune",
            f"{arm}{seed}",
            {"arm": arm, "seed": seed, "mode": "full", "label_fraction": fraction},
            None,
            [{"metric": "auroc", "value": value, "low": value - 0.01, "high": value + 0.01, "n": 9}],
        )
        for arm, found in values.items()
        for seed, value in enumerate(found)
    ]


def grouped(tables, arms=ARMS):
    return effects.groups(tables, metric="auroc", baseline="moco", arms=arms)


def test_rows_are_those_of_the_verdicts_in_points(tables):
    found = grouped(tables)
    assert list(found) == ["Frozen encoder", "Fine-tuned on 1%", "Fine-tuned on 6%", "Fine-tuned on 100%"]
    assert [[row.arm for row in rows] for rows in found.values()] == [["moco_mse", "moco_barlow"]] * 4
    frozen = tables["verdicts"].query(
        "table == 'linear' and metric == 'auroc' and arm == 'moco_mse' and against == 'moco'"
    )
    row = found["Frozen encoder"][0]
    assert [row.effect, row.low, row.high] == pytest.approx(list(100 * frozen[["effect", "low", "high"]].iloc[0]))
    assert np.mean(row.seeds) == pytest.approx(row.effect)
    assert len(row.seeds) == 2


def test_the_axis_holds_zero_and_every_seed_and_longer_intervals_end_in_arrows(tables):
    found = grouped(tables)
    axes = effects.effects(found, metric="auroc", baseline="moco", arms=ARMS).axes[0]
    left, right = axes.get_xlim()
    rows = [row for each in found.values() for row in each]
    assert left < 0 < right
    assert all(left < value < right for row in rows for value in row.seeds)
    arrows = [line.get_marker() for line in axes.lines if line.get_marker() in ("<", ">")]
    assert arrows.count("<") == sum(row.low < left for row in rows) > 0
    assert arrows.count(">") == sum(row.high > right for row in rows) > 0
    drawn = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] != 0]
    spans = [x for x in drawn if x[0] != x[1]]
    assert len(spans) == len(rows)
    assert all(
        tuple(x) == pytest.approx((max(r.low, left), min(r.high, right))) for x, r in zip(spans, rows, strict=True)
    )


def test_only_a_verdict_fills_a_mark():
    even = [0.7 + 0.001 * i for i in range(8)]
    clear = judged(runs({"moco": even, "a": [v + 0.05 for v in even], "b": even[::-1]}))
    found = effects.groups(clear, metric="auroc", baseline="moco", arms=("moco", "a", "b"))
    axes = effects.effects(found, metric="auroc", baseline="moco", arms=("moco", "a", "b")).axes[0]
    marks = [line for line in axes.lines if line.get_markersize() == 6.5]
    assert [to_hex(mark.get_markerfacecolor()) == PAPER for mark in marks] == [False, True]
    assert "1 of 2 are significant" in effects.effects_alt(found, metric="auroc", baseline="moco")


def test_one_seed_has_no_interval():
    found = grouped(judged(runs({"moco": (0.7,), "moco_mse": (0.75,)})))
    (row,) = found["Fine-tuned on 1%"]
    assert math.isnan(row.low)
    assert "MoCo + MSE +5.0." in effects.effects_alt(found, metric="auroc", baseline="moco")
    effects.effects(found, metric="auroc", baseline="moco", arms=ARMS, narrow=True)


def test_the_picture_leaves_out_what_is_not_pretrained_and_says_when_arms_are_too_many(tables):
    picture = effects_picture(tables, fixture.facts())
    assert "Supervised" not in picture.alt
    assert "the table has the others" not in picture.reading
    many = {"moco": (0.7, 0.7), **{f"arm{i}": (0.7, 0.71) for i in range(8)}}
    facts = replace(fixture.facts(), arms=dict.fromkeys(many, fixture.pretraining("moco")))
    crowded = effects_picture(judged(runs(many)), facts)
    assert "Shown are the first 6 arms" in crowded.reading


def test_nothing_compared_gives_no_picture():
    assert effects_picture(judged(runs({"moco": (0.7, 0.8)})), fixture.facts()) is None
