"""Our numbers beside the paper's: only cells of the same kind, and every way in which the protocols part is said."""

from dataclasses import replace

import pandas as pd
import pytest

from analysis import beside
from analysis.page import beside_parts
from analysis.published import published
from analysis.report import build
from analysis.tables import Finished, tidy
from tests.analysis import report_fixture as fixture
from tests.analysis import test_report
from tests.analysis.test_report import Page

#: What the paper says of pretraining on chest radiographs, as a study resolves it.
PAPER = {
    "encoder": {"arch": "resnet50"},
    "moco": {"queue": 65536, "temperature": 0.07, "momentum": 0.99, "dim": 128},
    "mse": None,
    "barlow": None,
    "epochs": 50,
    "batch_size": 16,
    "learning_rate": 0.3,
    "learning_rate_batch": None,
    "sgd_momentum": 0.9,
    "weight_decay": 1e-4,
}
MSE = {"blocks": [1, 2, 3, 4], "scale": 0.25, "pool": "grid"}
BARLOW = {"blocks": [1, 2, 3, 4], "scale": 5e-5, "width": 2048, "layers": 3, "centred": False}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return fixture.study(tmp_path_factory.mktemp("stages"))


def facts(source="cxr14", **changes):
    return replace(fixture.facts(), dataset={**fixture.dataset(), "source": source}, **changes)


def as_paper(**changes):
    arms = {"moco": PAPER, "moco_mse": {**PAPER, "mse": MSE}, "moco_barlow": {**PAPER, "barlow": BARLOW}}
    dataset = {**fixture.dataset(), "source": "cxr14", "size": 1024}
    given = {"dataset": dataset, "protocol": "paper", "arms": {**arms, "supervised": None}}
    return replace(fixture.facts(), **{**given, **changes})


def run(arm, seed, value, *, mode="full", fraction=0.01, metric="auroc", **row):
    labels = {"arm": arm, "seed": seed, "mode": mode, "label_fraction": fraction}
    kind = "probe" if mode == "probe" else "finetune"
    return Finished(
        kind, f"{kind}{arm}{seed}{mode}{fraction}", labels, None, [{"metric": metric, "value": value, **row}]
    )


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (None, "supervised"),
        ({}, "moco"),
        ({"mse": None, "barlow": None}, "moco"),
        ({"mse": MSE, "barlow": None}, "moco_mse"),
        ({"barlow": {"blocks": (4, 3, 2, 1)}}, "moco_barlow"),
        ({"mse": MSE, "barlow": BARLOW}, None),
        ({"mse": {**MSE, "blocks": [2, 4]}}, None),
        ({"barlow": {**BARLOW, "blocks": [1, 2, 3]}}, None),
    ],
)
def test_an_arm_is_of_the_papers_kind_by_its_losses(config, kind):
    assert beside.kind(config) == kind


def test_the_name_of_an_arm_decides_nothing():
    arms = {"moco_mse": {"mse": {"blocks": [3, 4]}}, "mine": {"mse": MSE}}
    table = beside.beside(tidy("d", [run("moco_mse", 0, 0.6), run("mine", 0, 0.65)]), facts(arms=arms))
    assert table[["arm", "paper_arm", "value", "published"]].to_numpy().tolist() == [["mine", "moco_mse", 0.65, 0.614]]


def test_every_cell_of_the_paper_finds_ours_where_the_study_measured_all(stages):
    table = beside.beside(tidy("d", stages), facts())
    mine = [c for c in published() if c.dataset == "cxr14"]
    assert list(table["table"]) == [c.table for c in mine]  # in the paper's order, none left out, none twice
    assert list(table["published"].isna()) == [c.value is None for c in mine]
    assert set(table["seeds"]) == {2}
    assert set(table["metric"]) == {"auroc", "cka", "ks"}


def test_a_row_holds_means_over_seeds_of_values_and_of_both_intervals():
    ends = {"low": 0.5, "high": 0.7, "paper_low": 0.6, "paper_high": 0.62}
    more = {"low": 0.6, "high": 0.8, "paper_low": 0.64, "paper_high": 0.68}
    tables = tidy("d", [run("moco", 0, 0.61, **ends), run("moco", 1, 0.65, **more)])
    (row,) = beside.beside(tables, facts()).to_dict("records")
    ours = [row[k] for k in ("seeds", "value", "low", "high", "paper_low", "paper_high")]
    assert ours == pytest.approx([2, 0.63, 0.55, 0.75, 0.62, 0.65])
    assert [row[k] for k in ("published", "published_low", "published_high")] == [0.592, 0.586, 0.599]
    assert row["difference"] == pytest.approx(0.63 - 0.592)
    assert row["paper_arm"] == "moco"


@pytest.mark.parametrize(
    "other",
    [
        run("moco", 0, 0.6, fraction=0.05),
        run("moco", 0, 0.6, metric="f1"),
        run("moco", 0, 0.6, mode="linear", fraction=0.06),
        run("moco", 0, 0.6, mode="probe", fraction=0.01, block=1),
        run("moco", 0, 0.6, mode="scratch"),
        run("moco", 0, None),
        Finished("reuse", "r", {"arm": "moco", "seed": 0, "mode": "full", "label_fraction": 0.01}, None, [
            {"metric": name, "block": 1, "value": 0.9} for name in ("cka_linear", "cka_rbf")
        ]),
    ],
    ids=["fraction", "metric", "linear fraction", "probe fraction", "mode", "undefined", "kernel"],
)  # fmt: skip
def test_what_differs_in_one_respect_has_no_counterpart(other):
    assert beside.beside(tidy("d", [other]), facts()).empty


@pytest.mark.parametrize("source", ["digits", "folder", "manifest", None])
def test_other_datasets_have_nothing_beside_them(stages, source):
    assert beside.beside(tidy("d", stages), facts(source)).empty
    assert beside.departures(facts(source)) == []


def test_a_study_as_the_paper_states_it_is_a_replication():
    assert beside.departures(as_paper()) == []
    assert beside.heading(as_paper()) == "Beside the paper"


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "authors"},
        {"switches": {"moco.head": "linear"}},
        {"dataset": {**fixture.dataset(), "source": "cxr14", "size": 512}},
        {"arms": {"moco": {**PAPER, "encoder": {"arch": "resnet18"}}}},
    ],
)
def test_any_other_protocol_or_architecture_is_said_in_the_heading(changes):
    assert beside.heading(as_paper(**changes)) == "Beside the paper: another protocol, not a replication"


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({**PAPER, "epochs": 10}, [("epochs", "10", "50")]),
        ({**PAPER, "moco": {**PAPER["moco"], "queue": "auto"}}, [("moco.queue", "auto", "65,536")]),
        ({**PAPER, "mse": {**MSE, "scale": [0.25] * 4}}, []),
        ({**PAPER, "mse": {**MSE, "scale": [0.5, 0.25, 0.25, 0.25]}}, [("mse.scale", "0.5, 0.25, 0.25, 0.25", "0.25")]),
        ({**PAPER, "barlow": {**BARLOW, "centred": True}}, [("barlow.centred", "yes", "no")]),
        ({**PAPER, "learning_rate_batch": 256}, [("learning_rate", "0.01875", "0.3")]),  # 0.3 x 16 / 256
        ({**PAPER, "learning_rate": 4.8, "learning_rate_batch": 256}, []),
        ({**PAPER, "mse": {**MSE, "blocks": [1]}, "epochs": 1}, []),  # no arm of the paper's: not compared
    ],
)
def test_departures_from_what_the_paper_states(config, found):
    assert beside.departures(as_paper(arms={"a": config})) == found


def test_the_reading_names_protocol_switches_and_the_papers_interval():
    given = as_paper(protocol="recommended", switches={"moco.queue": "640"})
    first, second, *rest = beside.reading(beside.beside(tidy("d", [run("moco", 0, 0.6)]), given), given, None)
    assert first.startswith("This study follows the protocol recommended, with moco.queue 640.")
    assert "shrinks with the number of replicates, so it is no confidence interval" in second
    assert rest == []


def test_another_reference_of_the_ks_distances_is_said(stages):
    table = beside.beside(tidy("d", stages), facts())
    assert (
        "from MoCo fine-tuned on all labels, this study from MoCo + MSE."
        in beside.reading(table, facts(), "moco_mse")[-1]
    )
    assert len(beside.reading(table, facts(), "moco")) == 2


def test_cells_are_printed_as_the_paper_prints_them():
    ends = {"low": 0.8, "high": 0.84, "paper_low": 0.8213, "paper_high": 0.8219}
    barlow = {"b": {"barlow": BARLOW}}
    tables = tidy("d", [run("b", 0, 0.8216, mode="probe", fraction=1.0, metric="f1", block=1, **ends)])
    (part,) = beside_parts(beside.beside(tables, facts("idc", arms=barlow)))
    assert part["groups"] == {
        "Table 4, probing, F1": [
            {
                "where": "block 1, 100%",
                "arm": "b",
                "value": "82.2",
                "seeds": "1 seed",
                "interval": "80.0–84.0",
                "formula": "82.13–82.19",
                "paper": "81.0",
                "paper_interval": "90.7–81.4‡",
                "difference": "+1.2",
            }
        ]
    }
    assert "malformed" in part["notes"][0]


def test_the_page_shows_both_and_the_csv_holds_both(stages, tmp_path):
    source = build(facts(), stages, tmp_path / "tables", tmp_path / "report").read_text(encoding="utf-8")
    page = Page(source)
    test_report.test_every_row_of_a_table_has_as_many_cells_as_its_head(source)
    test_report.test_ids_are_unique_and_every_link_leads_somewhere(page)
    test_report.test_headings_step_down_one_level_at_a_time(page)
    test_report.test_the_page_is_one_file_without_scripts_or_anything_from_outside(source, page)
    test_report.test_the_page_holds_no_word_of_a_programming_language(page)
    assert len(page.all("caption")) == len(page.all("table")) == 11 + 3
    heads = [e["text"] for e in page.all("h2")]
    assert "Beside the paper: another protocol, not a replication" in heads
    assert heads.index("Beside the paper: another protocol, not a replication") < heads.index("What was studied")
    assert "Table 2, fine-tuning, AUROC" in page.text
    assert "82.4" in [e["text"] for e in page.all("td")]
    assert "81.7–83.0" in [e["text"] for e in page.all("td")]
    assert "not legible with certainty" in page.text
    assert "image side in pixels" in [e["text"] for e in page.all("th")]
    table = pd.read_csv(tmp_path / "tables" / "beside_paper.csv")
    assert list(table.columns) == list(beside.COLUMNS)
    assert len(table) == 60
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "## Beside the paper: another protocol, not a replication" in markdown
    assert "81.7–83.0" in markdown


def test_a_page_of_another_dataset_shows_nothing_of_it_and_leaves_no_old_table(stages, tmp_path):
    (tmp_path / "beside_paper.csv").write_text("old")
    tuned = [stage for stage in stages if stage.kind == "finetune"]
    source = build(facts("digits"), tuned, tmp_path, tmp_path).read_text(encoding="utf-8")
    assert "Beside the paper" not in source
    assert "Beside the paper" not in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "beside_paper.csv").exists()
