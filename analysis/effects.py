"""The figure at the top of the page: what each arm adds to the baseline, and how far seeds leave that open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from pandas import DataFrame

from analysis import drawing
from analysis.drawing import INK, MUTED, PAPER, RULE, Look, looks
from analysis.names import SCORES, arm_name, metric_name, number, percent

#: More arms than these would make a figure that no screen holds; the table of verdicts has them all.
MOST = 6
_HEAD, _ROW = 0.26, 0.21  # inches


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm's difference from the baseline at one training, in the score's unit as printed (percentage points)."""

    arm: str
    seeds: tuple[float, ...]  # a difference a seed
    effect: float
    low: float  # of the 95% interval over seeds; NaN with one seed
    high: float
    verdict: str

    @property
    def settled(self) -> bool:
        return self.verdict in ("better", "worse")


def groups(tables: Mapping[str, DataFrame], *, metric: str, baseline: str, arms: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by training (`Frozen encoder`, `Fine-tuned on 1%`, ...), frozen first, then the fewest labels first.

    `tables` hold `verdicts`; `arms` are those to show, in order. Empty where none of them was compared.
    """
    judged = tables["verdicts"]
    judged = judged[(judged["metric"] == metric) & (judged["against"] == baseline) & judged["effect"].notna()]
    shown = [arm for arm in arms if arm != baseline and arm in set(judged["arm"])][:MOST]
    by = 100.0 if metric in SCORES else 1.0
    found: dict[str, list[Row]] = {}
    for name in ("linear", "label_efficiency"):
        part = judged[(judged["table"] == name) & judged["arm"].isin(shown)]
        for fraction in sorted(set(part["label_fraction"])):
            at = part[part["label_fraction"] == fraction].set_index("arm")
            runs = _runs(tables[name], metric, fraction)
            rows = [
                Row(
                    arm=arm,
                    seeds=tuple(by * (runs[arm] - runs[baseline]).dropna()),
                    **{end: by * float(at.loc[arm, end]) for end in ("effect", "low", "high")},
                    verdict=str(at.loc[arm, "verdict"]),
                )
                for arm in shown
                if arm in at.index
            ]
            of = "" if name == "linear" and fraction == 1 else f" on {percent(fraction)}"
            found[f"{'Frozen encoder' if name == 'linear' else 'Fine-tuned'}{of}"] = rows
    return found


@drawing.styled
def effects(
    found: Mapping[str, Sequence[Row]], *, metric: str, baseline: str, arms: Sequence[str], narrow: bool = False
) -> Figure:
    """Each difference as a mark with its 95% interval over seeds, and a stroke a seed; filled where it is a verdict.

    An interval that leaves the axis ends in an arrow: with two seeds it is often wider than anything worth showing.
    """
    lines = sum(len(rows) for rows in found.values())
    tall = _HEAD * len(found) + _ROW * lines + 0.95
    figure = Figure(figsize=(3.7 if narrow else 4.4, tall), layout="constrained")
    axes: Axes = figure.subplots()
    drawn = looks(arms)
    left, right = _limits(found)
    placed = list(_placed(found))
    for y, _, row in placed:
        if row is not None:
            _mark(axes, y, row, drawn[row.arm], left, right)
    axes.axvline(0, color=MUTED, lw=1, zorder=1)
    axes.set(xlim=(left, right), ylim=(tall - 0.95 + 0.05, 0))
    names = [head if row is None else drawing.short(arm_name(row.arm)) for _, head, row in placed]
    axes.set_yticks([y for y, _, _ in placed], names)
    axes.tick_params(axis="y", labelcolor=INK, pad=7)
    for label, (_, _, row) in zip(axes.get_yticklabels(), placed, strict=True):
        label.set_fontweight("normal" if row else "bold")
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=RULE)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0"))
    figure.supxlabel(  # centred on the figure: longer than a phone's axis
        f"difference in test {_unit(metric)} from {drawing.short(arm_name(baseline))}", fontsize=8.5, color=MUTED
    )
    figure.legend(*_keys(found), loc="outside upper left", ncols=2, columnspacing=1.2, fontsize=8)
    return figure


def effects_alt(found: Mapping[str, Sequence[Row]], *, metric: str, baseline: str) -> str:
    """Every difference with its interval and verdict."""
    said = []
    for head, rows in found.items():
        each = [f"{arm_name(row.arm)} {_signed(row.effect, metric)}{_interval(row, metric)}" for row in rows]
        said.append(f"{head}: {', '.join(each)}")
    count = sum(row.settled for rows in found.values() for row in rows)
    total = sum(map(len, found.values()))
    return (
        f"Chart of differences in test {metric_name(metric)} from {arm_name(baseline)}, mean over seeds with the 95% "
        f"interval over seeds. {'; '.join(said)}. {count} of {total} are significant."
    )


def _runs(table: DataFrame, metric: str, fraction: float) -> DataFrame:
    """Values by seed and arm at one fraction."""
    part = table[(table["metric"] == metric) & (table["label_fraction"] == fraction) & table["value"].notna()]
    return part.pivot_table(index="seed", columns="arm", values="value", aggfunc="first")


def _placed(found: Mapping[str, Sequence[Row]]) -> Iterator[tuple[float, str, Row | None]]:
    """(inches from the top, heading, row) of each line; a heading's row is None."""
    y = 0.0
    for head, rows in found.items():
        yield y + _HEAD / 2 + 0.02, head, None
        y += _HEAD
        for row in rows:
            yield y + _ROW / 2, head, row
            y += _ROW


def _limits(found: Mapping[str, Sequence[Row]]) -> tuple[float, float]:
    """An axis that holds zero and every seed, and of the intervals what lies within half that width again."""
    rows = [row for each in found.values() for row in each]
    seeds = np.array([0.0, *(value for row in rows for value in row.seeds)])
    low, high = float(seeds.min()), float(seeds.max())
    span = (high - low) or 1.0
    ends = np.array([low, high, *(end for row in rows for end in (row.low, row.high) if pd.notna(end))])
    return max(low - span / 2, float(ends.min())) - 0.06 * span, min(high + span / 2, float(ends.max())) + 0.06 * span


def _mark(axes: Axes, y: float, row: Row, look: Look, left: float, right: float) -> None:
    if pd.notna(row.low):
        low, high = max(row.low, left), min(row.high, right)
        axes.plot([low, high], [y, y], color=look.colour, lw=1.4, solid_capstyle="butt", zorder=3)
        for end, beyond, arrow in ((left, row.low < left, "<"), (right, row.high > right, ">")):
            if beyond:
                axes.plot([end], [y], marker=arrow, color=look.colour, ms=5, clip_on=False, zorder=4)
    for value in row.seeds:
        axes.plot([value] * 2, [y - 0.055, y + 0.055], color=look.colour, lw=1.1, zorder=4)
    face: Any = look.colour if row.settled else PAPER
    axes.plot([row.effect], [y], marker=look.marker, ms=6.5, mfc=face, mec=look.colour, mew=1.5, ls="", zorder=5)


def _keys(found: Mapping[str, Sequence[Row]]) -> tuple[list[Line2D], list[str]]:
    """What the marks mean; of the two fills only those that are there."""
    rows = [row for each in found.values() for row in each]
    settled = {row.settled for row in rows}
    mark: dict[str, Any] = {"marker": "o", "ls": "", "mec": MUTED, "mew": 1.4, "ms": 6}
    line = Line2D([], [], color=MUTED, lw=1.4)
    keys = [
        *([(Line2D([], [], mfc=MUTED, **mark), "mean, significant")] if True in settled else []),
        *([(Line2D([], [], mfc=PAPER, **mark), "mean, not significant")] if False in settled else []),
        *([(line, "95% interval over seeds")] if any(pd.notna(row.low) for row in rows) else []),
        (Line2D([], [], color=MUTED, marker="|", ls="", ms=7), "one seed"),
    ]
    return [key for key, _ in keys], [text for _, text in keys]


def _unit(metric: str) -> str:
    return f"{metric_name(metric)} (points)" if metric in SCORES else metric_name(metric)


def _signed(value: float, metric: str) -> str:
    text = number(value / (100 if metric in SCORES else 1), metric)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def _interval(row: Row, metric: str) -> str:
    return "" if pd.isna(row.low) else f" (95% interval {_signed(row.low, metric)} to {_signed(row.high, metric)})"
