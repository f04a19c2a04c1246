"""Differences within one run: paired on the same resampled groups, and never a word on significance."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from analysis.report import build
from analysis.run_differences import run_differences
from analysis.tables import Finished
from ssl_core.errors import DataError
from ssl_core.metrics import bootstrap, resampled_scores, resamples
from tests.analysis import report_fixture as fixture

N = 240
RNG = np.random.default_rng(0)
GROUPS = RNG.integers(40, size=N).astype(str)
LABELS = RNG.integers(0, 2, N)
HARD = RNG.normal(size=N)  # what makes an image hard, for every model


def probabilities(skill, seed):
    own = np.random.default_rng(seed).normal(size=N)
    return 1 / (1 + np.exp(-(skill * (2 * LABELS - 1) + 2 * HARD + 0.3 * own)))[:, None]


def stage(folder, arm, p, *, mode="full", fraction=0.01, ids=None):
    made = folder / f"{arm}-{mode}-{fraction}"
    made.mkdir(exist_ok=True)
    ids = np.arange(N).astype(str) if ids is None else ids
    np.savez(made / "predictions.npz", test_ids=ids, test_groups=GROUPS, test_labels=LABELS, test_probabilities=p)
    labels = {"arm": arm, "seed": 3, "mode": mode, "label_fraction": fraction}
    return Finished("finetune", made.name, labels, made, [{"metric": "auroc", "value": 0.5}])


def facts(**changes):
    return replace(fixture.facts(decision=None), seeds=(3,), downstream={"bootstrap": 200}, **changes)


def test_the_interval_is_that_of_a_plain_loop_over_the_same_groups_for_both(tmp_path):
    a, b = probabilities(0.5, 1), probabilities(0.8, 2)
    found = run_differences([stage(tmp_path, "moco", a), stage(tmp_path, "moco_mse", b)], facts())
    (row,) = found.to_dict("records")
    names = np.unique(GROUPS)
    gaps = []
    for draw in resamples(len(names), 200, 3):
        images = np.concatenate([np.flatnonzero(names[g] == GROUPS) for g in draw])
        gaps.append(roc_auc_score(LABELS[images], b[images, 0]) - roc_auc_score(LABELS[images], a[images, 0]))
    assert row["difference"] == pytest.approx(roc_auc_score(LABELS, b[:, 0]) - roc_auc_score(LABELS, a[:, 0]))
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])))
    assert (row["n"], row["groups"], row["replicates"]) == (N, len(names), 200)
    assert (row["arm"], row["against"], row["seed"], row["mode"]) == ("moco_mse", "moco", 3, "full")


def test_what_is_hard_for_both_cancels(tmp_path):
    a, b = probabilities(0.5, 1), probabilities(0.8, 2)
    found = run_differences([stage(tmp_path, "moco", a), stage(tmp_path, "moco_mse", b)], facts()).iloc[0]
    alone = [bootstrap("auroc", LABELS, p, "binary", groups=GROUPS, replicates=200, seed=3) for p in (a, b)]
    width = found["difference_high"] - found["difference_low"]
    assert width < 0.6 * np.hypot(*(each.high - each.low for each in alone))


def test_a_model_against_itself_differs_by_nothing_and_turning_the_two_turns_the_sign(tmp_path):
    a, b = probabilities(0.5, 1), probabilities(0.8, 2)
    same = run_differences([stage(tmp_path, "moco", a), stage(tmp_path, "moco_mse", a)], facts()).iloc[0]
    assert same[["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    one = [stage(tmp_path, "moco", a), stage(tmp_path, "moco_mse", b)]
    there, back = (run_differences(one, facts(baseline=arm)).iloc[0] for arm in ("moco", "moco_mse"))
    assert there["difference"] == -back["difference"]
    assert there["difference_low"] == pytest.approx(-back["difference_high"])


def test_resamples_that_lack_a_class_are_left_out_for_both_models_alike():
    labels = np.repeat([0, 0, 0, 0, 1], 2)
    p, q = (np.random.default_rng(i).random((10, 1)) for i in (1, 2))
    groups = np.repeat(np.arange(5), 2).astype(str)
    first, second = (
        resampled_scores("auroc", labels, each, "binary", groups=groups, replicates=30, seed=0) for each in (p, q)
    )
    assert len(first) == len(second) == 30
    kept = [draw for draw in resamples(5, 300, 0) if (draw == 4).any() and (draw != 4).any()][:30]
    for scores, each in ((first, p), (second, q)):
        images = [np.concatenate([np.flatnonzero(groups == str(g)) for g in draw]) for draw in kept]
        assert scores == pytest.approx([roc_auc_score(labels[i], each[i, 0]) for i in images])


def test_with_more_seeds_seeds_are_the_unit_and_there_is_no_such_table(tmp_path):
    stages = [stage(tmp_path, "moco", probabilities(0.5, 1)), stage(tmp_path, "moco_mse", probabilities(0.8, 2))]
    assert run_differences(stages, replace(facts(), seeds=(3, 4))).empty


def test_models_of_other_images_fractions_or_modes_are_not_compared(tmp_path):
    a, b = probabilities(0.5, 1), probabilities(0.8, 2)
    others = np.arange(1, N + 1).astype(str)
    stages = [
        stage(tmp_path, "moco", a),
        stage(tmp_path, "moco_mse", b, ids=others),
        stage(tmp_path, "moco_barlow", b, fraction=0.06),
        stage(tmp_path, "moco_barlow", b, mode="linear"),
        stage(tmp_path, "supervised", b, mode="scratch"),
    ]
    found = run_differences(stages, facts())
    assert found[["arm", "mode", "label_fraction"]].to_numpy().tolist() == [["supervised", "full", 0.01]]


def test_predictions_that_cannot_be_read_are_named(tmp_path):
    stages = [stage(tmp_path, "moco", probabilities(0.5, 1)), stage(tmp_path, "moco_mse", probabilities(0.8, 2))]
    (stages[1].folder / "predictions.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"moco_mse-full-0.01.predictions.npz cannot be read"):
        run_differences(stages, facts())


def test_the_report_leaves_the_table_and_says_what_it_is_not(tmp_path):
    stages = [stage(tmp_path, "moco", probabilities(0.5, 1)), stage(tmp_path, "moco_mse", probabilities(0.8, 2))]
    text = build(facts(), stages, tmp_path / "tables", tmp_path / "report").read_text()
    table = pd.read_csv(tmp_path / "tables" / "run_differences.csv")
    assert table["difference"].tolist() == run_differences(stages, facts())["difference"].tolist()
    assert "and is no significance" in text
    assert set(pd.read_csv(tmp_path / "tables" / "verdicts.csv")["verdict"].str.split(":").str[0]) == {
        "needs more seeds"
    }
    two = build(replace(facts(), seeds=(3, 4)), stages, tmp_path / "tables", tmp_path / "report").read_text()
    assert not (tmp_path / "tables" / "run_differences.csv").exists()
    assert "and is no significance" not in two
