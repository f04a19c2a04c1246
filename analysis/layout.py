"""The paper's arrangement of the tidy tables: arms beside each other, one cell the mean over seeds with its spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
from pandas import DataFrame

from analysis.names import SCORES, arm_name, metric_name, number, percent

MISSING = "–"
FLAG = "†"

CAPTIONS: Mapping[str, str] = {
    "linear": "Linear classifier on the frozen encoder, test split; supervised training on all labels for reference.",
    "label_efficiency": "Fine-tuning the whole network on a share of the training labels, test split.",
    "reuse": "Feature reuse: similarity (CKA) of each block's features before and after fine-tuning.",
    "probing": "Layer-wise probing: a linear classifier on the pooled features of each block of the frozen encoder.",
    "ks": "Distance of the output probabilities from those of the reference model, and calibration.",
}
_SCORED = ("linear", "label_efficiency", "probing")
#: What a cell of any arrangement holds in common; the seeds within it are averaged.
_CELL = ["arm", "mode", "label_fraction", "block", "metric"]
_HEADS = {"arm": "Arm", "label_fraction": "Labels", "block": "Block", "metric": "Measure"}


@dataclass(frozen=True)
class Cell:
    """One entry of an arrangement: the mean over `seeds` runs, of the `of` runs that the table's fullest cell has.

    low, high: lowest and highest run; where no cell has more than one run, the 95% bootstrap interval of that run.
    within: half the width of a run's 95% bootstrap interval, averaged over runs; None where there is none.
    flagged: a value that says nothing (CKA that reads as high on unrelated features).
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    within: float | None
    seeds: int
    of: int
    flagged: bool = False

    @property
    def mean(self) -> str:
        return number(self.value, self.metric) + (FLAG if self.flagged else "")

    @property
    def spread(self) -> str:
        """`81.7–83.0`, with the number of seeds where some are missing; empty where there is nothing to say."""
        if self.seeds < self.of and self.seeds == 1:
            return f"1 of {self.of} seeds"
        if self.low is None or self.high is None:
            return ""
        low, high = number(self.low, self.metric), number(self.high, self.metric)
        span = f"{low} to {high}" if self.low < 0 else f"{low}–{high}"
        return span if self.seeds == self.of else f"{span}, {self.seeds} of {self.of} seeds"

    @property
    def margin(self) -> str:
        return f"±{number(self.within, self.metric)}" if self.within is not None and self.of > 1 else ""

    def __str__(self) -> str:
        return " ".join(filter(None, [self.mean, f"({self.spread})" if self.spread else "", self.margin]))


def paper_layout(
    name: str, table: DataFrame, *, metric: str | None = None, scores: DataFrame | None = None
) -> DataFrame:
    """The table `name` as the paper arranges it, cells as text; `MISSING` where nothing was measured.

    Args:
        metric: the score shown where a table holds several (linear, label_efficiency, probing); None shows them all.
        scores: label_efficiency, from which Table 3 takes its column Performance; without it there is none.
    """
    cells = arrange(name, table, metric=metric, scores=scores)
    return cells.map(lambda cell: MISSING if cell is None else str(cell))


def arrange(name: str, table: DataFrame, *, metric: str | None = None, scores: DataFrame | None = None) -> DataFrame:
    """`paper_layout` with a `Cell`, a text or None in each place, for a caller that sets a cell's parts apart."""
    table = table[table["value"].notna()]
    if metric is not None and name in _SCORED:
        table = table[table["metric"] == metric]
    score = ["metric"] if table["metric"].nunique() > 1 else []
    fraction = ["label_fraction"] if table["label_fraction"].nunique() > 1 else []
    match name:
        case "linear":
            grid = _grid(table, ["dataset", "metric", *fraction], ["arm"], large_first=True)
            grid.index = pd.Index([_linear_head(*each) for each in grid.index], name="Dataset")
            return grid
        case "label_efficiency":
            return _grid(table, [*score, "label_fraction"], ["arm"], large_first=True)
        case "reuse":
            grid = _grid(table, ["metric", "arm"], ["label_fraction", "block"])
            return grid if scores is None or grid.empty else _with_performance(grid, scores, metric)
        case "probing":
            return _grid(table, [*score, *fraction, "arm"], ["block"])
        case "ks":
            small = (table["metric"] != "ks") | (table["label_fraction"] < 1)  # the paper compares small fractions
            return _with_floor(_grid(table[small], ["metric", "label_fraction"], ["arm"], large_first=True), table)
        case _:
            raise ValueError(f"no arrangement is called {name!r}; there are {', '.join(CAPTIONS)}")


def legend(name: str, table: DataFrame) -> str:
    """How to read a cell of this table, in a sentence or two."""
    scored = name in _SCORED
    parts = ["Scores in percent."] if scored else []
    match _most_seeds(table), scored:
        case 0 | 1, True:
            parts.append("One seed, in brackets that run's 95% bootstrap interval.")
        case 0 | 1, False:
            parts.append("One seed.")
        case seeds, True:
            parts.append(
                f"Mean of {seeds} seeds (lowest–highest) ± half the width of one run's 95% bootstrap interval."
            )
        case seeds, _:
            parts.append(f"Mean of {seeds} seeds (lowest–highest).")
    if name == "ks":
        parts.insert(0, reference(table))
        if "floor" not in table or table["floor"].isna().all():
            parts.append("The noise floor is not known, because the reference has one seed; so no distance is ranked.")
    if "uninformative" in table and table["uninformative"].fillna(False).any():
        alike = "features that have nothing in common would score as high"
        weak = "the reference itself is not shown to be better than chance"
        parts.append(f"{FLAG} uninformative: {weak if name == 'ks' else alike}.")
    return " ".join(filter(None, parts))


def reference(table: DataFrame) -> str:
    """The model that the KS distances are taken from, in a sentence."""
    found = table[["reference_arm", "reference_seed"]].dropna().drop_duplicates()
    models = [f"{arm_name(arm)}, seed {seed}" for arm, seed in found.itertuples(index=False)]
    return f"Reference: {' and '.join(models)}, fine-tuned on all labels." if models else ""


def levels(table: DataFrame, column: str, *, large_first: bool = False) -> list[Any]:
    """The values of a column in reading order: blocks and fractions by size, arms and metrics as they first appear."""
    found = list(dict.fromkeys(table[column]))
    match column:
        case "block":
            return sorted(found)
        case "label_fraction":
            return sorted(found, reverse=large_first)
        case _:
            return found


def _linear_head(dataset: str, metric: str, fraction: str = "") -> str:
    """Row head of Table 1, `digits (AUROC)`."""
    return f"{dataset} ({metric}{f', {fraction} of the labels' if fraction else ''})"


def _most_seeds(table: DataFrame) -> int:
    """Runs in the fullest cell of the table."""
    counts = table[table["value"].notna()].groupby(_CELL, dropna=False)["seed"].nunique()
    return int(counts.max()) if len(counts) else 0


def _grid(table: DataFrame, rows: list[str], columns: list[str], *, large_first: bool = False) -> DataFrame:
    """Cells of the table, its columns `rows` running down and `columns` across; a row without a cell is left out."""
    axes = [*rows, *columns]
    unlabelled = table[table[axes].isna().any(axis=1)]
    if len(unlabelled):
        raise ValueError(f"{unlabelled['stage'].iloc[0]} left a row without one of {', '.join(axes)}")
    of = _most_seeds(table)
    cells = {key: _cell(group, of) for key, group in table.groupby(axes, sort=False)}
    down, across = (
        list(product(*(levels(table, column, large_first=large_first) for column in axis))) for axis in (rows, columns)
    )
    down = [r for r in down if any((*r, *c) in cells for c in across)]
    return DataFrame(
        [[cells.get((*r, *c)) for c in across] for r in down],
        index=_labels(down, rows),
        columns=_labels(across, columns),
        dtype=object,
    )


def _cell(group: DataFrame, of: int) -> Cell:
    """The mean over a group's runs, each run counted once."""
    if group["seed"].duplicated().any() or group["mode"].nunique() > 1:
        what = ", ".join(dict.fromkeys(group["stage"]))
        raise ValueError(f"one cell would average different measurements ({what}); arrange each mode by itself")
    width = (group["high"] - group["low"]).dropna()
    single = of == 1 and len(width) == 1
    low, high = ("low", "high") if single else ("value", "value")
    many = len(group) > 1 or single
    return Cell(
        metric=str(group["metric"].iloc[0]),
        value=float(group["value"].mean()),
        low=float(group[low].min()) if many else None,
        high=float(group[high].max()) if many else None,
        within=float(width.mean() / 2) if len(width) and group["metric"].iloc[0] in SCORES else None,
        seeds=len(group),
        of=of,
        flagged="uninformative" in group and bool(group["uninformative"].fillna(False).any()),
    )


def _labels(keys: list[tuple[Any, ...]], columns: list[str]) -> pd.Index:
    words = [tuple(_word(c, value) for c, value in zip(columns, key, strict=True)) for key in keys]
    names = [_HEADS.get(c, c) for c in columns]
    if len(names) == 1:
        return pd.Index([word for (word,) in words], name=names[0])
    return pd.MultiIndex.from_arrays(
        [list(each) for each in zip(*words, strict=True)] or [[]] * len(names), names=names
    )


def _word(column: str, value: Any) -> str:
    match column:
        case "arm":
            return arm_name(value)
        case "metric":
            return metric_name(value)
        case "label_fraction":
            return percent(value)
        case "block":
            return f"Block {value}"
        case _:
            return str(value)


def _with_performance(grid: DataFrame, scores: DataFrame, metric: str | None) -> DataFrame:
    """Table 3's column Performance after each fraction's blocks: the score of the fine-tuned models compared."""
    scores = scores[(scores["mode"] == "full") & scores["value"].notna()]
    metric = metric or next(iter(scores["metric"]), None)
    performance = _grid(scores[scores["metric"] == metric], ["arm"], ["label_fraction"])
    parts = []
    for fraction in dict.fromkeys(grid.columns.get_level_values(0)):
        part = grid.loc[:, [fraction]].copy()
        if fraction in performance.columns:
            found = performance[fraction]
            part[(fraction, f"Performance ({metric_name(str(metric))})")] = [found.get(arm) for _, arm in grid.index]
        parts.append(part)
    return pd.concat(parts, axis=1)


def _with_floor(grid: DataFrame, table: DataFrame) -> DataFrame:
    """Table 5 with the noise floor: the KS distance between seeds of the reference itself."""
    floors = table["floor"].dropna() if "floor" in table else table["value"].iloc[:0]
    if floors.empty:
        return grid
    ks = metric_name("ks")
    floor = number(float(floors.mean()), "ks")
    column = pd.Series([floor if measure == ks else None for measure, _ in grid.index], index=grid.index, dtype=object)
    return grid.assign(**{"Noise floor": column})
