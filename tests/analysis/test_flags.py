"""A flagged number is shown, and is never bold, never leads, never is better: KS distances, and CKA."""

import numpy as np
import pandas as pd
import pytest

from analysis import figures
from analysis.flags import flag_weak_reference, noise_floor
from analysis.layout import legend
from analysis.page import page_table
from analysis.significance import verdicts
from analysis.study_claims import study_claims
from analysis.summary import judge, sentences
from analysis.tables import Finished, tidy
from tests.analysis import report_fixture as fixture

SEEDS = range(10)


def tables(distances, *, floor=0.03, reference_low=0.8):
    """A study of KS distances at 1% and the reference's score: {arm: distance}, alike in all seeds but for a little."""
    note = {"reference_arm": "moco", "reference_seed": 0, "floor": floor, "floor_note": None}
    cell = {"mode": "full", "label_fraction": 0.01, "n": 9}
    rows = [
        {**cell, **note, "arm": arm, "seed": seed, "metric": metric, "value": value + 0.0001 * seed * (1 + place)}
        for place, (arm, value) in enumerate(distances.items())
        for seed in SEEDS
        for metric in ("ks", "ece")
    ]
    best = {"metric": "auroc", "value": 0.9, "low": reference_low, "high": 0.95, "n": 9}
    scored = Finished("finetune", "f", {"arm": "moco", "seed": 0, "mode": "full", "label_fraction": 1.0}, None, [best])
    return tidy("d", [scored, Finished("ks", "k", {}, None, rows)])


def bold(found, name="ks"):
    """(row head, arm) of the bold cells, by measure."""
    shown = page_table(name, found, fixture.facts())
    heads = [text for text, _ in shown["levels"][-1]]
    return {
        (group, row["head"], heads[j])
        for group, rows in shown["groups"].items()
        for row in rows
        for j, (_, best) in enumerate(row["cells"])
        if best
    }


def summary(found):
    judged = {**found, "verdicts": judge(found, "moco")}
    said = sentences(judged, dataset="d", metric="auroc", baseline="moco", seeds=SEEDS)
    return " ".join(said.values() if isinstance(said, dict) else said)


def verdict(found):
    judged = judge(found, "moco")
    (one,) = judged.loc[(judged["metric"] == "ks") & (judged["arm"] == "moco_mse"), "verdict"]
    return one


def outcome(found):
    claims = study_claims({**found, "verdicts": judge(found, "moco")}, fixture.facts())
    (one,) = claims.loc[(claims["claim"] == "ks") & (claims["arm"] == "moco_mse"), "outcome"]
    return one


def test_a_distance_that_is_clear_of_the_noise_floor_is_ranked():
    found = tables({"moco": 0.2, "moco_mse": 0.1})
    assert ("KS distance", "1%", "MoCo + MSE") in bold(found)
    assert "MoCo + MSE" in summary(found)
    assert "closest" in summary(found)
    assert "equally close" not in summary(found)
    assert (verdict(found), outcome(found)) == ("better", "supported")


def test_a_lead_within_the_noise_floor_is_none():
    found = tables({"moco": 0.12, "moco_mse": 0.1})
    assert {measure for measure, _, _ in bold(found)} == {"Calibration error (ECE)"}
    assert "MoCo + MSE and MoCo give output probabilities equally close" in summary(found)
    assert "no further apart than the 0.030 between seeds of that model" in summary(found)
    assert (verdict(found), outcome(found)) == ("uninformative: within the noise floor", "uninformative")


def test_the_noise_floor_is_what_decides():
    close = {"moco": 0.12, "moco_mse": 0.1}
    for floor, words in ((0.019, "better"), (0.021, "uninformative: within the noise floor"), (None, "better")):
        assert verdict(tables(close, floor=floor)) == words
    assert noise_floor(tables(close, floor=None)["ks"]) is None


def test_without_a_noise_floor_no_arm_is_closest():
    """The reference has one seed: however large the gap, chance alone may make it."""
    found = tables({"moco": 0.9, "moco_mse": 0.1}, floor=None)
    assert {measure for measure, _, _ in bold(found)} == {"Calibration error (ECE)"}
    assert "no arm is called closest to the best model trained on all labels (MoCo): that model has one seed" in (
        summary(found)
    )
    assert "The noise floor is not known" in legend("ks", found["ks"])
    assert "not known" not in legend("ks", tables({"moco": 0.9, "moco_mse": 0.1})["ks"])


def test_the_second_best_may_be_close_to_the_third_but_not_to_the_best():
    assert ("KS distance", "1%", "MoCo + MSE") in bold(tables({"moco": 0.2, "moco_barlow": 0.19, "moco_mse": 0.1}))
    assert not {b for b in bold(tables({"moco": 0.2, "moco_barlow": 0.11, "moco_mse": 0.1})) if b[0] == "KS distance"}


def test_closeness_to_a_reference_that_may_know_nothing_is_no_merit():
    found = tables({"moco": 0.2, "moco_mse": 0.1}, reference_low=0.49)
    assert found["ks"].loc[found["ks"]["metric"] == "ks", "uninformative"].all()
    assert found["ks"].loc[found["ks"]["metric"] == "ece", "uninformative"].isna().all()
    assert {measure for measure, _, _ in bold(found)} == {"Calibration error (ECE)"}
    assert "no arm is called closest" in summary(found)
    assert (verdict(found), outcome(found)) == ("uninformative", "uninformative")
    assert "† uninformative: the reference itself is not shown to be better than chance." in legend("ks", found["ks"])
    marked = [cell.mean for rows in page_table("ks", found, fixture.facts())["groups"].values() for row in rows
              for cell, _ in row["cells"] if cell is not None and not isinstance(cell, str)]  # fmt: skip
    assert sum("†" in text for text in marked) == 2


def test_a_reference_counts_as_weak_by_its_own_score_alone():
    found = tables({"moco": 0.2, "moco_mse": 0.1}, reference_low=0.8)
    other = found["label_efficiency"].assign(arm="moco_mse", low=0.4)
    both = {**found, "label_efficiency": pd.concat([found["label_efficiency"], other])}
    assert not flag_weak_reference(both)["ks"]["uninformative"].fillna(False).any()
    unknown = {**found, "label_efficiency": other.assign(low=np.nan)}
    assert not flag_weak_reference(unknown)["ks"]["uninformative"].fillna(False).any()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tidy("synthetic", fixture.study(tmp_path_factory.mktemp("stages"), seeds=SEEDS))


def test_a_flagged_similarity_is_neither_bold_nor_better_nor_read_out_as_if_it_said_something(study):
    assert not bold(study, "reuse")
    judged = judge(study, "moco")
    flagged = (judged["metric"] == "cka_authors") & (judged["block"] == 4)
    assert not set(judged.loc[flagged, "verdict"]) & {"better", "worse"}
    own = study["reuse"][study["reuse"]["metric"] == "cka_authors"]
    text = figures.reuse_alt(own)
    assert text.count("block 4 1.00 (uninformative)") == 3
    assert text.count("(uninformative)") == 3


def test_one_flagged_number_takes_its_whole_line_out_of_the_ranking():
    found = tables({"moco": 0.2, "moco_barlow": 0.3, "moco_mse": 0.1})
    flagged = found["ks"]["arm"].eq("moco_barlow") & found["ks"]["metric"].eq("ks")
    assert not {b for b in bold({**found, "ks": found["ks"].assign(uninformative=flagged)}) if b[0] == "KS distance"}


def test_a_noise_floor_says_nothing_of_other_measures():
    base = 0.7 + 0.001 * np.arange(8)
    rows = [
        {"arm": arm, "seed": seed, "metric": metric, "value": value, "floor": 0.5}
        for arm, shift in (("a", 0), ("b", 0.1))
        for seed, value in enumerate(base + shift)
        for metric in ("auroc", "ks")
    ]
    found = verdicts(pd.DataFrame(rows), "a").set_index("metric")["verdict"]
    assert found.to_dict() == {"auroc": "better", "ks": "uninformative: within the noise floor"}
