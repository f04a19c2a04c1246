"""A search's tables as text: its trials, what fresh seeds say of the best, importances and effects of blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas import DataFrame

from analysis.facts import Facts
from analysis.names import SCORES, arm_name, metric_name
from analysis.page import signed, verdict_row
from analysis.search import SearchFindings, ranked
from analysis.search_sentences import unit
from analysis.search_words import (
    EVALUATORS,
    capital,
    counted,
    described,
    objective_name,
    objective_text,
    parameter_name,
    start_name,
)
from analysis.summary import main_comparisons
from analysis.tables import markdown, markdown_text

BEST = 10
#: Below so many completed trials with or without, an effect rests on next to nothing.
_FEW = 3


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are text. columns: heading and whether its cells are numbers; rows: head first, by group."""

    name: str
    caption: str
    legend: str
    columns: Sequence[tuple[str, bool]]
    groups: Mapping[str, Sequence[Sequence[str]]]
    folded: str = ""  # heading of a fold that the table stands in
    wraps: bool = False  # whether headings may wrap, where the last column is long

    def markdown(self) -> str:
        parts = [markdown_text(f"{self.caption} {self.legend}")]
        heads = [head for head, _ in self.columns]
        for group, rows in self.groups.items():
            parts += [f"**{markdown_text(group)}**"] if group else []
            parts.append(markdown(DataFrame(rows, columns=heads).set_index(heads[0])).strip())
        return "\n\n".join(parts)


def best_trials(search: SearchFindings) -> TextTable | None:
    """The best completed trials, and below them everything that the search began with."""
    done = ranked(search)
    place = {trial: i for i, trial in enumerate(done["trial"], 1)}
    starts = search.trials[search.trials["start"].notna()]
    groups = {}
    if len(done):
        groups[f"Best of {counted(len(done), 'completed trial')}"] = [
            _row(search, row, place) for row in done.head(BEST).to_dict("records")
        ]
    if len(starts):
        groups["What the search began with"] = [_row(search, row, place) for row in starts.to_dict("records")]
    if not groups:
        return None
    spread = search.trials["score_sd"].notna().any() if "score_sd" in search.trials else False
    legend = "Rank among completed trials" + (", those on the Pareto front first" if len(search.objectives) > 1 else "")
    legend += ". A trial that was stopped early has no value: its last score came after fewer epochs."
    if spread:
        legend += " ±: standard deviation over the trial’s own seeds."
    legend += " All trials are in tables/search.csv."
    heads = [objective_name(o, search.metric) for o in search.objectives]
    heads[0] += " (%)" if search.objectives[0] == "score" and search.metric in SCORES else ""
    columns = [("Trial", False), ("Rank", True), *((capital(h), True) for h in heads), ("Epochs", True)]
    timed = not {"seconds", "accelerator_seconds"} & set(search.objectives)
    columns += [("Training", True)] if timed else []
    return TextTable(
        "search-best",
        "Trials by validation.",
        legend,
        [*columns, ("Settings that were searched", False)],
        groups,
        wraps=True,
    )


def _row(search: SearchFindings, row: Mapping[Any, Any], place: Mapping[int, int]) -> list[str]:
    trial, done = int(row["trial"]), row["state"] == "complete"
    name = f"{trial}, {start_name(row['start'])}" if isinstance(row["start"], str) else str(trial)
    name += f", arm {arm_name(search.promoted[trial])}" if trial in search.promoted else ""
    values = [objective_text(_float(row.get(o)) if done else None, o, search.metric) for o in search.objectives]
    sd = _float(row.get("score_sd"))
    if done and "score" in search.objectives and math.isfinite(sd):
        values[list(search.objectives).index("score")] += f" ±{objective_text(sd, 'score', search.metric)}"
    epochs = _float(row.get("epochs"))
    ran = f"{epochs:g}" if math.isfinite(epochs) else "–"
    fate = {
        "pruned": f"stopped at {ran}" if math.isfinite(epochs) else "stopped early",
        "failed": "failed",
        "running": "not finished",
    }
    cells = [name, str(place.get(trial, "–")), *values, fate.get(row["state"], ran)]
    if not {"seconds", "accelerator_seconds"} & set(search.objectives):
        cells.append(objective_text(_float(row.get("seconds")), "seconds", search.metric))
    params = {name: row[f"params_{name}"] for name in search.parameters}
    return [*cells, described(params)]


def fresh(search: SearchFindings, judged: DataFrame, facts: Facts) -> TextTable | None:
    """Promoted trials against themselves without block losses, then the paper's settings, on the study's own seeds."""
    names = search.trials["start"].dropna().tolist()
    paper = [search.starts.get(name, name) for name in names if name.startswith("paper_")]
    rows = main_comparisons(judged, metric=facts.metric, baseline=None) if len(judged) else judged
    groups: dict[str, list[list[str]]] = {}
    for trial, arm in search.promoted.items():
        control = [search.controls[trial]] if trial in search.controls else []
        for other in dict.fromkeys([*control, *paper]):
            for row in rows.to_dict("records") if arm != other else ():
                if {row["arm"], row["against"]} != {arm, other}:
                    continue
                text = verdict_row(row if row["arm"] == arm else _turned(row), facts.metric)
                cells = [text[key] for key in ("where", "against", "effect", "interval", "seeds", "p", "verdict")]
                groups.setdefault(f"Trial {trial}, arm {arm_name(arm)}", []).append(cells)
    if not groups:
        return None
    columns = [
        ("At", False),
        ("Against", False),
        ("Difference", True),
        ("95% interval", True),
        ("Seeds", True),
        ("p, Holm", True),
        ("Verdict", False),
    ]
    return TextTable(
        "search-fresh",
        f"Best trials against the paper’s settings on fresh seeds: test {metric_name(facts.metric)}"
        f"{', in percentage points' if facts.metric in SCORES else ''}.",
        "Paired over the study’s seeds, none of which the search used; p is adjusted over all comparisons of that "
        "score in its table."
        + (" Against itself without its losses, a trial shows what the losses do alone." if search.controls else ""),
        columns,
        groups,
    )


def _turned(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """A comparison seen from the other arm."""
    verdict = {"better": "worse", "worse": "better"}.get(row["verdict"], row["verdict"])
    ends = {"effect": -row["effect"], "low": -row["high"], "high": -row["low"], "verdict": verdict}
    return {**row, "arm": row["against"], "against": row["arm"], **ends}


def importances(search: SearchFindings) -> TextTable | None:
    table = search.importances
    if table.empty:
        return None
    groups: dict[str, list[list[str]]] = {}
    evaluators = list(dict.fromkeys(table["evaluator"]))
    for objective, part in table.groupby("objective", sort=False):
        wide = part.pivot(index="parameter", columns="evaluator", values="importance").reindex(columns=evaluators)
        wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False, kind="stable").index]
        head = capital(objective_name(str(objective), search.metric)) if len(search.objectives) > 1 else ""
        groups[head] = [
            [parameter_name(str(name)), *("–" if pd.isna(v) else f"{v:.2f}" for v in values)]
            for name, values in zip(wide.index, wide.to_numpy(), strict=True)
        ]
    return TextTable(
        "search-importances",
        "Importance of each parameter, as a share of 1.",
        "–: left out by that evaluator.",
        [("Parameter", False), *((EVALUATORS.get(e, e), True) for e in evaluators)],
        groups,
        folded="The importances as a table",
    )


def blocks(search: SearchFindings, table: DataFrame) -> TextTable | None:
    """Main effects and interactions on the first objective; None where not one can be told."""
    table = table[table["objective"] == search.main]
    if table["effect"].isna().all():
        return None
    groups: dict[str, list[list[str]]] = {}
    for row in table.to_dict("records"):
        main = row["kind"] == "main"
        head = f"block {row['block']}" if main else f"blocks {row['block']} and {row['other']}"
        known = pd.notna(row["low"])
        interval = f"{_effect(search, row['low'])} to {_effect(search, row['high'])}" if known else row["reason"]
        weak = known and min(row["n_on"], row["n_off"]) < _FEW
        cells = [head, str(row["n_on"]), str(row["n_off"]), _effect(search, row["difference"])]
        cells += [_effect(search, row["effect"]), interval + (", from very few trials" if weak else "")]
        groups.setdefault("A block’s loss switched on" if main else "Two blocks beyond their sum", []).append(cells)
    points = ", in percentage points" if unit(search) else ""
    return TextTable(
        "search-blocks",
        f"Effects of blocks on {objective_name(search.main, search.metric)}{points}.",
        "Completed trials with a block loss. Plain difference: of means, as tried. Adjusted: least squares with the "
        "other blocks and the kind of loss; 95% t-interval, not adjusted for the number of effects.",
        [
            ("Blocks", False),
            ("With", True),
            ("Without", True),
            ("Plain difference", True),
            ("Adjusted", True),
            ("95% interval", False),
        ],
        groups,
    )


def _effect(search: SearchFindings, value: float) -> str:
    if math.isnan(value):
        return "–"
    if search.main == "score":
        return signed(value, search.metric)
    text = objective_text(abs(value), search.main, search.metric)
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{text}"


def _float(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)
