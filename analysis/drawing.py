"""How figures look, and the marks they are made of. No pyplot, so no state is shared between figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from analysis.layout import levels
from analysis.names import arm_name

#: Ink, secondary text, hairlines, ground; the page replaces them, and the arms' colours, by its own on a dark screen.
INK, MUTED, RULE, PAPER = "#1c2127", "#5a6470", "#d5dbe1", "#ffffff"
#: Okabe and Ito's colours for colour-blind readers, a dark grey before them for the first arm, usually the baseline.
COLOURS = ("#41474f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_WIDTH, _NARROW = 7.2, 3.7  # inches

STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that figures are the same everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": INK,
    "text.parse_math": False,  # a name with dollar signs is a name, no formula
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",
}
styled = matplotlib.rc_context(STYLE)


@dataclass(frozen=True)
class Look:
    """How an arm is drawn; no two of the first 56 arms look alike, in colour or in grey."""

    colour: str
    marker: str
    dash: Any


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """A look for each arm, by its place in the study."""
    return {
        arm: Look(COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)], DASHES[i % len(DASHES)])
        for i, arm in enumerate(dict.fromkeys(arms))
    }


def panels(count: int, across: int, narrow: bool, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, `across` beside each other, each `height` inches high, and room for a legend."""
    down = max(1, math.ceil(count / across))
    figure = Figure(
        figsize=(_NARROW if narrow else _WIDTH, height * down + (0.7 if narrow else 0.45)), layout="constrained"
    )
    grid = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for unused in grid[count:]:
        unused.remove()
    return figure, grid[:count]


def apart(arm: str, drawn: Mapping[str, Look]) -> float:
    """How far along x an arm's points are set from their place, so that no arm's seeds hide another's."""
    return 0.055 * (list(drawn).index(arm) - (len(drawn) - 1) / 2)


def line(axes: Axes, x: Any, y: Any, look: Look, *, hollow: Any = None) -> None:
    """Seeds as small points and their mean at each x as a marked line; hollow and off the line where one is flagged."""
    runs = DataFrame({"x": np.asarray(x, float), "y": np.asarray(y, float)})
    runs["hollow"] = False if hollow is None else np.asarray(hollow, bool)
    means = runs.groupby("x").agg(y=("y", "mean"), hollow=("hollow", "any"))
    axes.plot(means.index, means["y"].mask(means["hollow"]), color=look.colour, ls=look.dash, zorder=3)
    for flagged, part in means.groupby("hollow"):
        face = "none" if flagged else look.colour
        axes.plot(part.index, part["y"], color=look.colour, marker=look.marker, mfc=face, ls="", zorder=4)
    if len(runs) > len(means):
        axes.scatter(runs["x"], runs["y"], s=16, facecolors="none", edgecolors=look.colour, linewidths=0.9, zorder=5)


def scores(axes: Axes, x: Any, runs: DataFrame, look: Look) -> None:
    """`line` of runs (value, low, high), and behind it at each x an upright stroke between the mean ends."""
    means = runs.assign(x=np.asarray(x, float))[["x", "low", "high"]].dropna().groupby("x").mean()
    axes.vlines(means.index, means["low"], means["high"], color=look.colour, lw=1, alpha=0.55, zorder=2)
    line(axes, x, runs["value"], look)


def curve(axes: Axes, history: DataFrame, term: str, colour: str, dash: Any, *, name: str = "") -> None:
    """One term over epochs, thinned to 200 points by averaging neighbours."""
    if term not in history:
        return
    found = history[["epoch", term]].dropna()
    if len(found) > 200:
        found = found.groupby(np.arange(len(found)) * 200 // len(found)).mean()
    axes.plot(found["epoch"], found[term], color=colour, ls=dash, lw=1.3)
    if name and len(found):
        axes.annotate(
            name,
            (found["epoch"].iloc[-1], found[term].iloc[-1]),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=MUTED,
        )


def gap_between(axes: Axes, part: DataFrame, look: Look, label: str) -> None:
    """Both distribution functions as steps, and the greatest separation between them."""
    x, p, q = (part[name].to_numpy(float) for name in ("x", "cdf", "reference_cdf"))
    axes.step(x, q, where="post", color=MUTED, lw=1.2)
    axes.step(x, p, where="post", color=look.colour, lw=1.6)
    at = int(np.abs(p - q).argmax())
    axes.plot([x[at], x[at]], sorted((p[at], q[at])), color=INK, lw=2.6, solid_capstyle="butt", zorder=5)
    text = f"{label}\ngap {abs(p[at] - q[at]):.2f}"
    axes.text(0.98, 0.05, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=8)


def null_band(axes: Axes, part: DataFrame) -> None:
    null = part.groupby("block")[["null", "null_high"]].max().dropna()
    if len(null):
        x = null.index.to_numpy(float)
        low, high = null["null"].to_numpy(float), null["null_high"].to_numpy(float)
        tall = np.maximum(high - low, 0.015)  # a null without spread stays visible
        axes.bar(x, tall, width=0.8, bottom=low, color=MUTED, alpha=0.3, lw=0)


def block_axis(axes: Axes, table: DataFrame, label: str) -> None:
    blocks = [int(b) for b in levels(table, "block")]
    axes.set_xticks(blocks, [str(b) for b in blocks])
    axes.set_xlim(blocks[0] - 0.5, blocks[-1] + 0.5)
    axes.set_xlabel("block")
    axes.set_ylabel(label)


def legend(
    figure: Figure,
    drawn: Mapping[str, Look],
    present: Iterable[str],
    narrow: bool,
    extra: Sequence[Any] = (),
    *,
    markers: bool = True,
) -> None:
    shown = set(present)
    keys = [
        Line2D([], [], color=k.colour, ls=k.dash, marker=k.marker if markers else "", label=arm_name(arm))
        for arm, k in drawn.items()
        if arm in shown
    ]
    handles = [*keys, *extra]
    if handles:
        wide = max(len(str(handle.get_label())) for handle in handles)
        columns = 2 if narrow else max(2, min(len(handles), 110 // (wide + 8)))
        handles = [handle for start in range(columns) for handle in handles[start::columns]]  # read along rows
        names = [str(handle.get_label()) for handle in handles]
        figure.legend(handles, names, loc="outside upper left", ncols=columns, columnspacing=1.4)


def short(name: str) -> str:
    """A name that fits over a small panel."""
    return name if len(name) <= 20 else f"{name[:19]}…"
