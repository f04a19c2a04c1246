"""The paper's claims on a study's data: which arms they speak of, which verdict decides, and what stands beside it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.claims import CLAIMS
from analysis.report import build
from analysis.study_claims import of_claim, outcome, overall, study_claims
from analysis.summary import judge
from analysis.tables import Finished, tidy
from tests.analysis import report_fixture as fixture
from tests.analysis.test_report import Page

CLAIM = {claim.key: claim for claim in CLAIMS}
SEEDS = range(10)
MOCO, MSE, BARLOW = (fixture.pretraining(arm) for arm in ("moco", "moco_mse", "moco_barlow"))


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return fixture.study(tmp_path_factory.mktemp("stages"), seeds=SEEDS)


@pytest.fixture(scope="module")
def tables(stages):
    return judged(tidy("synthetic", stages))


@pytest.fixture(scope="module")
def claims(tables):
    return study_claims(tables, fixture.facts(seeds=SEEDS))


def judged(tables, baseline="moco"):
    return {**tables, "verdicts": judge(tables, baseline)}


def scores(values, *, mode="full", fraction=0.01, metric="auroc"):
    """Finished fine-tunings, {arm: value by seed}."""
    return [
        Finished(
            "finetune",
            f"{arm}{seed}{mode}{fraction}",
            {"arm": arm, "seed": seed, "mode": mode, "label_fraction": fraction},
            None,
            [{"metric": metric, "value": value}],
        )
        for arm, found in values.items()
        for seed, value in enumerate(found)
    ]


def found(values, arms, baseline="moco", source=None, metric="auroc", **how):
    """Claims of a study with nothing but these fine-tunings."""
    facts = replace(fixture.facts(), arms=arms, baseline=baseline, metric=metric)
    facts = replace(facts, dataset={**fixture.dataset(), "source": source})
    return study_claims(judged(tidy("d", scores(values, metric=metric, **how)), baseline), facts)


def row(table, key, **wanted):
    rows = table[table["claim"] == key]
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    (only,) = rows.to_dict("records")
    return only


def even(shift, n=8):
    return [0.7 + 0.001 * i + shift for i in range(n)]


def test_every_claim_is_there_and_every_outcome_is_that_of_its_verdict(claims):
    assert list(dict.fromkeys(claims["claim"])) == [claim.key for claim in CLAIMS]
    ranked = claims[claims["outcome"] != "uninformative"]
    assert (ranked["outcome"] == ranked["verdict"].map(outcome)).all()
    assert (claims["arm"] == claims["paper_arm"]).all()


def test_effect_interval_and_p_are_those_of_the_verdicts_table(claims, tables):
    verdict = tables["verdicts"].query(
        "table == 'label_efficiency' and metric == 'auroc' and label_fraction == 0.01 and arm == 'moco_mse'"
    )
    ours = row(claims, "gain_1", arm="moco_mse")
    theirs = verdict[verdict["against"] == "moco"].iloc[0]
    for name in ("effect", "low", "high", "n", "p", "p_holm", "seeds_needed", "verdict"):
        assert ours[name] == theirs[name]
    assert ours["seeds_needed"] == 10  # the family is that of the table: 18 comparisons of AUROC, not the claim's two


def test_a_comparison_that_the_table_holds_the_other_way_round_is_turned(tables, claims):
    assert not len(tables["verdicts"].query("arm == 'moco_mse' and against == 'supervised'"))
    ours = row(claims, "pretraining", arm="moco_mse", label_fraction=0.01)
    theirs = tables["verdicts"].query(
        "table == 'label_efficiency' and metric == 'auroc' and label_fraction == 0.01 "
        "and arm == 'supervised' and against == 'moco_mse'"
    )
    theirs = theirs.iloc[0]
    assert (ours["effect"], ours["low"], ours["high"]) == (-theirs["effect"], -theirs["high"], -theirs["low"])
    assert (ours["verdict"], theirs["verdict"]) == ("better", "worse")


@pytest.mark.parametrize(
    ("shift", "n", "words"),
    [
        (0.05, 8, "supported"),
        (-0.05, 8, "contradicted"),
        (0.05, 2, "needs more seeds"),
        (0.05, 5, "needs more seeds"),
    ],
)
def test_the_outcome_follows_the_data(shift, n, words):
    table = found({"moco": even(0, n), "mse": even(shift, n)}, {"moco": MOCO, "mse": MSE})
    assert row(table, "gain_1", arm="mse")["outcome"] == words


def test_no_difference_is_not_shown():
    table = found({"moco": even(0), "mse": even(0)[::-1]}, {"moco": MOCO, "mse": MSE})
    assert row(table, "gain_1", arm="mse")["outcome"] == "not shown"


def test_arms_are_known_by_their_losses_and_not_by_their_names():
    values = {"a": even(0), "moco_barlow": even(0.05), "moco": even(-0.2)}
    arms = {"a": MOCO, "moco_barlow": MSE, "moco": {**MSE, "mse": {"blocks": [2]}}}
    table = found(values, arms, baseline="a")
    ours = row(table, "gain_1", arm="moco_barlow")
    assert (ours["against"], ours["outcome"]) == ("a", "supported")
    assert ours["paper_arm"] == "moco_mse"
    assert "moco" not in {*table["arm"], *table["against"]}  # its loss is on one block alone
    missing = table[(table["claim"] == "gain_1") & (table["outcome"] == "not measured")]
    assert missing["paper_arm"].tolist() == ["moco_barlow"]
    assert missing["reason"].tolist() == [
        "no arm of this study has the Barlow Twins loss on all four blocks as its only block loss"
    ]


def test_without_moco_there_is_nothing_to_claim():
    table = found({"a": even(0), "b": even(0.05)}, {"a": MSE, "b": BARLOW}, baseline="a")
    assert set(table["outcome"]) == {"not measured"}
    assert set(table["reason"]) == {"no arm is MoCo alone", "no arm of this study has no pretraining"}


def test_the_moco_arm_that_differs_least_is_the_one_compared_with():
    arms = {"moco": {**MOCO, "epochs": 60, "batch_size": 64}, "control": MOCO, "mse": MSE}
    values = {"moco": even(0), "control": even(0.1), "mse": even(0.05)}
    ours = row(found(values, arms), "gain_1", arm="mse")
    assert (ours["against"], ours["other_settings"], ours["outcome"]) == ("control", 0, "contradicted")
    alone = row(
        found({k: v for k, v in values.items() if k != "control"}, {k: arms[k] for k in ("moco", "mse")}),
        "gain_1",
        arm="mse",
    )
    assert (alone["against"], alone["other_settings"], alone["outcome"]) == ("moco", 2, "supported")


def test_fractions_that_were_not_measured_are_said_so():
    table = found({"moco": even(0), "mse": even(0.05)}, {"moco": MOCO, "mse": MSE}, fraction=0.1)
    ours = row(table, "gain_1", arm="mse")
    assert ours["outcome"] == "not measured"
    assert ours["reason"] == "mse and MoCo were not both measured with 1% of the labels"


def test_a_flagged_similarity_says_nothing_of_a_claim(claims):
    reuse = claims[claims["claim"] == "reuse"]
    flagged = (reuse["metric"] == "cka_authors") & (reuse["block"] == 4)
    assert set(reuse.loc[flagged, "outcome"]) == {"uninformative"}
    assert reuse.loc[flagged, "effect"].isna().all()
    assert set(reuse.loc[~flagged, "outcome"]) == {"supported"}
    assert of_claim(CLAIM["reuse"], claims) == "supported"


def test_the_papers_numbers_are_its_own_on_its_dataset_and_else_its_mean_and_range():
    values, arms = {"moco": even(0), "mse": even(0.05)}, {"moco": MOCO, "mse": MSE}
    other = row(found(values, arms), "gain_1", arm="mse")
    assert other["paper_effect"] == pytest.approx((2.2 + 5.5 + 2.3) / 300)
    assert (other["paper_low"], other["paper_high"]) == (0.022, 0.055)
    assert other["paper_datasets"] == "cxr14, eyepacs, idc"
    own = row(found(values, arms, source="eyepacs"), "gain_1", arm="mse")
    assert (own["paper_effect"], own["paper_datasets"]) == (0.055, "eyepacs")
    another_score = row(found(values, arms, source="idc"), "gain_1", arm="mse")  # the paper's is F1 there
    assert np.isnan(another_score["paper_effect"])
    its_score = row(found(values, arms, source="idc", metric="f1"), "gain_1", arm="mse")
    assert its_score["paper_effect"] == 0.023


def test_a_cell_that_the_paper_takes_out_of_its_claim_is_not_judged_on_that_dataset():
    values, arms = {"moco": even(0), "mse": even(-0.05)}, {"moco": MOCO, "mse": MSE}
    out = row(found(values, arms, source="cxr14", fraction=1.0), "gain_100", arm="mse")
    assert (out["outcome"], "takes out cxr14" in out["reason"]) == ("not measured", True)
    assert row(found(values, arms, source="idc", metric="f1", fraction=1.0), "gain_100", arm="mse")["outcome"] == (
        "contradicted"
    )


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "uninformative", "not measured"], "supported"),
        (["supported", "supported", "contradicted"], "partly"),
        (["supported", "contradicted"], "contradicted"),
        (["contradicted", "not shown"], "contradicted"),
        (["supported", "not shown"], "partly"),
        (["not shown", "needs more seeds"], "not shown"),
        (["needs more seeds", "uninformative"], "needs more seeds"),
        (["uninformative", "not measured"], "uninformative"),
        (["not measured"], "not measured"),
    ],
)
def test_several_outcomes_make_one(outcomes, words):
    assert overall(outcomes) == words


def test_an_either_claim_counts_the_better_arm_of_each_cell():
    rows = [("moco_mse", 1, "supported"), ("moco_mse", 2, "contradicted")]
    rows += [("moco_barlow", 1, "contradicted"), ("moco_barlow", 2, "supported")]
    table = pd.DataFrame(rows, columns=["arm", "block", "outcome"])
    table = table.assign(claim="early_blocks", label_fraction=1.0, metric="auroc")
    assert of_claim(CLAIM["early_blocks"], table) == "supported"
    assert of_claim(replace(CLAIM["early_blocks"], either=False), table) == "contradicted"
    against = table[table["outcome"] == "contradicted"].assign(block=[1, 1], label_fraction=1.0)
    assert of_claim(CLAIM["early_blocks"], against) == "contradicted"
    missing = against.assign(outcome=["contradicted", "not measured"], block=[1, None])
    assert of_claim(CLAIM["early_blocks"], missing) == "not shown"  # the other loss was not tried


@pytest.fixture(scope="module")
def built(stages, tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    few = [stage for stage in stages if stage.kind not in ("pretrain", "ks")]
    build(fixture.facts(seeds=SEEDS), few, root / "tables", root / "report")
    return root


def test_the_page_has_a_section_on_the_claims_after_the_verdicts(built, claims):
    page = Page((built / "report" / "index.html").read_text(encoding="utf-8"))
    ids = [e["id"] for e in page.all("h2") if "id" in e]
    assert ids.index("claims") == ids.index("verdicts") + 1
    assert "synthetic is none of the paper's datasets" in page.text
    assert "5.09% (3.83 points) with 1% of the labels and 2.03% (1.73 points) with 6% of the labels" in page.text
    heads = [" ".join(e["text"].split()) for e in page.all("tr") if e.get("class") == "group"]
    assert "Gain with 1% of the labels: supported" in heads
    assert "Lower KS distance: not measured" in heads  # the ks stage is not among these
    assert "MoCo + MSE and MoCo were not both measured with 1% and 6% of the labels" in page.text
    assert "37 of 48 comparisons are as claimed" in page.text
    assert "Table 5, against the claim: idc at 1%: MoCo + MSE 0.082, MoCo 0.043." in page.text
    gain = row(claims, "gain_1", arm="moco_mse")
    cells = [" ".join(e["text"].split()) for e in page.all("td")]
    assert f"+{100 * gain['low']:.1f} to +{100 * gain['high']:.1f}" in cells
    assert "supported in 6, uninformative in 2" in cells
    assert "+3.3 (+2.2 to +5.5)" in cells


def test_report_md_and_the_csv_file_say_the_same(built, claims):
    text = (built / "report" / "report.md").read_text()
    section = text[text.index("## The paper's claims") :]
    assert text.index("## Verdicts over seeds") < text.index("## The paper's claims")
    assert "**Gain with 1% of the labels: supported**" in section
    assert "supported in 6, uninformative in 2" in section
    table = pd.read_csv(built / "tables" / "claims.csv")
    kept = claims[claims["claim"] != "ks"].reset_index(drop=True)
    read = table[table["claim"] != "ks"].reset_index(drop=True)
    assert (
        read[["claim", "arm", "outcome"]].to_numpy().tolist() == kept[["claim", "arm", "outcome"]].to_numpy().tolist()
    )
    assert read["effect"].to_numpy() == pytest.approx(kept["effect"].to_numpy(), nan_ok=True)


def test_a_study_of_other_arms_has_one_sentence_and_no_table(stages, tmp_path):
    facts = replace(fixture.facts(), arms={"moco_mse": MSE, "moco_barlow": BARLOW}, baseline="moco_mse")
    some = [s for s in stages if s.kind == "probe" and s.labels["arm"] in facts.arms]
    page = Page(build(facts, some, tmp_path, tmp_path).read_text())
    assert "Nothing that this study measured speaks to the paper's claims: no arm is MoCo alone" in page.text
    assert not [e for e in page.all("caption") if "claim" in e["text"]]


def test_a_study_that_has_not_measured_anything_yet_says_so_in_a_sentence(tmp_path):
    page = Page(build(fixture.facts(), [], tmp_path, tmp_path).read_text())
    assert "no two arms that they compare have been tested alike yet" in page.text
    text = (tmp_path / "report.md").read_text()
    assert "no two arms that they compare have been tested alike yet" in text
    assert "does not fit in the paper" not in page.text + text


def test_other_settings_that_differ_are_named_beside_the_arm(stages, tmp_path):
    arms = {"moco": {**MOCO, "epochs": 60}, "moco_mse": MSE}
    some = [s for s in stages if s.kind == "probe" and s.labels["arm"] in arms]
    page = Page(build(replace(fixture.facts(), arms=arms), some, tmp_path, tmp_path).read_text())
    assert "MoCo (1 other setting differs)" in [" ".join(e["text"].split()) for e in page.all("td")]
