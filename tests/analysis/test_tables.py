"""Tidy tables and the paper's arrangement of them: nothing lost, nothing counted twice, means written out by hand."""

import csv
import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.layout import arrange, legend, paper_layout
from analysis.names import number
from analysis.tables import COLUMNS, NAMES, Finished, latex, markdown, tidy, write
from ssl_core.errors import StageError
from tests.analysis import report_fixture as fixture


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fixture.study(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def tables(finished):
    return tidy("synthetic", finished)


def stage(kind, rows, key="k", **labels):
    return Finished(kind, key, labels, Path("nowhere"), rows)


def score(value, **extra):
    return {"metric": "auroc", "value": value, "low": value - 0.02, "high": value + 0.04, "n": 10, **extra}


def full(arm, seed, fraction, value, **extra):
    labels = {"arm": arm, "seed": seed, "mode": "full", "label_fraction": fraction}
    return stage("finetune", [score(value, **extra)], f"{arm}{seed}{fraction}", **labels)


def test_every_measurement_is_one_row_with_the_agreed_columns_first(finished, tables):
    assert tuple(tables) == NAMES
    for table in tables.values():
        assert tuple(table.columns[: len(COLUMNS)]) == COLUMNS
    rows = {kind: sum(len(s.rows) for s in finished if s.kind == kind) for kind in ("finetune", "probe", "reuse", "ks")}
    linear = tables["linear"]
    reference = linear["mode"] == "scratch"
    assert len(tables["label_efficiency"]) + len(linear) - reference.sum() == rows["finetune"]
    assert [len(tables[name]) for name in ("probing", "reuse", "ks")] == [rows[k] for k in ("probe", "reuse", "ks")]
    assert set(tables["probing"]["stage"]) == {s.name for s in finished if s.kind == "probe"}


def test_linear_takes_the_supervised_runs_on_all_labels_as_reference(tables):
    linear = tables["linear"]
    assert set(linear["mode"]) == {"linear", "scratch"}
    reference = linear[linear["mode"] == "scratch"]
    assert set(reference["arm"]) == {"supervised"}
    assert set(reference["label_fraction"]) == {1.0}
    assert set(reference["stage"]) <= set(tables["label_efficiency"]["stage"])
    assert set(tables["label_efficiency"]["mode"]) == {"full", "scratch"}


def test_a_row_overrides_the_labels_but_an_empty_one_does_not():
    rows = [{"metric": "ks", "value": 0.1, "arm": "b", "seed": 3, "label_fraction": None}]
    table = tidy("d", [stage("ks", rows, arm="a", seed=1, label_fraction=0.5)])["ks"]
    assert table.loc[0, ["arm", "seed", "label_fraction"]].tolist() == ["b", 3, 0.5]


def test_a_row_without_metric_or_value_names_its_stage():
    for row in ({"value": 0.5}, {"metric": "auroc"}):
        with pytest.raises(StageError, match="probe-k"):
            tidy("d", [stage("probe", [row], arm="a", seed=0)])


def test_an_unknown_mode_is_refused():
    with pytest.raises(StageError, match="'frozen'"):
        tidy("d", [stage("finetune", [score(0.5)], mode="frozen")])


def test_a_measurement_made_twice_is_refused_by_name():
    one, other = full("a", 0, 1.0, 0.5), full("a", 0, 1.0, 0.6)
    other = Finished(other.kind, "other", other.labels, other.folder, other.rows)
    with pytest.raises(StageError, match=r"arm a, seed 0.*finetune-a01\.0, finetune-other"):
        tidy("d", [one, other])


def test_a_stage_shared_by_two_arms_counts_for_both():
    shared = [stage("finetune", [score(0.5)], arm=a, seed=0, mode="full", label_fraction=1.0) for a in ("a", "b")]
    assert tidy("d", shared)["label_efficiency"]["arm"].tolist() == ["a", "b"]


def test_a_study_without_finished_stages_has_empty_tables(tmp_path):
    tables = tidy("d", [])
    paths = write(tables, tmp_path / "tables", tmp_path / "report")
    assert all(table.empty and tuple(table.columns) == COLUMNS for table in tables.values())
    assert {p.name for p in paths} == {*(f"{name}.csv" for name in NAMES), "report.md"}
    assert (tmp_path / "tables" / "ks.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_floats_read_back_from_csv_as_they_were_written(tmp_path):
    values = [0.1 + 0.2, 1 / 3, 5e-324, 0.9999999999999999, 1e22]
    finished = [full("a", seed, 0.01, value, paper_low=value) for seed, value in enumerate(values)]
    write(tidy("d", finished), tmp_path, tmp_path)
    with (tmp_path / "label_efficiency.csv").open(newline="") as file:
        back = list(csv.DictReader(file))
    assert [float(row["value"]) for row in back] == values
    assert [float(row["paper_low"]) for row in back] == values
    assert [row["seed"] for row in back] == ["0", "1", "2", "3", "4"]
    assert {row["block"] for row in back} == {""}


def test_integers_and_flags_stay_what_they_are_beside_missing_values(tables, tmp_path):
    write(tables, tmp_path, tmp_path)
    text = (tmp_path / "reuse.csv").read_text()
    assert re.search(r",0\.01,4,cka_authors,1\.0,", text)  # block 4, not 4.0
    assert ",True" in text
    assert ",False" in text
    assert pd.read_csv(tmp_path / "ks.csv")["reference_seed"].unique().tolist() == [0]


def test_a_cell_is_the_mean_over_seeds_with_lowest_and_highest(tables):
    table = tables["label_efficiency"]
    cells = arrange("label_efficiency", table, metric="auroc")
    runs = table[(table["arm"] == "moco_mse") & (table["label_fraction"] == 0.01) & (table["metric"] == "auroc")]
    values, widths = runs["value"].tolist(), (runs["high"] - runs["low"]).tolist()
    cell = cells.loc["1%", "MoCo + MSE"]
    assert cell.value == pytest.approx(sum(values) / 2, abs=1e-12)
    assert (cell.low, cell.high) == (min(values), max(values))
    assert cell.within == pytest.approx(sum(widths) / 4, abs=1e-12)
    assert (
        str(cell) == f"{50 * sum(values):.1f} ({100 * min(values):.1f}–{100 * max(values):.1f}) ±{25 * sum(widths):.1f}"
    )


def test_one_seed_shows_its_own_interval_as_the_paper_does():
    table = tidy("d", [full("moco", 0, 1.0, 0.824)])["label_efficiency"]
    assert paper_layout("label_efficiency", table).loc["100%", "MoCo"] == "82.4 (80.4–86.4)"
    assert "One seed" in legend("label_efficiency", table)


def test_cells_of_a_partial_study_say_how_many_seeds_they_hold():
    values = {"a": (0.5, 0.6, 0.7), "b": (0.5, 0.6), "c": (0.5,)}
    runs = [full(arm, seed, 1.0, v) for arm, found in values.items() for seed, v in enumerate(found)]
    row = paper_layout("label_efficiency", tidy("d", runs)["label_efficiency"]).loc["100%"]
    assert row["a"] == "60.0 (50.0–70.0) ±3.0"
    assert row["b"] == "55.0 (50.0–60.0, 2 of 3 seeds) ±3.0"
    assert row["c"] == "50.0 (1 of 3 seeds) ±3.0"


def test_an_undefined_value_counts_as_missing():
    runs = [full("a", 0, 1.0, 0.5), full("a", 1, 1.0, 0.7), full("b", 0, 1.0, 0.5)]
    undefined = [{"metric": "auroc", "value": None, "low": None, "high": None, "n": 10}]
    for arm in ("b", "c"):
        runs.append(stage("finetune", undefined, arm, arm=arm, seed=1, mode="full", label_fraction=1.0))
    row = paper_layout("label_efficiency", tidy("d", runs)["label_efficiency"]).loc["100%"]
    assert row["b"] == "50.0 (1 of 2 seeds) ±3.0"
    assert "c" not in row


def test_rows_and_columns_come_in_the_papers_order(tables):
    scores = paper_layout("label_efficiency", tables["label_efficiency"], metric="auroc")
    assert scores.index.tolist() == ["100%", "6%", "1%"]
    assert scores.columns.tolist() == ["MoCo", "MoCo + MSE", "MoCo + Barlow Twins", "Supervised"]
    reuse = paper_layout("reuse", tables["reuse"])
    assert reuse.columns.get_level_values(0).unique().tolist() == ["1%", "6%"]
    assert reuse["1%"].columns.tolist() == [f"Block {b}" for b in (1, 2, 3, 4)]
    assert paper_layout("linear", tables["linear"], metric="auroc").index.tolist() == ["synthetic (AUROC)"]


def test_an_arm_that_lacks_the_first_fraction_keeps_its_place():
    runs = [full("a", 0, 0.01, 0.5), full("b", 0, 1.0, 0.6), full("b", 0, 0.01, 0.55)]
    layout = paper_layout("label_efficiency", tidy("d", runs)["label_efficiency"])
    assert layout.columns.tolist() == ["a", "b"]
    assert layout.loc["100%", "a"] == "–"


def test_without_a_metric_every_score_is_shown(tables):
    layout = paper_layout("probing", tables["probing"])
    assert layout.index.get_level_values("Measure").unique().tolist() == ["AUROC", "macro F1"]


def test_table_3_carries_the_score_of_the_models_it_compares(tables):
    scores = tables["label_efficiency"]
    reuse = paper_layout("reuse", tables["reuse"], metric="auroc", scores=scores)
    expected = paper_layout("label_efficiency", scores, metric="auroc")
    for fraction in ("1%", "6%"):
        column = reuse[(fraction, "Performance (AUROC)")]
        assert column.loc[("Linear CKA, debiased", "MoCo + MSE")] == expected.loc[fraction, "MoCo + MSE"]


def test_table_3_takes_no_score_of_a_run_from_random_weights():
    both = [full("a", 0, 0.01, 0.5)]
    both.append(stage("finetune", [score(0.9)], "s", arm="a", seed=0, mode="scratch", label_fraction=0.01))
    similar = [{"metric": "cka_linear", "block": 1, "value": 0.8, "label_fraction": 0.01, "uninformative": False}]
    tables = tidy("d", [*both, stage("reuse", similar, arm="a", seed=0, mode="full")])
    layout = paper_layout("reuse", tables["reuse"], metric="auroc", scores=tables["label_efficiency"])
    assert layout.iloc[0].tolist() == ["0.80", "50.0 (48.0–54.0)"]


def test_uninformative_similarities_are_marked_and_explained(tables):
    layout = paper_layout("reuse", tables["reuse"]).loc["RBF CKA as the paper's authors ran it"]
    assert layout[("1%", "Block 4")].str.contains("†").all()
    assert not layout[("1%", "Block 3")].str.contains("†").any()
    assert "† uninformative" in legend("reuse", tables["reuse"])


def test_table_5_compares_small_fractions_and_shows_the_noise_floor(tables):
    layout = paper_layout("ks", tables["ks"])
    assert layout.loc["KS distance"].index.tolist() == ["6%", "1%"]
    assert layout.loc["KS distance", "Noise floor"].tolist() == ["0.031", "0.031"]
    assert layout.loc["Brier score"].index.tolist() == ["100%", "6%", "1%"]
    assert "Reference: MoCo + MSE, seed 0" in legend("ks", tables["ks"])


def test_a_cell_refuses_to_average_different_modes():
    runs = [full("a", 0, 1.0, 0.5)]
    runs.append(stage("finetune", [score(0.9)], "s", arm="a", seed=0, mode="scratch", label_fraction=1.0))
    with pytest.raises(ValueError, match="finetune-s"):
        paper_layout("label_efficiency", tidy("d", runs)["label_efficiency"])


def test_a_cell_counts_each_seed_once(tables):
    twice = pd.concat([tables["probing"]] * 2)
    with pytest.raises(ValueError, match="one cell would average different measurements"):
        paper_layout("probing", twice)


def test_the_order_of_seeds_changes_no_cell(finished, tables):
    shuffled = list(finished)
    random.Random(3).shuffle(shuffled)
    other = tidy("synthetic", shuffled)
    for name in NAMES:
        a, b = (paper_layout(name, t[name], metric="auroc", scores=t["label_efficiency"]) for t in (tables, other))
        pd.testing.assert_frame_equal(a, b.loc[a.index, a.columns], check_exact=True)


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.8235, "auroc", "82.3"),
        (0.82351, "f1", "82.4"),
        (0.975, "cka_linear", "0.97"),
        (-0.0312, "cka_rbf", "−0.03"),
        (-0.001, "cka_rbf", "0.00"),
        (0.0424, "ks", "0.042"),
    ],
)
def test_numbers_carry_the_decimals_they_bear(value, metric, text):
    assert number(value, metric) == text


def hostile():
    """A layout whose names mean something to Markdown and LaTeX."""
    runs = [full("a_b & 50% | $x^2$ {~\\}#", seed, 1.0, 0.5 + seed / 10) for seed in (0, 1)]
    return paper_layout("label_efficiency", tidy("d", runs)["label_efficiency"])


def test_latex_is_escaped():
    text = latex(hostile(), "50% of A & B_c", "t")
    name = r"a\_b \& 50\% | \$x\textasciicircum{}2\$ \{\textasciitilde{}\textbackslash{}\}\#"
    assert name in text
    assert r"\caption{50\% of A \& B\_c}" in text
    assert r"55.0 (50.0--60.0) $\pm$3.0" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 1 for line in body)
    assert not [sign for line in body for sign in re.findall(r"(?<!\\)[%#_]", line)]


def test_every_line_of_a_latex_table_has_the_same_columns(tables):
    layout = paper_layout("reuse", tables["reuse"], metric="auroc", scores=tables["label_efficiency"])
    body = [line for line in latex(layout, "c", "t").splitlines() if line.endswith(r"\\")]
    spans = [sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)) for line in body]
    assert {len(re.findall(r"(?<!\\)&", line)) + span for line, span in zip(body, spans, strict=True)} == {11}


def test_markdown_keeps_its_columns_whatever_the_names():
    lines = markdown(hostile()).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert "a_b &amp; 50% \\| $x^2$" in lines[0]


def test_write_gives_csv_latex_and_one_markdown_page(tables, tmp_path):
    paths = write(tables, tmp_path / "tables", tmp_path / "report", metric="auroc", before="# Top", after="End")
    assert all(path.is_file() for path in paths)
    assert {p.name for p in tmp_path.rglob("*.csv")} == {f"{name}.csv" for name in NAMES}
    assert {p.name for p in tmp_path.rglob("*.tex")} == {f"{name}.tex" for name in NAMES}
    page = (tmp_path / "report" / "report.md").read_text()
    assert page.startswith("# Top")
    assert page.endswith("End")
    assert page.count("\n| ---") == 5
    mean = np.mean(
        [r["value"] for r in tables["linear"].query("arm == 'moco' and metric == 'auroc'").to_dict("records")]
    )
    assert f"| synthetic (AUROC) | {100 * mean:.1f} (" in page
