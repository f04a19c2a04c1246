"""Tables as the page's template draws them: headings with their spans, cells taken apart, numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pandas import DataFrame

from analysis import beside, costs
from analysis.facts import Facts
from analysis.flags import noise_floor
from analysis.layout import CAPTIONS, FLAG, MISSING, Cell, arrange, legend
from analysis.names import SCORES, arm_name, metric_name, number, percent
from analysis.packed import duration
from analysis.published import TABLES
from analysis.summary import main_comparisons
from analysis.tables import NAMES, Finished


def page_table(name: str, tables: Mapping[str, DataFrame], facts: Facts) -> dict[str, Any] | None:
    """An arrangement as the template draws it: heading rows, and groups of rows whose cells are taken apart.

    None where nothing was measured.
    """
    table = tables[name]
    cells = arrange(name, table, metric=facts.metric, scores=tables["label_efficiency"])
    if cells.empty:
        return None
    grid: list[list[Any]] = cells.to_numpy().tolist()  # Cell, text or None
    best = _best(name, cells, facts, noise_floor(table))
    heads = [_parts(column) for column in cells.columns]
    groups: dict[str, list[dict[str, Any]]] = {}
    for i, label in enumerate(cells.index):
        *group, head = _parts(label)
        row = {"head": head, "cells": [(cell, (i, j) in best) for j, cell in enumerate(grid[i])]}
        groups.setdefault(", ".join(group), []).append(row)
    return {
        "name": name,
        "number": NAMES.index(name) + 1,
        "caption": CAPTIONS[name],
        "legend": legend(name, table),
        "corner": str(cells.index.names[-1]),
        "levels": [_spans([head[: depth + 1] for head in heads]) for depth in range(len(heads[0]))],
        "groups": groups,
        "columns": cells.shape[1] + 1,
        "dense": cells.columns.nlevels > 1,
    }


def _best(name: str, cells: DataFrame, facts: Facts, floor: float | None) -> set[tuple[int, int]]:
    """Places of the best mean: in a row of arms, or in a column where arms run down. Feature reuse has no best.

    Nor has a line in which a number is flagged, or one of KS distances of which a second is within `floor` of the best:
    where that is not known, any may be.
    """
    reference = {arm_name(arm) for arm, config in facts.arms.items() if config is None} if name == "linear" else set()
    ranked = [j for j, column in enumerate(cells.columns) if _parts(column)[-1] not in reference]
    grid: list[list[Any]] = cells.to_numpy().tolist()
    rows = range(len(cells))
    match name:
        case "linear" | "label_efficiency" | "ks":
            lines = [[(i, j) for j in ranked] for i in rows]
        case "probing":
            groups: dict[str, list[int]] = {}
            for i in rows:
                groups.setdefault(", ".join(_parts(cells.index[i])[:-1]), []).append(i)
            lines = [[(i, j) for i in group] for group in groups.values() for j in ranked]
        case _:
            lines = []
    best = set()
    for line in lines:
        found = {(i, j): grid[i][j] for i, j in line if isinstance(grid[i][j], Cell)}
        if len(found) > 1 and not any(cell.flagged for cell in found.values()):
            pick = min if name == "ks" else max
            top = pick(found.values(), key=lambda cell: cell.value)
            reach = math.inf if floor is None else floor
            near = [cell for cell in found.values() if cell.metric == "ks" and abs(cell.value - top.value) <= reach]
            if len(near) > 1:  # of distances the best itself is near
                continue
            best |= {place for place, cell in found.items() if cell.mean == top.mean}  # equal as printed is equal
    return best


def _spans(labels: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Headings of one level with the number of columns below each: neighbours of the same parents are one."""
    spans: list[tuple[Sequence[str], int]] = []
    for label in labels:
        if spans and spans[-1][0] == label:
            spans[-1] = (label, spans[-1][1] + 1)
        else:
            spans.append((label, 1))
    return [(label[-1], span) for label, span in spans]


def _parts(label: object) -> list[str]:
    return [str(part) for part in label] if isinstance(label, tuple) else [str(label)]


def verdict_rows(judged: DataFrame, facts: Facts) -> list[dict[str, str]]:
    """The comparisons of Tables 1 and 2 on the study's score, as text."""
    rows = main_comparisons(judged, metric=facts.metric, baseline=facts.compared_with)
    return [verdict_row(row, facts.metric) for row in rows.to_dict("records")]


def verdict_row(row: Mapping[Any, Any], metric: str) -> dict[str, str]:
    """One comparison of verdicts.csv as text."""
    training = "Linear" if row["table"] == "linear" else "Full"
    short = row["verdict"].startswith("needs more seeds")
    known = pd.notna(row["low"])
    low, high = (signed(row[end], metric) if known else "" for end in ("low", "high"))
    return {
        "where": f"{training}, {percent(row['label_fraction'])}",
        "arm": arm_name(row["arm"]),
        "against": arm_name(row["against"]),
        "effect": signed(row["effect"], metric) if pd.notna(row["effect"]) else "–",
        "interval": f"{low} to {high}" if known else "–",
        "seeds": str(row["n"]),
        "p": p_value(row["p_holm"]),
        "verdict": f"needs at least {row['seeds_needed']} seeds" if short else row["verdict"],
    }


#: The paper's tables in a few words, and the mark of a note below.
_PAPER = {
    "linear": "linear classifier",
    "label_efficiency": "fine-tuning",
    "reuse": "feature reuse",
    "probing": "probing",
    "ks": "distance from the best model",
}
_NOTED = "‡"


def paper_section(tables: Mapping[str, DataFrame], facts: Facts) -> dict[str, Any] | None:
    """The section on the paper's numbers; None where no cell of its tables was measured."""
    table = beside.beside(tables, facts)
    if table.empty:
        return None
    references = set(tables["ks"]["reference_arm"].dropna()) if "reference_arm" in tables["ks"] else set()
    return {
        "table": table,
        "heading": beside.heading(facts),
        "reading": beside.reading(table, facts, references.pop() if len(references) == 1 else None),
        "departures": beside.departures(facts),
        "parts": beside_parts(table),
    }


def beside_parts(table: DataFrame) -> list[dict[str, Any]]:
    """`beside.beside` as the page draws it: scores with their intervals, then measures without; a group a table."""
    scores = table["metric"].isin(SCORES)
    parts = []
    for name, part, caption in (
        ("beside-scores", table[scores], "Scores in percent, test split"),
        ("beside-measures", table[~scores], "Feature reuse (CKA) and KS distance, test split"),
    ):
        if part.empty:
            continue
        groups: dict[str, list[dict[str, str]]] = {}
        for row in part.to_dict("records"):
            number = TABLES.index(row["table"]) + 1
            head = f"Table {number}, {_PAPER[row['table']]}, {metric_name(row['metric'])}"
            groups.setdefault(head, []).append(_beside_row(row))
        parts.append(
            {
                "name": name,
                "caption": caption,
                "intervals": name == "beside-scores",
                "groups": groups,
                "notes": list(dict.fromkeys(note for note in part["note"] if note)),
                "flagged": bool(part["uninformative"].any()),
            }
        )
    return parts


def _beside_row(row: Mapping[Any, Any]) -> dict[str, str]:
    metric = row["metric"]
    block = "" if pd.isna(row["block"]) else f"block {row['block']}, "
    printed = f"{row['printed_low']}–{row['printed_high']}" if row["printed_low"] else ""
    value = number(row["value"], metric)
    return {
        "where": f"{block}{percent(row['label_fraction'])}",
        "arm": arm_name(row["arm"]),
        "value": value + (FLAG if row["uninformative"] else ""),
        "seeds": f"{row['seeds']} seed{'' if row['seeds'] == 1 else 's'}",
        "interval": _range(row["low"], row["high"], 1),
        "formula": _range(row["paper_low"], row["paper_high"], 2),
        "paper": (row["printed"] or MISSING) + (_NOTED if row["note"] and not printed else ""),
        "paper_interval": printed + (_NOTED if row["note"] and printed else "") if printed else MISSING,
        "difference": MISSING if pd.isna(row["difference"]) else signed(row["difference"], metric),
    }


def _range(low: Any, high: Any, decimals: int) -> str:
    """Ends of a score's interval in percent. The paper's formula needs two decimals, or its width would not show."""
    if pd.isna(low) or pd.isna(high):
        return MISSING
    return f"{100 * low:.{decimals}f}–{100 * high:.{decimals}f}"


def signed(value: float, metric: str) -> str:
    """A difference with its sign."""
    text = number(value, metric)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def p_value(p: float) -> str:
    """A p-value with the digits that it bears."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def cost_rows(finished: Sequence[Finished]) -> list[tuple[str, int, str, str]]:
    """(kind in words, stages, time, accelerator time) and their total."""
    return [(each.what, each.stages, duration(each.wall), _held(each)) for each in costs.by_kind(finished)]


def arm_cost_rows(finished: Sequence[Finished], facts: Facts) -> list[tuple[str, int, str, str, str]]:
    """(arm, pretrainings, time of one, accelerator time of one, multiple of the baseline's) of each pretrained arm."""
    return [
        (
            arm_name(each.what),
            each.stages,
            duration(each.wall),
            _held(each),
            "baseline"
            if each.what == facts.compared_with
            else MISSING
            if each.times is None
            else f"{each.times:.2f} ×",
        )
        for each in costs.by_arm(finished, facts.compared_with)
    ]


def _held(spent: costs.Spent) -> str:
    return costs.hours(spent.accelerator) if spent.accelerator else MISSING
