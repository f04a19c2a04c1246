"""The page: whole, safe, readable by everyone, and saying what the tables say."""

import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pandas as pd
import pytest

from analysis import description
from analysis.layout import paper_layout
from analysis.page import cost_rows, page_table, verdict_rows
from analysis.report import build
from analysis.summary import judge, sentences
from analysis.tables import NAMES, Finished, tidy
from tests.analysis import report_fixture as fixture

VOID = {"meta", "link", "br", "img", "hr", "input", "source"}


class Page(HTMLParser):
    """Elements of a page in order, with their attributes and the text directly or indirectly within them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {[e['tag'] for e in self.open]}"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "inside": [e["tag"] for e in self.open], **dict(attrs)}
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} comes twice"
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", "inside": [e["tag"] for e in self.open], **dict(attrs)})

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1]["tag"] == tag, f"</{tag}> closes <{self.open[-1]['tag']}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data
        if not any(e["tag"] in ("style", "svg") for e in self.open):
            self.words.append(data)

    def all(self, *tags):
        return [e for e in self.elements if e["tag"] in tags]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return fixture.study(tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def built(stages, tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    shuffled = list(stages)
    random.Random(1).shuffle(shuffled)
    assert build(fixture.facts(), shuffled, root / "tables", root / "report") == root / "report" / "index.html"
    return root


@pytest.fixture(scope="module")
def source(built):
    return (built / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def small(stages, arms=("moco", "moco_mse"), kinds=("probe",)):
    return [s for s in stages if s.kind in kinds and s.labels.get("arm") in arms]


def summary(tables, **changes):
    given = {"dataset": "d", "metric": "auroc", "baseline": "moco", "seeds": (0, 1)}
    return list(sentences({**tables, "verdicts": judge(tables, "moco")}, **{**given, **changes}).values())


def scores(values, fraction=0.01):
    """Tables of full fine-tuning runs, {arm: score by seed}."""
    stages = [
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
    return tidy("d", stages)


def test_a_study_leaves_its_page_tables_and_figures(built):
    report = {p.name for p in (built / "report").iterdir()}
    figures = ("effects", "label_efficiency", "reuse", "probing", "distributions", "reliability", "losses")
    assert report == {
        *("index.html", "report.md"),
        *(f"{name}.tex" for name in NAMES),
        *(f"{name}.{kind}" for name in figures for kind in ("svg", "png")),
    }
    assert {p.name for p in (built / "tables").iterdir()} == {f"{n}.csv" for n in (*NAMES, "verdicts", "claims")}


def test_the_page_is_one_file_without_scripts_or_anything_from_outside(source, page):
    assert len(source.encode()) < 5_000_000
    assert not page.all("script", "iframe", "object", "embed", "link", "base", "form")
    for element in page.elements:
        assert not [name for name in element if name.startswith("on")]
        for name in ("src", "href", "srcset", "xlink:href", "action", "poster"):
            assert element.get(name, "#").startswith("#"), element
    assert not [target for target in re.findall(r"url\(([^)]*)\)", source) if not target.startswith("#")]
    assert "@import" not in source
    assert not re.findall(r"https?://", source)


def test_every_figure_has_words_for_who_cannot_see_it(page):
    drawings = page.all("svg")
    assert len(drawings) == 14  # seven, each for a screen and for a phone
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 80 for svg in drawings)
    assert all(len(caption["text"].strip()) > 40 for caption in page.all("figcaption"))
    assert len(page.all("figcaption")) == len(page.all("figure")) == 7


def test_headings_step_down_one_level_at_a_time(page):
    levels = [int(e["tag"][1]) for e in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_tables_have_captions_and_their_headings_a_scope(page):
    tables = page.all("table")
    assert len(page.all("caption")) == len(tables) == 11  # the paper's 5, verdicts, claims, decision, data, 2 of cost
    assert all(th.get("scope") in ("col", "row", "colgroup", "rowgroup") for th in page.all("th"))
    assert all("div" in table["inside"] for table in tables)
    boxes = [e for e in page.all("div") if "scroll" in e.get("class", "")]
    assert len(boxes) == len(tables)
    assert all(box["tabindex"] == "0" and box["aria-labelledby"] for box in boxes)


def test_every_row_of_a_table_has_as_many_cells_as_its_head(source):
    for table in re.findall(r"<table>.*?</table>", source, flags=re.DOTALL):
        widths = set()
        carried = 0
        for row in re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL):
            cells = re.findall(r"<t[hd]\b([^>]*)>", row)
            spans = [int(m[1]) if (m := re.search(r'colspan="(\d+)"', cell)) else 1 for cell in cells]
            widths.add(sum(spans) + carried)
            carried = sum('rowspan="2"' in cell for cell in cells)
        assert len(widths) == 1, table[:300]


def test_ids_are_unique_and_every_link_leads_somewhere(page):
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    targets = [e[name].removeprefix("#") for e in page.elements for name in ("href", "aria-labelledby") if name in e]
    assert targets
    assert set(targets) <= set(ids)


def test_the_page_says_its_language_width_and_both_colour_schemes(source, page):
    assert page.all("html")[0]["lang"] == "en"
    assert {e.get("name"): e.get("content") for e in page.all("meta")}["viewport"].startswith("width=device-width")
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source


def test_no_figure_keeps_a_colour_that_a_dark_page_could_not_replace(source):
    for svg in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL):
        fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
        assert not fixed, fixed


def test_the_page_holds_no_word_of_a_programming_language(page):
    assert not re.findall(r"\b(nan|None|NaN|<NA>|True|False|inf|dtype)\b", page.text)


def test_the_page_holds_the_numbers_of_the_tables(stages, page):
    tables = tidy("synthetic", stages)
    cells = {" ".join(e["text"].split()) for e in page.all("td")}
    for name in NAMES:
        layout = paper_layout(name, tables[name], metric="auroc", scores=tables["label_efficiency"])
        assert set(layout.to_numpy().ravel()) <= cells


def test_the_best_mean_is_bold_and_the_reference_never(stages):
    tables = tidy("synthetic", stages)
    bold = {
        name: {
            (row["head"], j)
            for rows in page_table(name, tables, fixture.facts())["groups"].values()
            for row in rows
            for j, (_, best) in enumerate(row["cells"])
            if best
        }
        for name in NAMES
    }
    assert bold["linear"] == {("synthetic (AUROC)", 1)}  # supervised, in column 3, is higher
    assert bold["label_efficiency"] == {("100%", 1), ("6%", 2), ("1%", 1)}
    assert bold["probing"] == {("MoCo + MSE", j) for j in range(4)}
    assert bold["reuse"] == set()
    assert ("1%", 1) in bold["ks"]


def test_table_3_sets_each_fraction_over_its_blocks_and_performance(stages):
    top, bottom = page_table("reuse", tidy("synthetic", stages), fixture.facts())["levels"]
    assert top == [("1%", 5), ("6%", 5)]
    assert bottom == [*((f"Block {b}", 1) for b in (1, 2, 3, 4)), ("Performance (AUROC)", 1)] * 2


def test_it_states_dataset_arms_seeds_and_versions(page):
    for words in (
        "synthetic: 1,797 grey images of 32 by 32 pixels in 3 classes.",
        "Seeds 0, 1",
        "torch 2.15.0",
        "0123456789abcdef0123456789abcdef01234567",
        "5f5f5f",
        "intermoco ablate quickstart --set dataset.name=synthetic",
        "InfoNCE alone: plain MoCo.",
        "No pretraining: downstream training starts from random weights.",
        "weighted 5e-05",
        "mass <2 cm & rising",
        "Do losses on intermediate blocks help when labels are few?",
    ):
        assert words in page.text, words


def test_it_says_what_the_numbers_do_not_show(page):
    for words in (
        "Intervals and seeds answer different questions.",
        "resamples the groups (such as patients)",
        "KS mixes performance with calibration.",
        "CKA measures similarity, not quality.",
        "Changes of saturation and hue and the conversion to grey do nothing",
        "proper regulatory approval",
        "Two seeds can never be significant",
    ):
        assert words in page.text, words


def test_the_verdict_table_names_what_is_missing_for_significance(page):
    shown = next(table["text"] for table in page.all("table") if "Differences in AUROC" in table["text"])
    assert shown.count("needs at least 10 seeds") == 9
    assert shown.count("needs at least 7 seeds") == 2


def test_the_same_stages_give_the_same_files_in_any_order(stages, tmp_path):
    some = small(stages)
    for name, order in (("a", some), ("b", some[::-1])):
        build(fixture.facts(), order, tmp_path / name / "tables", tmp_path / name / "report")
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.*") if p.is_file()} for n in "ab")
    assert a == b


def audited(**changes):
    audit = [
        {"name": "class_balance", "count": 3, "severity": "note", "text": "mass is rare.", "examples": []},
        {
            "name": "groups_across_splits",
            "count": 1204,
            "severity": "stops",
            "text": "1,204 patients lie in more than one split.",
            "examples": ["patient <1>", "patient 2"],
        },
    ]
    packing = {"images": 1797, "seconds": 75.0, "images_per_second": 23.96, "source_bytes": 4_200_000, "bytes": 1.84e9}
    notes = ["The official split was taken."]
    dataset = {**fixture.dataset(), "notes": notes, "unreadable": 3, "packing": packing, "audit": audit}
    return fixture.facts(**{"dataset": dataset, **changes})


def test_accepted_findings_stand_right_under_the_title(tmp_path):
    said = "1,204 patients lie in more than one split, so scores on the test split may be too high."
    page = Page(build(audited(accepted=(said,)), [], tmp_path, tmp_path).read_text())
    tags = [e for e in page.elements if "header" in e["inside"]]
    assert [e["tag"] for e in tags[:3]] == ["p", "h1", "aside"]
    assert tags[2]["text"].split(".")[0].strip().startswith("Read this first: this study accepts findings of its audit")
    assert said in tags[2]["text"]
    markdown = (tmp_path / "report.md").read_text()
    assert markdown.index(said) < markdown.index("Do losses on intermediate blocks") < markdown.index("## Summary")
    assert any(li["text"].startswith("Groups across splits: 1,204, accepted by name. ") for li in page.all("li"))


def test_a_study_that_accepts_nothing_has_no_such_notice(source, page):
    assert "Read this first" not in page.text
    assert "Worth knowing while reading" not in page.text
    assert "What the audit found" not in page.text


def test_notes_follow_the_summary(tmp_path):
    page = Page(build(audited(notes=("The Barlow sum has a floor.",)), [], tmp_path, tmp_path).read_text())
    (aside,) = page.all("aside")
    assert " ".join(aside["text"].split()) == "Worth knowing while reading: The Barlow sum has a floor."
    assert page.text.index("Summary") < page.text.index("The Barlow sum has a floor.") < page.text.index("Results")
    assert "- The Barlow sum has a floor." in (tmp_path / "report.md").read_text()


def test_it_says_what_the_dataset_is_made_of(tmp_path):
    page = Page(build(audited(), [], tmp_path, tmp_path).read_text())
    for words in (
        "The official split was taken.",
        "3 images that the source lists could not be read and were left out.",
        "Packing 1,797 images (4.2 MB) into 1.8 GB took 1 min 15 s, 24 images a second.",
        "What the audit found Groups across splits : 1,204,",  # before the note, which came first
        "1,204 patients lie in more than one split. Examples of groups across splits (2) patient <1> patient 2",
        "Class balance : 3. mass is rare.",
    ):
        assert words in page.text, words
    assert [e["tag"] for e in page.all("h4")] == ["h4"]
    assert len([e for e in page.all("details") if "Examples" in e["text"]]) == 1


def test_an_audit_without_findings_says_so(tmp_path):
    clean = fixture.facts(dataset={**fixture.dataset(), "audit": []})
    assert "no leak between splits" in Page(build(clean, [], tmp_path, tmp_path).read_text()).text


def test_the_protocol_is_named_with_the_switches_that_depart_from_it(page, tmp_path):
    assert "Protocol recommended, with every switch as it sets it" in page.text
    facts = fixture.facts(protocol="authors", switches={"moco.queue": "640", "mse.pool": "grid"})
    words = Page(build(facts, [], tmp_path, tmp_path).read_text()).text
    assert "Protocol authors Set otherwise moco.queue 640; mse.pool grid" in words
    assert "- mse.pool: grid" in (tmp_path / "report.md").read_text()


def test_the_chosen_labels_are_linked_where_they_were_written(page, tmp_path):
    assert not [a for a in page.all("a") if a["href"].endswith("labels.csv")]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "labels.csv").write_text("id\n")
    found = Page(build(fixture.facts(), [], tmp_path / "tables", tmp_path / "report").read_text())
    (link,) = [a for a in found.all("a") if a["text"] == "labels.csv"]
    assert (tmp_path / "report" / link["href"]).resolve() == tmp_path / "tables" / "labels.csv"


def test_the_runs_in_mlflow_are_linked_and_searched_for(page, tmp_path):
    assert "In MLflow" not in page.text
    facts = fixture.facts(tracking=fixture.TRACKING)
    found = Page(build(facts, [], tmp_path, tmp_path).read_text())
    (link,) = [a for a in found.all("a") if a["href"].startswith("http")]
    assert link["href"].startswith("https://mlflow.example.org/lab/#/experiments?")
    assert link["href"].endswith("experimentSearchFilter=synthetic")
    assert "tags.\"intermoco.study_key\" = '0123456789abcdef'" in [e["text"] for e in found.all("pre")]
    local = replace(facts, tracking=replace(fixture.TRACKING, address=None, command="intermoco ui"))
    words = Page(build(local, [], tmp_path, tmp_path).read_text())
    assert "intermoco ui" in [e["text"] for e in words.all("pre")]
    neither = replace(facts, tracking=replace(fixture.TRACKING, address=None))
    assert "The runs are in experiment synthetic" in Page(build(neither, [], tmp_path, tmp_path).read_text()).text


def test_a_partial_study_gets_an_honest_page(stages, tmp_path):
    facts = fixture.facts(failed={"finetune moco_mse seed 1 full 1%": "StageError: out of <memory>"})
    page = Page(build(facts, small(stages), tmp_path, tmp_path).read_text())
    assert "This page is incomplete: 1 stage is missing." in page.text
    assert "one stage is missing, so what follows rests on a part of the study." in page.text
    assert "finetune moco_mse seed 1 full 1% StageError: out of <memory>" in page.text
    assert len(page.all("figure")) == 1
    assert not [e for e in page.all("h3") if e["text"] == "Feature reuse"]


def test_a_study_where_nothing_finished_still_gets_a_page(tmp_path):
    facts = fixture.facts(failed={"pretrain moco seed 0": "not finished"}, git_commits=(), versions={})
    page = Page(build(facts, [], tmp_path, tmp_path).read_text())
    assert "No stage that measures anything has finished yet." in page.text
    assert "No arm has been evaluated on synthetic yet; one stage is missing" in page.text
    assert "not run from a git checkout" in page.text


def test_figures_of_an_earlier_fuller_report_do_not_stay(tmp_path):
    (tmp_path / "reuse.png").write_text("old")
    build(fixture.facts(), [], tmp_path, tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_hostile_names_stay_text(stages, tmp_path):
    name = "<script>alert(1)</script>\"'&"
    facts = replace(
        fixture.facts(),
        name=name,
        question=name,
        command=f"intermoco ablate {name}",
        arms={name: None},
        baseline=name,
        dataset={
            **fixture.dataset(),
            "class_names": [name],
            "name": name,
            "notes": [name],
            "audit": [{"name": name, "count": 1, "severity": "note", "text": name, "examples": [name]}],
        },
        versions={name: name},
        protocol=name,
        switches={name: name},
        accepted=(name,),
        notes=(name,),
        failed={name: name},
    )
    hostile = [
        Finished(s.kind, s.key, {**s.labels, "arm": name}, s.folder, s.rows) for s in small(stages, arms=("moco",))
    ]
    source = build(facts, hostile, tmp_path, tmp_path).read_text()
    page = Page(source)
    assert not page.all("script")
    assert page.all("h1")[0]["text"] == name
    assert any(name in svg["text"] for svg in page.all("svg"))  # the legend
    assert all(name in svg["aria-label"] for svg in page.all("svg"))
    assert "<script" not in (tmp_path / "report.md").read_text().split("```")[0]  # but in the command, as code
    assert "<script" not in (tmp_path / "probing.svg").read_text()


def test_the_dataset_is_named_by_its_packed_folder_where_the_summary_does_not(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"name": "packed"}))
    data = Finished("data", "k", {}, tmp_path)
    unnamed = {k: v for k, v in fixture.dataset().items() if k != "name"}
    page = Page(build(fixture.facts(dataset=unnamed), [data], tmp_path, tmp_path).read_text())
    assert "packed: 1,797 grey images" in page.text


def test_the_summary_names_the_leader_its_lead_and_the_seeds_that_agree(stages):
    tables = tidy("synthetic", stages)
    table = tables["label_efficiency"].query("metric == 'auroc' and label_fraction == 0.01")
    runs = table.pivot(index="seed", columns="arm", values="value")
    lead = 100 * (runs["moco_mse"] - runs["moco"]).mean()
    text = " ".join(summary(tables))
    assert (
        f"with 1% of the labels, MoCo + MSE leads with {100 * runs['moco_mse'].mean():.1f}%, {lead:.1f} points" in text
    )
    assert "above MoCo (ahead in both seeds)" in text
    assert "Two seeds can never be significant: even if every seed agreed" in text
    assert "could not fall below p = 0.5, and at least 10 seeds" in text
    assert "leaves the features of MoCo + Barlow Twins most alike (Linear CKA, debiased: 0.7" in text


def test_the_summary_is_five_sentences_that_end_with_the_cost(page, stages):
    (box,) = [e for e in page.all("section") if e.get("aria-labelledby") == "summary"]
    said = [e["text"] for e in page.all("dd") if "header" in e["inside"]]
    assert [e["text"] for e in page.all("dt")][:5] == ["Studied", "Scores", "How sure", "Features", "Cost"]
    assert all(each in box["text"] for each in said)
    assert len(said) == 5
    for sentence in said:
        assert sentence.endswith(".")
        assert not re.search(r"[.!?] [A-Z]", sentence), sentence
    assert said[4] == (
        f"The {len({s.name for s in stages})} finished stages took 16 min 30 s one after the other and 0.1 hours of "
        "accelerator time; a pretraining took 30 s of accelerator time with MoCo, 10% more with MoCo + MSE and "
        "2.4 times that with MoCo + Barlow Twins."
    )


def test_a_flagged_similarity_ranks_nobody(stages):
    tables = tidy("synthetic", stages)
    saturated = tables["reuse"][tables["reuse"]["metric"] == "cka_authors"]
    text = " ".join(summary({**tables, "reuse": saturated}))
    assert "on average over three blocks" in text  # block 4 is flagged, and would have levelled the arms
    none = " ".join(summary({**tables, "reuse": saturated[saturated["block"] == 4]}))
    assert "at 1% of the labels no feature similarity (CKA) is informative" in none


def test_the_page_counts_similarities_that_say_nothing(page):
    assert "Of the 144 feature similarities (CKA), 12 are uninformative" in page.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"moco": (0.6, 0.7), "b": (0.8, 0.6)}, "b leads with 70.0%, 5.0 points above MoCo (ahead in 1 of 2 seeds)"),
        ({"moco": (0.8, 0.8), "b": (0.7, 0.7)}, "the baseline MoCo itself leads with 80.0%, 10.0 points above b"),
        ({"moco": (0.7, 0.7), "b": (0.7001, 0.7001)}, "b and MoCo are level at 70.0%"),
        ({"moco": (0.7,), "b": (0.8,)}, "b leads with 80.0%, 10.0 points above MoCo (one seed)"),
        ({"b": (0.7, 0.8)}, "b alone was measured, with 75.0%"),
        (
            {"moco": (0.5, 0.9, 0.1), "b": (0.6, 0.7)},  # over all its seeds MoCo has the lower mean
            "over the seeds that all arms have, the baseline MoCo itself leads with 70.0%, 5.0 points above b "
            "(ahead in 1 of 2 seeds)",
        ),
    ],
)
def test_the_summary_in_other_cases(values, words):
    assert words in " ".join(summary(scores(values)))


def test_one_seed_is_never_significant_either():
    text = " ".join(summary(scores({"moco": (0.7,), "b": (0.8,)}), seeds=(0,)))
    assert "One seed can never be significant" in text
    assert "could not fall below p = 1," in text


def test_the_summary_tells_significance_from_its_absence():
    even = [0.7 + 0.001 * i for i in range(8)]
    clear = " ".join(summary(scores({"moco": even, "b": [v + 0.05 for v in even]})))
    assert "1 of 1 comparisons with MoCo are significant after Holm's correction: b is better than MoCo at 1%." in clear
    unclear = " ".join(summary(scores({"moco": even, "b": even[::-1]})))
    assert "None of the 1 comparisons with MoCo is significant" in unclear
    assert "not the same as showing that there is none" in unclear


def test_uninformative_similarities_are_not_judged(stages):
    judged = judge(tidy("synthetic", stages), "moco")
    reuse = judged[judged["table"] == "reuse"]
    assert set(judged["table"]) == {*NAMES}
    assert not ((reuse["metric"] == "cka_authors") & (reuse["block"] == 4)).any()
    assert ((reuse["metric"] == "cka_authors") & (reuse["block"] == 3)).any()


def test_verdicts_are_differences_in_points(stages):
    tables = tidy("synthetic", stages)
    rows = verdict_rows(judge(tables, "moco"), fixture.facts())
    assert len(rows) == 2 + 3 * 3
    linear = tables["linear"].query("metric == 'auroc' and mode == 'linear'")
    runs = linear.pivot(index="seed", columns="arm", values="value")
    expected = 100 * (runs["moco_mse"] - runs["moco"]).mean()
    assert (
        rows[0] | {"where": "Linear, 100%", "arm": "MoCo + MSE", "effect": f"+{expected:.1f}", "seeds": "2"} == rows[0]
    )


def test_costs_count_a_shared_stage_once(stages):
    shared = Finished("pretrain", "same", {"arm": "a"}, None, (), 100.0)
    rows = cost_rows([shared, Finished("pretrain", "same", {"arm": "b"}, None, (), 100.0)])
    assert rows == [("pretraining", 1, "1 min 40 s", "–"), ("all stages", 1, "1 min 40 s", "–")]
    assert {kind: rest for kind, *rest in cost_rows(stages)}["pretraining"] == [6, "9 min 12 s", "4 min 36 s"]


def test_losses_are_described_in_words():
    mse = {"mse": {"blocks": [2], "scale": [0.5], "pool": "grid"}}
    assert description.losses(mse) == (
        "InfoNCE plus the mean squared error between the two views' features after block 2, pooled to a coarse grid, "
        "weighted 0.5."
    )
    both = description.losses({**mse, "barlow": {"blocks": [1, 4], "scale": 1e-4, "width": 64, "lambd": 0.5}})
    assert "plus the Barlow Twins loss" in both
    assert "after blocks 1 and 4, weighted 0.0001 (projector 64 wide, lambda 0.5)." in both


def test_settings_that_are_found_by_measuring_are_described_by_what_they_mean():
    mse = {"blocks": [1, 4], "scale": "auto", "pool": "auto"}
    whole = description.losses({"mse": mse, "augment": {"crop": None}})
    assert "pooled to a coarse grid, weighted so that each block's loss equals InfoNCE at the start." in whole
    assert "pooled to one value a channel" in description.losses({"mse": mse, "augment": {"crop": [0.4, 1.0]}})


def test_caveats_follow_the_downstream_protocol():
    grouped = fixture.dataset()
    ours = dict(description.caveats(grouped, {}, {"evaluate": "best", "resample": "groups", "labels": {}}))
    assert ours == dict(description.caveats(grouped, {}))
    given = {"evaluate": "last", "resample": "images", "labels": {"per_arm": True}}
    theirs = dict(description.caveats(grouped, {}, given))
    intervals = "Intervals and seeds answer different questions."
    assert "resamples the groups" in ours[intervals]
    assert "share their label subset" in ours[intervals]
    assert "resamples the images" in theirs[intervals]
    assert "label subset" not in theirs[intervals]
    assert set(theirs) - set(ours) == {
        "The last weights were tested, not the best on validation.",
        "The intervals take images of one group for independent.",
        "Each arm saw labels of its own.",
    }


def test_settings_that_differ_besides_the_losses_are_named():
    arms = {"a": fixture.pretraining("moco"), "b": fixture.pretraining("moco_mse"), "c": None}
    assert description.differences(arms) == {}
    arms["b"] = {**arms["b"], "epochs": 60}
    assert description.differences(arms) == {"epochs": {"a": "30", "b": "60"}}
    assert "epochs" not in description.shared(arms)
    assert description.shared(arms)["moco.queue"] == "640"


def test_a_projector_wider_than_the_batch_is_surfaced_with_its_floor():
    arms = {
        "wide": {"barlow": {"width": 2048}, "batch_size": 32},
        "narrow": {"barlow": {"width": 16}, "batch_size": 32},
    }
    found = [text for head, text in description.caveats({}, arms) if "wider than the batch" in head]
    assert len(found) == 1
    assert "133,252" in found[0]  # d^2 / (N - 1) - d at d = 2048, N = 32


def test_caveats_follow_the_dataset():
    grey, colour = ([h for h, _ in description.caveats({"channels": c}, {})] for c in (1, 3))
    assert "The images are grey." in grey
    assert "The images are grey." not in colour
    alone = {"n": {"train": 5}, "groups": {"train": 5}}
    assert (
        "resamples the images of"
        in dict(description.caveats(alone, {}))["Intervals and seeds answer different questions."]
    )


def test_many_classes_are_counted_not_listed():
    names = [f"class {i}" for i in range(40)]
    rows = description.class_counts({"class_names": names, "classes": {"train": dict.fromkeys(names, 3)}})
    assert rows[0] == ("class 0", ["3", "–", "–"])
    assert rows[-1][0] == "and 10 more"


def test_report_md_says_what_the_page_says(built):
    text = (built / "report" / "report.md").read_text()
    assert text.startswith("# synthetic\n")
    for words in (
        "## Summary",
        "Two seeds can never be significant",
        "## Verdicts over seeds",
        "Not for clinical use.",
    ):
        assert words in text
    assert text.count("\n| ---") == 7 + 8  # five tables, verdicts, decision, one of each claim


def test_the_verdicts_csv_holds_every_table(built):
    table = pd.read_csv(built / "tables" / "verdicts.csv")
    assert list(table.columns[:2]) == ["table", "dataset"]
    assert set(table["table"]) == set(NAMES)
