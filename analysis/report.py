"""The page that a person opens: one HTML file with everything in it, and its tables and figures as files beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame

from analysis import (
    claims_page,
    costs,
    decision_page,
    description,
    packed,
    run_differences,
    search_page,
    search_sentences,
    tracked,
)
from analysis.facts import Facts
from analysis.inline import embed
from analysis.names import arm_name, metric_name
from analysis.page import arm_cost_rows, cost_rows, page_table, paper_section, verdict_rows
from analysis.pairing import paired_by
from analysis.pictures import effects_picture, pictures, search_pictures
from analysis.search import SearchFindings, search_cost
from analysis.study_claims import study_claims
from analysis.summary import flagged, judge, sentences
from analysis.tables import NAMES, Finished, markdown, markdown_text, tidy, write

__all__ = ["Facts", "Finished", "build", "render"]

TEMPLATES = Path(__file__).parent / "templates"
#: What the page says first where a study ran on in spite of its audit.
ACCEPTED = "Read this first: this study accepts findings of its audit that would otherwise have stopped it."
_PAPER_HEADS = {
    "at": "At",
    "arm": "Arm",
    "value": "Ours",
    "seeds": "Seeds",
    "interval": "95% bootstrap",
    "formula": "Ours, the paper's formula",
    "paper": "Paper",
    "paper_interval": "Paper's interval",
    "difference": "Difference",
}


def build(
    facts: Facts,
    finished: Sequence[Finished],
    tables_folder: Path,
    report_folder: Path,
    search: SearchFindings | None = None,
) -> Path:
    """Write tables/*.csv and report/{index.html, report.md, *.tex, *.png, *.svg}; returns index.html.

    Works on any part of a study: what is missing is named on the page. The same stages give the same files, in
    whatever order they finished; figures and tables of an earlier, fuller report do not stay.
    """
    for suffix in ("*.tex", "*.svg", "*.png"):
        for old in report_folder.glob(suffix):
            old.unlink()
    finished = _in_order(facts, finished)
    dataset = _dataset_name(facts, finished)
    tables = tidy(dataset, finished)
    tables["verdicts"] = paired_by(judge(tables, facts.compared_with), finished)
    summary = sentences(
        tables,
        dataset=dataset,
        metric=facts.metric,
        baseline=facts.compared_with,
        seeds=facts.seeds,
        missing=len(facts.failed),
        cost=costs.sentence(finished, facts.compared_with),
    )
    caveats = description.caveats(facts.dataset, facts.arms, facts.downstream)
    caveats += run_differences.add(tables, finished, facts, tables_folder)
    verdicts = verdict_rows(tables["verdicts"], facts)
    tables["claims"] = study_claims(tables, facts)
    claims = claims_page.section(tables["claims"], tables, facts, dataset)
    decision = decision_page.section(facts, finished, search_cost(search.trials, search.promoted) if search else None)
    paper = paper_section(tables, facts)
    (tables_folder / "beside_paper.csv").unlink(missing_ok=True)
    if paper:
        tables["beside_paper"] = paper["table"]
    searched = search_page.section(search, tables["verdicts"], facts) if search else None
    search_drawn = search_pictures(search) if search else []
    if search and searched:
        searched["summary"] = search_sentences.summary(search)
        searched["markdown"] = search_page.section_markdown(searched, [picture.name for picture in search_drawn])
    said = [f"{about}: {sentence}" for about, sentence in summary.items()]
    said += [searched["summary"]] if searched else []
    before, after = _markdown_frame(facts, said, verdicts, [claims, decision], caveats, paper, searched)
    search_page.write(search, tables_folder)
    write(tables, tables_folder, report_folder, metric=facts.metric, before=before, after=after)
    drawn = pictures(
        tables,
        finished,
        arms=list(facts.arms),
        metric=facts.metric,
        class_names=[str(name) for name in facts.dataset.get("class_names", ())],
    )
    first = effects_picture(tables, facts)
    versus = {row["against"] for row in verdicts}
    context = {
        **_study(facts, dataset),
        "summary": summary,
        "caveats": caveats,
        "tables": {name: shown for name in NAMES if (shown := page_table(name, tables, facts))},
        "verdicts": verdicts,
        "claims": claims,
        "decision": decision,
        "paper": paper,
        "versus": versus.pop() if len(versus) == 1 else None,
        "pictures": {p.name: embed(p, report_folder) for p in [*filter(None, [first]), *drawn, *search_drawn]},
        "search": searched,
        "costs": cost_rows(finished),
        "arm_costs": arm_cost_rows(finished, facts),
        "mlflow": tracked.where(facts.tracking, facts.arms),
        "flagged": flagged(tables["reuse"]),
        "accepted": ACCEPTED,
        "labels": _link(tables_folder / "labels.csv", report_folder),
    }
    page = report_folder / "index.html"
    page.write_text(render(context), encoding="utf-8")
    return page


def render(context: Mapping[str, Any]) -> str:
    """The page from its template; every value that is not `Markup` is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(context)


def _in_order(facts: Facts, finished: Sequence[Finished]) -> list[Finished]:
    """By arm as the study lists them, then seed: the order of the tables' rows."""
    place = {arm: i for i, arm in enumerate(facts.arms)}

    def key(stage: Finished) -> tuple[int, int, str, float, str, str]:
        labels = stage.labels
        return (
            place.get(str(labels.get("arm")), len(place)),
            int(str(labels.get("seed", -1))),
            stage.kind,
            float(str(labels.get("label_fraction", -1.0))),
            str(labels.get("mode")),
            stage.key,
        )

    return sorted(finished, key=key)


def _dataset_name(facts: Facts, finished: Sequence[Finished]) -> str:
    """As the summary has it, or else the packed dataset itself."""
    if name := facts.dataset.get("name"):
        return str(name)
    for stage in finished:
        if stage.kind == "data" and (stage.folder / "dataset.json").is_file():
            return str(json.loads((stage.folder / "dataset.json").read_text(encoding="utf-8"))["name"])
    return "dataset"


def _link(path: Path, folder: Path) -> str | None:
    """Where a page in `folder` finds the file; None where there is no such file."""
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_file() else None


def _study(facts: Facts, dataset: str) -> dict[str, Any]:
    """What was studied, in the words and rows of the page."""
    return {
        "facts": facts,
        "dataset": dataset,
        "metric": metric_name(facts.metric),
        "baseline": facts.compared_with and arm_name(facts.compared_with),
        "images": description.images(facts.dataset),
        "splits": list(description.SPLITS.values()),
        "counts": description.split_counts(facts.dataset, "n"),
        "groups": description.split_counts(facts.dataset, "groups") if description.has_groups(facts.dataset) else None,
        "classes": description.class_counts(facts.dataset),
        "unreadable": packed.unreadable(facts.dataset),
        "packing": packed.packing(facts.dataset),
        "findings": packed.findings(facts.dataset),
        "arms": [
            {"key": arm, "name": arm_name(arm), "losses": description.losses(config), "place": i % 7}
            for i, (arm, config) in enumerate(facts.arms.items())
        ],
        "differences": description.differences(facts.arms),
        "shared": description.shared(facts.arms),
        "arm_name": arm_name,
    }


def _markdown_frame(
    facts: Facts,
    summary: Sequence[str],
    verdicts: Sequence[Mapping[str, str]],
    sections: Sequence[claims_page.ClaimsSection | decision_page.DecisionSection | None],
    caveats: Sequence[tuple[str, str]],
    paper: Mapping[str, Any] | None,
    searched: Mapping[str, Any] | None,
) -> tuple[str, str]:
    """What report.md says before its tables and after them."""
    safe = markdown_text
    before = [f"# {safe(facts.name)}"]
    if facts.accepted:
        before += ["**" + safe(ACCEPTED) + "**", _bullets(facts.accepted)]
    before += [safe(facts.question), safe(facts.description), "## Summary", *map(safe, summary), _bullets(facts.notes)]
    if facts.failed:
        before += ["## Missing stages", _bullets(f"{name}: {why}" for name, why in facts.failed.items())]
    after = []
    if verdicts:
        after += ["## Verdicts over seeds", markdown(DataFrame(verdicts).set_index("where")).strip()]
    after += [section.markdown() for section in sections if section]
    if searched:
        after.append(searched["markdown"])
    if paper:
        after += [f"## {safe(paper['heading'])}", *map(safe, paper["reading"]), *_paper_markdown(paper)]
    after += [
        "## What these numbers do and do not show",
        "\n".join(f"- **{safe(head)}** {safe(text)}" for head, text in caveats),
    ]
    protocol = [f"Protocol: {facts.protocol}.", *(f"{key}: {value}" for key, value in facts.switches.items())]
    after += ["## Protocol", _bullets(protocol), "## Reproduce", f"```\n{facts.command}\n```"]
    return "\n\n".join([*filter(None, before), "## Tables"]) + "\n", "\n\n".join(after) + "\n"


def _paper_markdown(paper: Mapping[str, Any]) -> Iterator[str]:
    for part in paper["parts"]:
        rows = [{"at": f"{group}: {row['where']}", **row} for group, found in part["groups"].items() for row in found]
        columns = ["at", "arm", "value", "seeds", "interval", "formula", "paper", "paper_interval", "difference"]
        if not part["intervals"]:
            columns = [c for c in columns if c not in ("interval", "formula", "paper_interval")]
        yield markdown(DataFrame(rows)[columns].rename(columns=_PAPER_HEADS).set_index("At")).strip()
        if part["notes"]:
            yield _bullets(part["notes"])
    if paper["departures"]:
        table = DataFrame(paper["departures"], columns=["Setting", "This study", "Paper"])
        yield markdown(table.set_index("Setting")).strip()


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences)
