"""Figures of what was searched: how much each parameter mattered, and where the trials stood along it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from analysis import drawing
from analysis.drawing import COLOURS, INK, MUTED
from analysis.search import SearchFindings, completed, is_paper, ranked
from analysis.search_axis import OFF, Axis, varied
from analysis.search_figures import DONE, START, keys, points, rug, value_axis
from analysis.search_words import (
    EVALUATORS,
    axis_name,
    is_missing,
    objective_name,
    objective_text,
    parameter_name,
    parameter_text,
)

_EVALUATOR = (COLOURS[1], COLOURS[5])


@drawing.styled
def importances(search: SearchFindings, *, narrow: bool = False) -> Figure:
    """Importance of each parameter by each evaluator as bars, a panel an objective."""
    table = search.importances
    objectives = list(dict.fromkeys(table["objective"]))
    evaluators = list(dict.fromkeys(table["evaluator"]))
    most = int(table.groupby("objective")["parameter"].nunique().max())
    across = 1 if narrow or len(objectives) == 1 else 2
    figure, panels = drawing.panels(len(objectives), across, narrow, height=0.7 + 0.27 * most)
    tall = 0.8 / len(evaluators)
    for axes, objective in zip(panels, objectives, strict=True):
        part = table[table["objective"] == objective]
        order = part.groupby("parameter")["importance"].mean().sort_values(kind="stable").index
        place = {name: i for i, name in enumerate(order)}
        for k, evaluator in enumerate(evaluators):
            own = part[part["evaluator"] == evaluator]
            y = own["parameter"].map(place).to_numpy(float) + 0.4 - tall * (k + 0.5)
            axes.barh(y, own["importance"], height=0.9 * tall, color=_EVALUATOR[k % 2], lw=0)
        axes.set_yticks(range(len(order)), [drawing.short(parameter_name(str(name))) for name in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlim(0, max(0.05, 1.05 * float(part["importance"].max())))
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_xlabel("share of importance")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if len(objectives) > 1:
            axes.set_title(objective_name(str(objective), search.metric))
    patches = [
        Patch(color=_EVALUATOR[k % 2], lw=0, label=EVALUATORS.get(name, name)) for k, name in enumerate(evaluators)
    ]
    drawing.legend(figure, {}, (), narrow, patches)
    return figure


def importances_alt(search: SearchFindings) -> str:
    """The four greatest of each evaluator."""
    texts = []
    for (objective, evaluator), part in search.importances.groupby(["objective", "evaluator"], sort=False):
        top = part.sort_values("importance", ascending=False, kind="stable").head(4)
        pairs = zip(top["parameter"], top["importance"], strict=True)
        named = ", ".join(f"{parameter_name(str(name))} {value:.2f}" for name, value in pairs)
        texts.append(
            f"{EVALUATORS.get(str(evaluator), evaluator)}, {objective_name(str(objective), search.metric)}: {named}"
        )
    return f"Bars of each parameter’s share of importance. The greatest by {'; by '.join(texts)}."


@drawing.styled
def slices(search: SearchFindings, *, narrow: bool = False) -> Figure:
    """The first objective against each parameter, a panel a parameter; ticks at the foot where trials were stopped."""
    names, across = varied(search), 2 if narrow else 4
    figure, panels = drawing.panels(len(names), min(across, len(names)), narrow, height=1.75)
    done, pruned = completed(search.trials, search.main), search.trials[search.trials["state"] == "pruned"]
    for place, (axes, name) in enumerate(zip(panels, names, strict=True)):
        axis, column = Axis.of(name, search), f"params_{name}"
        active, stopped = (rows[~rows[column].map(is_missing).astype(bool)] for rows in (done, pruned))
        points(axes, search, active, axis.places(active[column], active["trial"]), search.main, size=13)
        rug(axes, axis.places(stopped[column], stopped["trial"]))
        axes.set_title(drawing.short(parameter_name(name)), fontsize=8)
        axis.draw(axes)
        value_axis(axes, search, search.main, label=False)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=7.5, labelleft=place % across == 0)
    figure.supylabel(axis_name(search.main, search.metric), fontsize=9, color=MUTED)
    drawing.legend(figure, {}, (), narrow, [key for key in keys(search) if key.get_label() != "failed"])
    return figure


def slices_alt(search: SearchFindings) -> str:
    """Where the best quarter of the completed trials stands on each parameter."""
    names, done = varied(search), ranked(search)
    top = done.head(max(1, len(done) // 4))
    spans = [f"{parameter_name(name)} {text}" for name in names if (text := _span(search, name, top))]
    return (
        f"Small charts of {objective_name(search.main, search.metric)} against each of {len(names)} parameters. "
        f"Of the best {len(top)} of {len(done)} completed trials: {'; '.join(spans)}."
    )


def _span(search: SearchFindings, name: str, top: DataFrame) -> str:
    values = [v for v in top[f"params_{name}"] if not is_missing(v)]
    if not values:
        return ""
    if Axis.of(name, search).options:
        counts = pd.Series([parameter_text(name, v) for v in values]).value_counts(sort=False)
        return ", ".join(f"{value} in {count}" for value, count in counts.items())
    low, high = min(map(float, values)), max(map(float, values))
    return f"{parameter_text(name, low)} to {parameter_text(name, high)}"


@drawing.styled
def parallel(search: SearchFindings, *, narrow: bool = False) -> Figure:
    """Parallel coordinates, a row a parameter and the objective last: a line a completed trial, the best in colour.

    A trial that does not have the parameter passes left of its row.
    """
    rows = [Axis.of(name, search) for name in varied(search)]
    figure, (axes,) = drawing.panels(1, 1, narrow, height=0.5 + (0.43 if narrow else 0.4) * (len(rows) + 1))
    done = ranked(search)
    values = done[search.main].to_numpy(float)
    span = float(np.ptp(values)) or 1.0
    best = _highlighted(len(done))
    for place, trial in reversed(list(enumerate(done.to_dict("records")))):
        x = [axis.share(trial[f"params_{axis.name}"]) for axis in rows]
        x.append((trial[search.main] - values.min()) / span if len(done) > 1 else 0.5)
        look: dict[str, Any] = {"color": MUTED, "lw": 0.7, "alpha": 0.45, "zorder": 2}
        if is_paper(trial["start"]):
            look = {"color": START, "lw": 1.3, "ls": (0, (4, 1.5)), "zorder": 3}
        elif place < best:
            look = {"color": DONE, "lw": 1.5, "alpha": 0.9, "zorder": 4}
        if place == 0:
            look = {**look, "color": INK, "lw": 2.2, "alpha": 1.0, "zorder": 5}
        axes.plot(x, range(len(x)), solid_joinstyle="round", **look)
    scores = [(0.0, values.min()), (1.0, values.max())] if len(done) > 1 else [(0.5, values[0])]
    ends = [(share, objective_text(float(value), search.main, search.metric)) for share, value in scores]
    for y, marks in enumerate([*(axis.marks() for axis in rows), ends]):
        axes.plot([0, 1], [y, y], color=MUTED, lw=0.7, zorder=1)
        for share, text in marks:
            axes.plot([share], [y], color=MUTED, marker="|", ms=5, zorder=1)
            last = share > 0.99  # beside the tick, where lines that run straight down leave it to be read
            axes.annotate(
                text,
                (share, y),
                xytext=(-3 if last else 3, -3),
                textcoords="offset points",
                ha="right" if last else "left",
                va="top",
                fontsize=7,
                color=MUTED,
                zorder=6,
            )
    names = [drawing.short(parameter_name(axis.name)) for axis in rows]
    axes.set_yticks(range(len(rows) + 1), [*names, axis_name(search.main, search.metric).replace("validation ", "")])
    axes.set_ylim(len(rows) + 0.55, -0.35)
    axes.set_xlim(OFF - 0.03, 1.06)
    missing = any(is_missing(v) for axis in rows for v in done[f"params_{axis.name}"])
    axes.set_xticks([OFF] if missing else [], ["not\nactive"] if missing else [])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    drawing.legend(figure, {}, (), narrow, _parallel_keys(done, best))
    return figure


def _highlighted(trials: int) -> int:
    """How many of the best stand out."""
    return max(1, min(5, trials // 4))


def _parallel_keys(done: DataFrame, best: int) -> list[Line2D]:
    found = [Line2D([], [], color=INK, lw=2.2, label=f"best, trial {done['trial'].iloc[0]}")]
    if best > 1:
        found.append(Line2D([], [], color=DONE, lw=1.5, label="next best" if best == 2 else f"next {best - 1}"))
    if done["start"].map(is_paper).any():
        found.append(Line2D([], [], color=START, lw=1.3, ls=(0, (4, 1.5)), label="paper’s settings"))
    if len(done) > best:
        found.append(Line2D([], [], color=MUTED, lw=0.7, label="other completed trials"))
    return found


def parallel_alt(search: SearchFindings) -> str:
    """The settings of the three best."""
    done, names = ranked(search), varied(search)
    texts = []
    for row in done.head(3).to_dict("records"):
        active = [name for name in names if not is_missing(row[f"params_{name}"])]
        settings = ", ".join(f"{parameter_name(n)} {parameter_text(n, row[f'params_{n}'])}" for n in active)
        value = objective_text(float(row[search.main]), search.main, search.metric)
        texts.append(f"trial {row['trial']} ({value}): {settings}")
    return f"A line for each of {len(done)} completed trials across {len(names)} parameters. {'; '.join(texts)}."
