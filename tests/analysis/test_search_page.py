"""The report's section on a search: whole, readable by everyone, and claiming no more than validation can."""

from dataclasses import replace

import pandas as pd
import pytest

from analysis import search_figures, search_space_figures
from analysis.pictures import search_pictures
from analysis.report import build
from analysis.search_axis import OFF, Axis, varied
from analysis.search_page import section, section_markdown, write
from analysis.search_words import described, objective_text, parameter_text, start_name
from analysis.summary import judge
from analysis.tables import NAMES, Finished, tidy
from tests.analysis import report_fixture as fixture
from tests.analysis.search_fixture import empty, search
from tests.analysis.test_report import Page

FIGURES = ("search_history", "search_importances", "search_slices", "search_parallel", "search_curves")
DRAWN = (search_figures, "history"), (search_space_figures, "importances"), (search_space_figures, "slices")


def promoted(**changes):
    """The search with its best trial as an arm, and two seeds of that arm and of the paper's on the test images."""
    found = search(promoted={3: "trial_3"}, starts={"paper_moco": "moco"}, **changes)
    scores = {"moco": (0.70, 0.72), "trial_3": (0.73, 0.76), "paper_mse": (0.74, 0.75)}
    stages = [
        Finished(
            "finetune",
            f"{arm}{seed}",
            {"arm": arm, "seed": seed, "mode": "full", "label_fraction": 0.01},
            None,
            [{"metric": "auroc", "value": value, "low": value - 0.01, "high": value + 0.01, "n": 9}],
        )
        for arm, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return found, stages, judge(tidy("d", stages), "moco")


def shown(found, judged=None, **changes):
    return section(found, pd.DataFrame() if judged is None else judged, fixture.facts(**changes))


def words(found, judged=None):
    return " ".join(shown(found, judged)["sentences"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    found, stages, _ = promoted()
    facts = fixture.facts(arms=("moco",), decision=None)
    build(facts, [replace(s, folder=root) for s in stages], root / "tables", root / "report", found)
    return root


@pytest.fixture(scope="module")
def page(built):
    return Page((built / "report" / "index.html").read_text(encoding="utf-8"))


def test_a_search_leaves_its_tables_figures_and_a_section(built, page):
    assert {p.name for p in (built / "tables").iterdir()} == {
        f"{name}.csv" for name in (*NAMES, "verdicts", "claims", "search", "search_importances", "search_blocks")
    }
    assert {f"{name}.png" for name in FIGURES} <= {p.name for p in (built / "report").iterdir()}
    assert [h["text"] for h in page.all("h2")].count("The search") == 1
    assert "#search" in [a["href"] for a in page.all("a")]
    text = (built / "report" / "report.md").read_text(encoding="utf-8")
    assert "## The search" in text
    assert "**Trial 3, arm trial\\_3**" in text or "**Trial 3, arm trial_3**" in text  # a group keeps its name


def test_search_csv_holds_every_trial_with_its_parameters(built):
    table = pd.read_csv(built / "tables" / "search.csv")
    made = search().trials
    assert list(table.columns) == list(made.columns)
    assert (table["trial"] == made["trial"]).all()
    assert (table["params_learning_rate"] == made["params_learning_rate"]).all()


def test_every_figure_of_a_search_has_words_and_the_page_names_each_thing_once(page):
    drawings = [e for e in page.all("svg") if "aria-label" in e]
    assert len(drawings) == 2 * (len(FIGURES) + 1)
    assert all(len(svg["aria-label"]) > 80 for svg in drawings)
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        for name in element.get("aria-labelledby", "").split():
            assert name in ids


def test_a_report_without_a_search_speaks_of_none_and_keeps_no_old_table(built, tmp_path):
    found, stages, _ = promoted()
    write(found, tmp_path / "tables")
    build(
        fixture.facts(arms=("moco",), decision=None),
        [replace(s, folder=tmp_path) for s in stages[:2]],
        tmp_path / "tables",
        tmp_path,
    )
    assert not list((tmp_path / "tables").glob("search*"))
    assert "The search" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "search" not in Page((tmp_path / "index.html").read_text(encoding="utf-8")).text.replace("research", "")


def test_what_people_wrote_is_shown_and_not_run(page):
    assert "active in <3 trials" in page.text  # of the fixture's note
    assert "&lt;3 trials" in section_markdown(shown(search()), [])


def test_the_sentences_count_trials_and_say_how_they_were_judged():
    text = words(search())
    states = search().trials["state"].value_counts()
    assert (
        f"24 configurations, 3 given in advance, the others suggested by TPE: {states['complete']} ran to the" in text
    )
    assert "1 failed and 1 not finished. 2 more suggestions repeated an earlier trial and were not trained" in text
    assert "linear probe on block 4, trained on 6% of the training labels and scored by AUROC" in text
    assert "no trial reads a test image" in text


def test_the_best_stands_beside_the_papers_settings_and_is_said_to_flatter():
    trials = search().trials.assign(state="pruned")
    trials.loc[[0, 1, 7, 8], "state"] = "complete"
    trials.loc[[0, 1, 7, 8], "score"] = [0.85, 0.90, 0.92, 0.80]
    text = words(search(trials=trials))
    assert "best validation AUROC is that of trial 7: 92.0%, 2.0 points above the best of the paper’s settings" in text
    assert "(paper’s MoCo + MSE 90.0, paper’s MoCo 85.0; 1 of the paper’s 3 settings did not run to the end)" in text
    assert "highest of 4 values on the same validation images, picked for being so" in text
    trials.loc[0, "score"] = 0.99
    assert "which is the paper’s MoCo itself: the search found nothing better" in words(search(trials=trials))
    trials.loc[[0, 1], "state"] = "pruned"
    assert "no setting of the paper’s run to its end to compare with" in words(search(trials=trials))


def test_validation_is_no_confirmation():
    found, _, judged = promoted()
    assert "for the fresh seeds and the test images to say, below" in words(found, judged)
    assert "which has not been done yet" in words(found)
    assert "which has not been done yet" in words(search())


def test_fresh_seeds_compare_the_promoted_with_the_papers_settings():
    found, _, judged = promoted()
    table = shown(found, judged)["fresh"]
    assert list(table.groups) == ["Trial 3, arm trial_3"]
    assert [row[:3] for row in table.groups["Trial 3, arm trial_3"]] == [
        ["Full, 1%", "MoCo", "+3.5"],
        ["Full, 1%", "Paper: MoCo + MSE", "0.0"],
    ]
    assert table.groups["Trial 3, arm trial_3"][0][-1].startswith("needs at least")
    # the same where the verdict was written from the other arm
    turned = judged.rename(columns={"arm": "against", "against": "arm"})
    turned = turned.assign(effect=-judged["effect"], low=-judged["high"], high=-judged["low"], verdict="worse")
    mirrored = shown(found, turned)["fresh"].groups["Trial 3, arm trial_3"]
    assert [row[:5] for row in mirrored] == [row[:5] for row in table.groups["Trial 3, arm trial_3"]]
    assert [row[-1] for row in mirrored] == ["better", "worse"]  # the first is now the one that is turned


def test_a_promoted_trial_is_first_compared_with_itself_without_its_losses():
    found, _, judged = promoted()
    control = judged.loc[judged["against"] == "moco"].assign(against="trial_3_no_losses", effect=0.01)
    with_control = replace(found, controls={3: "trial_3_no_losses"})
    table = shown(with_control, pd.concat([judged, control]))["fresh"]
    assert table.groups["Trial 3, arm trial_3"][0][:3] == ["Full, 1%", "trial_3_no_losses", "+1.0"]
    assert "what the losses do alone" in table.legend
    assert "what the losses do alone" not in shown(found, judged)["fresh"].legend


def test_the_table_of_trials_holds_the_best_and_the_starts_and_no_score_of_a_pruned_one():
    table = shown(search())["best"]
    best, starts = table.groups.values()
    assert len(best) == 10
    assert [row[1] for row in best] == [str(place) for place in range(1, 11)]
    assert [row[0] for row in starts] == ["0, paper’s MoCo", "1, paper’s MoCo + MSE", "2, paper’s MoCo + Barlow Twins"]
    pruned = search().trials.assign(state="pruned")
    _, *rest = shown(search(trials=pruned.assign(start="start_1")))["best"].groups["What the search began with"][0]
    assert rest[:2] == ["–", "–"]
    assert rest[2] == "stopped at 30"


def test_few_trials_are_called_few():
    made = shown(search())
    assert "read the order, if anything" in made["importance_words"]
    weak = [row for row in made["blocks"].groups["A block’s loss switched on"] if min(int(row[1]), int(row[2])) < 3]
    assert all("from very few trials" in row[-1] or row[-2] == "–" for row in weak)
    assert "tend to look smaller than they are" in made["block_words"]
    assert "cannot be told yet: no completed trial has a block" in shown(empty(["pruned", "failed"]))["block_words"]


def test_what_pruning_saved_is_said_with_its_share():
    text = shown(search())["saved"]
    assert "Stopping 9 trials early with ASHA saved 243 epochs and about 2 min 2 s, 36% of what the same" in text
    assert "it may have been a late starter" in text
    untimed = shown(search(trials=search().trials.assign(saved_seconds=None)))["saved"]
    assert "saved 243 epochs. The time of 9 of them is not known and not counted." in untimed
    assert "nothing was saved" in shown(search(3))["saved"]
    assert shown(search(scheduler="none"))["saved"] == ""


@pytest.mark.parametrize("states", [["running"], ["failed", "pruned", "running"], ["pruned"] * 8])
def test_a_search_without_a_result_says_so(states):
    found = empty(states)
    made = shown(found)
    assert "No trial has run to its end" in " ".join(made["sentences"])
    assert made["blocks"] is made["importances"] is made["best"] is None
    assert search_pictures(found) == []
    assert "The search" in section_markdown(made, [])


def test_several_objectives_have_a_front_and_a_panel_each():
    found = search(objectives=("score", "seconds", "peak_memory"))
    made = shown(found)
    assert "on the Pareto front, beaten by no other in all of them" in " ".join(made["sentences"])
    head = [text for text, _ in made["best"].columns]
    assert head == ["Trial", "Rank", "Validation AUROC (%)", "Training time", "Peak memory", "Epochs",
                    "Settings that were searched"]  # fmt: skip
    assert [picture.name for picture in search_pictures(found)] == [*FIGURES, "search_pareto"]
    assert len(search_figures.history(found).axes) == 3
    assert len(search_figures.pareto(found, narrow=True).axes) == 2
    front = found.trials[found.trials["pareto"] & (found.trials["state"] == "complete")]
    assert all(f"trial {trial} " in search_figures.pareto_alt(found) for trial in front["trial"])


def test_history_draws_completed_trials_as_points_and_the_rest_at_the_foot():
    found = search()
    (axes,) = search_figures.history(found).axes
    states = found.trials["state"].value_counts()
    assert sum(len(c.get_offsets()) for c in axes.collections) == states["complete"]
    feet = [line for line in axes.lines if line.get_marker() in "|x"]
    assert [len(line.get_xdata()) for line in feet] == [states["pruned"], states["failed"]]
    best = axes.lines[0].get_ydata()
    assert (best[1:] >= best[:-1]).all()
    assert best[-1] == pytest.approx(100 * found.trials.loc[found.trials["state"] == "complete", "score"].max())


def test_an_inactive_parameter_stands_in_no_slice_and_beside_its_row():
    found = search()
    axis = Axis.of("mse.scale", found)
    assert axis.log
    assert axis.share(None) == axis.share(float("nan")) == OFF
    assert (axis.share(axis.low), axis.share(axis.high)) == pytest.approx((0, 1))
    assert axis.share((axis.low * axis.high) ** 0.5) == pytest.approx(0.5)
    figure = search_space_figures.slices(found)
    panel = figure.axes[varied(found).index("mse.scale")]
    done = found.trials[found.trials["state"] == "complete"]
    assert sum(len(c.get_offsets()) for c in panel.collections) == done["params_mse.scale"].notna().sum()


def test_choices_of_numbers_switches_and_words_are_told_apart():
    found = search()
    assert Axis.of("barlow.width", found).options == ("64", "128", "256")
    assert Axis.of("block_2", found).options == ("off", "on")
    assert set(Axis.of("loss", found).options) == {"none", "mse", "barlow", "both"}
    assert Axis.of("learning_rate", found).options == ()


def test_parameters_read_as_a_person_would_say_them():
    assert described({"loss": "mse", "block_1": False, "block_2": True, "block_3": True, "mse.scale": 0.3111}) == (
        "mse at blocks 2, 3; mse.scale 0.311"
    )
    assert (
        described({"loss": "none", "block_1": None, "learning_rate": 2.5e-5}) == "no block loss; learning_rate 2.5e-5"
    )
    assert described({"loss": "mse", "block_1": False}) == "mse at no block"
    assert parameter_text("augment.crop", "[0.6, 1.0]") == "[0.6, 1.0]"
    assert parameter_text("flag", True) == "yes"
    assert parameter_text("barlow.width", 64.0) == "64"
    assert objective_text(2**21, "peak_memory", "auroc") == "2 MiB"
    assert (objective_text(0.912, "score", "auroc"), objective_text(None, "ece", "auroc")) == ("91.2", "–")
    assert [start_name(name) for name in ("paper_barlow", "start_2")] == ["paper’s MoCo + Barlow Twins", "own start 2"]
