"""A search's figures: its trials over time, their curves, and what was traded off.

As all figures: they take tables, open no file, and have an `..._alt` each. Blue points ran to their end; what was
stopped early is grey, and never stands among the results, where it would be compared with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from analysis import drawing
from analysis.drawing import COLOURS, INK, MUTED
from analysis.search import MAXIMISED, SearchFindings, completed, is_paper, ranked
from analysis.search_words import axis_name, objective_name, objective_text, scale

DONE, START, FAILED = COLOURS[1], COLOURS[2], COLOURS[4]
_PAPER_DASH = (0, (4, 1.5))


@drawing.styled
def history(search: SearchFindings, *, narrow: bool = False) -> Figure:
    """Each objective by trial, a panel an objective: completed trials, the best so far, and what became of the rest."""
    figure, panels = drawing.panels(
        len(search.objectives), 1, narrow, height=2.7 if len(search.objectives) == 1 else 2.0
    )
    trials = search.trials
    for axes, objective in zip(panels, search.objectives, strict=True):
        done, by = completed(trials, objective), scale(objective, search.metric)
        if len(done):
            best = by * (done[objective].cummax() if objective in MAXIMISED else done[objective].cummin())
            until = [*done["trial"], trials["trial"].max()]
            axes.step(until, [*best, best.iloc[-1]], where="post", color=INK, lw=1.2, zorder=2)
        points(axes, search, done, done["trial"], objective)
        rug(axes, trials.loc[trials["state"] == "pruned", "trial"])
        rug(axes, trials.loc[trials["state"] == "failed", "trial"], FAILED, "x")
        value_axis(axes, search, objective)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlim(trials["trial"].min() - 0.7, trials["trial"].max() + 0.7)
        axes.set_xlabel("trial" if axes is panels[-1] else "")
    best_key = [Line2D([], [], color=INK, lw=1.2, label="best so far")] if (trials["state"] == "complete").any() else []
    drawing.legend(figure, {}, (), narrow, [*keys(search), *best_key])
    return figure


def history_alt(search: SearchFindings) -> str:
    """How many trials of which fate, and the steps of the best so far."""
    states = search.trials["state"].value_counts()
    done, steps, top = completed(search.trials, search.main), [], math.nan
    for trial, value in zip(done["trial"], done[search.main], strict=True):
        if math.isnan(top) or (value > top if search.main in MAXIMISED else value < top):
            top = value
            steps.append(f"trial {trial} {objective_text(value, search.main, search.metric)}")
    shown = [*steps[:3], "…", *steps[-3:]] if len(steps) > 7 else steps
    return (
        f"Points of {axis_name(search.main, search.metric)} against the number of the trial: "
        f"{states.get('complete', 0)} completed, {states.get('pruned', 0)} stopped early, {states.get('failed', 0)} "
        f"failed. The best so far: {', '.join(shown) or 'none yet'}."
    )


@drawing.styled
def curves(search: SearchFindings, *, narrow: bool = False) -> Figure:
    """Validation score on the way: completed trials, the best, the paper's settings; those stopped early in grey."""
    figure, (axes,) = drawing.panels(1, 1, narrow, height=3.1 if narrow else 3.5)
    by = scale("score", search.metric)
    best = ranked(search)["trial"].head(1).tolist()
    trials: dict[Any, dict[Any, Any]] = {row["trial"]: row for row in search.trials.to_dict("records")}
    shown = set()
    for trial, part in search.curves.sort_values("epoch").groupby("trial"):
        row = trials.get(trial, {})
        state = row.get("state")
        done = state == "complete"
        look: dict[str, Any] = {"color": DONE if done else MUTED, "lw": 0.9, "alpha": 0.55 if done else 0.4}
        if is_paper(row.get("start")):
            look = {"color": START, "lw": 1.5, "ls": _PAPER_DASH, "zorder": 4}
        if trial in best:
            look = {**look, "color": INK, "lw": 2.2, "alpha": 1.0, "zorder": 5}
        shown.add("paper" if is_paper(row.get("start")) else state)
        axes.plot(part["epoch"], by * part["score"], **look)
        if not done:
            mark = "x" if state == "failed" else "o"
            axes.plot(part["epoch"].iloc[-1:], by * part["score"].iloc[-1:], color=look["color"], marker=mark, ms=3)
    axes.set_xlabel("epoch" if search.on == "epochs" else "seconds of training")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylabel(axis_name("score", search.metric))
    entries = [
        ("paper", Line2D([], [], color=START, lw=1.5, ls=_PAPER_DASH, label="paper’s settings")),
        ("complete", Line2D([], [], color=DONE, lw=0.9, label="completed")),
        ("pruned", Line2D([], [], color=MUTED, lw=0.8, marker="o", ms=3, label="stopped early")),
        ("failed", Line2D([], [], color=MUTED, lw=0.8, marker="x", ms=4, label="failed")),
    ]
    first = [Line2D([], [], color=INK, lw=2.2, label=f"best, trial {best[0]}")] if best else []
    drawing.legend(figure, {}, (), narrow, [*first, *(key for state, key in entries if state in shown)])
    return figure


def curves_alt(search: SearchFindings) -> str:
    """Where trials were stopped, and where the best ended."""
    last = search.curves.groupby("trial")["epoch"].max()
    pruned = search.trials.loc[search.trials["state"] == "pruned", "trial"]
    stops = last[last.index.isin(pruned)].value_counts().sort_index()
    unit = "epoch" if search.on == "epochs" else "second"
    text = ", ".join(f"{count} after {unit} {epoch:g}" for epoch, count in stops.items())
    best = ranked(search).head(1)
    end = f" The best by validation is trial {best['trial'].iloc[0]}." if len(best) else ""
    return f"Lines of the validation score by {unit} for {len(last)} trials. Stopped early: {text or 'none'}.{end}"


@drawing.styled
def pareto(search: SearchFindings, *, narrow: bool = False) -> Figure:
    """The first objective against each other one; filled: on the front of all objectives, which no trial beats."""
    others = [objective for objective in search.objectives if objective != search.main]
    across = 1 if narrow else min(2, len(others))
    figure, panels = drawing.panels(len(others), across, narrow, height=2.9)
    up = scale(search.main, search.metric)
    done = ranked(search)
    front = done["pareto"].astype(bool)
    for axes, other in zip(panels, others, strict=True):
        by = scale(other, search.metric)
        x, y = by * done[other].astype(float), up * done[search.main]
        axes.scatter(x[~front], y[~front], s=18, facecolors="none", edgecolors=MUTED, linewidths=0.8, zorder=3)
        if len(search.objectives) == 2:  # of more objectives, a projection of the front is no line
            order = np.argsort(x[front].to_numpy(), kind="stable")
            axes.step(
                x[front].to_numpy()[order], y[front].to_numpy()[order], where="post", color=DONE, lw=1.0, zorder=2
            )
        points(axes, search, done[front], x[front], search.main)
        paper = done[~front & done["start"].map(is_paper)]
        points(axes, search, paper, x[paper.index], search.main)
        axes.set_xlabel(axis_name(other, search.metric))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=True, axis="x")
        value_axis(axes, search, search.main)
    extra = [Line2D([], [], color=MUTED, marker="o", mfc="none", ls="", label="beaten by another")]
    named = keys(search, done="on the Pareto front", rest=False)
    drawing.legend(figure, {}, (), narrow, [*named, *extra])
    return figure


def pareto_alt(search: SearchFindings) -> str:
    """Each trial on the front with its objectives."""
    done = ranked(search)
    front = done[done["pareto"].astype(bool)]
    texts = [
        f"trial {row['trial']} " + ", ".join(objective_text(float(row[o]), o, search.metric) for o in search.objectives)
        for row in front.head(8).to_dict("records")
    ]
    more = f", and {len(front) - 8} more" if len(front) > 8 else ""
    names = ", ".join(objective_name(o, search.metric) for o in search.objectives)
    return f"Points of the completed trials, by {names}. On the Pareto front: {'; '.join(texts) or 'none'}{more}."


def points(axes: Axes, search: SearchFindings, done: DataFrame, x: Any, objective: str, *, size: float = 20) -> None:
    """Completed trials; the paper's settings as diamonds, what was promoted with a ring."""
    y = scale(objective, search.metric) * done[objective].to_numpy(float)
    x = np.asarray(x, float)
    paper = done["start"].map(is_paper).to_numpy(bool)
    promoted = done["trial"].isin(list(search.promoted)).to_numpy(bool)
    axes.scatter(x[~paper], y[~paper], s=size, color=DONE, linewidths=0, zorder=3)
    axes.scatter(x[paper], y[paper], s=1.5 * size, color=START, marker="D", linewidths=0, zorder=4)
    axes.scatter(x[promoted], y[promoted], s=4 * size, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=5)


def rug(axes: Axes, x: Iterable[Any], colour: str = MUTED, marker: str = "|") -> None:
    """Marks at the foot, for trials that have no value on this axis."""
    found = np.asarray(list(x), float)
    at = axes.get_xaxis_transform()
    axes.plot(found, np.full(len(found), 0.035), color=colour, marker=marker, ls="", ms=5, transform=at, zorder=2)


def value_axis(axes: Axes, search: SearchFindings, objective: str, *, label: bool = True) -> None:
    """Room above for rings and below for the rug; nothing to read where no trial completed."""
    values = scale(objective, search.metric) * completed(search.trials, objective)[objective]
    if values.empty:
        axes.set_yticks([])
        axes.set_ylim(0, 1)
    else:
        low, high = float(values.min()), float(values.max())
        room = (high - low) or max(abs(high), 1.0) * 0.05
        axes.set_ylim(low - 0.22 * room, high + 0.12 * room)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    if label:
        axes.set_ylabel(axis_name(objective, search.metric))


def keys(search: SearchFindings, *, done: str = "completed", rest: bool = True) -> list[Line2D]:
    """Legend of `points` and `rug`, as far as they occur."""
    trials = search.trials
    states = set(trials["state"])
    complete = trials[trials["state"] == "complete"]
    paper = bool(complete["start"].map(is_paper).any())
    again = bool(complete["trial"].isin(list(search.promoted)).any())
    entries: list[tuple[bool, dict[str, Any]]] = [
        (not complete["start"].map(is_paper).all(), {"color": DONE, "marker": "o", "ms": 4.5, "label": done}),
        (paper, {"color": START, "marker": "D", "ms": 5, "label": "paper’s settings"}),
        (again, {"color": INK, "marker": "o", "mfc": "none", "ms": 8, "label": "trained again on fresh seeds"}),
        (rest and "pruned" in states, {"color": MUTED, "marker": "|", "label": "stopped early"}),
        (rest and "failed" in states, {"color": FAILED, "marker": "x", "label": "failed"}),
    ]
    return [Line2D([], [], ls="", **look) for there, look in entries if there]
