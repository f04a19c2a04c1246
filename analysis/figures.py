"""The study's figures: they take tidy tables, open no file, and return a matplotlib Figure made without pyplot.

An arm keeps its colour, marker and dash in every figure (`drawing.looks`). `narrow=True` gives the figure for a phone's
width, its panels below each other. Each figure has an `..._alt`: what it shows, for a reader who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from pandas import DataFrame

from analysis import drawing
from analysis.drawing import DASHES, INK, MUTED, Look, looks
from analysis.flags import unranked
from analysis.layout import levels
from analysis.names import SCORES, arm_name, metric_name, number, percent


@drawing.styled
def label_efficiency(
    table: DataFrame,
    *,
    metric: str,
    arms: Sequence[str] = (),
    seen: Mapping[float, int] | None = None,
    narrow: bool = False,
) -> Figure:
    """Test score against the share of the training labels (log axis): seeds as points, their mean as a line an arm.

    Args:
        table: the tidy label_efficiency table.
        arms: the study's arms in order, which fixes their looks; the table's where not given.
        seen: labelled images at each fraction, named below it.
    """
    table = _measured(table, metric)
    figure, (axes,) = drawing.panels(1, 1, narrow, height=3.1 if narrow else 3.4)
    drawn = looks(arms or table["arm"])
    fractions = levels(table, "label_fraction")
    for arm, runs in _by_arm(table, drawn):
        x = runs["label_fraction"] * math.exp(drawing.apart(arm, drawn))
        drawing.scores(axes, x, _shown(runs, metric), drawn[arm])
    axes.set_xscale("log")
    axes.set_xticks(fractions, [_fraction_label(f, seen) for f in fractions])
    axes.set_xticks([], minor=True)
    if fractions:
        axes.set_xlim(fractions[0] / 1.6, fractions[-1] * 1.6)
    axes.set_xlabel("training labels used for fine-tuning")
    axes.set_ylabel(f"test {_unit(metric)}")
    drawing.legend(figure, drawn, table["arm"], narrow)
    return figure


def label_efficiency_alt(table: DataFrame, *, metric: str) -> str:
    """Each arm's mean score at each fraction."""
    return f"Line chart of test {metric_name(metric)} in percent against the share of training labels. " + _means(
        _measured(table, metric), "label_fraction", metric
    )


@drawing.styled
def reuse(table: DataFrame, *, arms: Sequence[str] = (), narrow: bool = False) -> Figure:
    """CKA per block before and after fine-tuning: a panel a kernel and label fraction.

    The grey band is what unrelated features reach: from the mean to the 95th percentile of the permutation null, the
    largest over arms and seeds. A hollow point is a value flagged as uninformative.
    """
    table = table[table["value"].notna()]
    kernels, fractions = levels(table, "metric"), levels(table, "label_fraction")
    across = 1 if narrow else max(1, len(fractions))
    figure, panels = drawing.panels(len(kernels) * len(fractions), across, narrow, height=2.15)
    drawn = looks(arms or table["arm"])
    cells = [(kernel, fraction) for kernel in kernels for fraction in fractions]
    for axes, (kernel, fraction) in zip(panels, cells, strict=True):
        part = table[(table["metric"] == kernel) & (table["label_fraction"] == fraction)]
        drawing.null_band(axes, part)
        for arm, runs in _by_arm(part, drawn):
            x = runs["block"].astype(float) + drawing.apart(arm, drawn)
            drawing.line(axes, x, runs["value"], drawn[arm], hollow=runs["uninformative"].fillna(False))
        axes.set_title(f"{_kernel_label(kernel)}, {percent(fraction)} of labels")
        axes.set_ylim(min(-0.03, float(part["value"].min()) - 0.03) if len(part) else -0.03, 1.05)
        drawing.block_axis(axes, table, "CKA")
    extra: list[Any] = [Patch(color=MUTED, alpha=0.25, lw=0, label="unrelated features")]
    if table["uninformative"].fillna(False).any():
        extra.append(Line2D([], [], color=MUTED, marker="o", mfc="none", ls="", label="uninformative"))
    drawing.legend(figure, drawn, table["arm"], narrow, extra)
    return figure


def reuse_alt(table: DataFrame) -> str:
    """Each arm's mean CKA per block on the first kernel and smallest fraction, and how many values are flagged."""
    table = table[table["value"].notna()]
    kernel, fraction = levels(table, "metric")[0], levels(table, "label_fraction")[0]
    first = table[(table["metric"] == kernel) & (table["label_fraction"] == fraction)]
    flagged = int(table["uninformative"].fillna(False).sum())
    return (
        f"Small charts of CKA against block, one for each of {table['metric'].nunique()} kernels and "
        f"{table['label_fraction'].nunique()} label fractions; {flagged} of {len(table)} values are uninformative. "
        f"{metric_name(kernel)} at {percent(fraction)} of labels, mean over seeds: {_means(first, 'block', kernel)}"
    )


@drawing.styled
def probing(table: DataFrame, *, metric: str, arms: Sequence[str] = (), narrow: bool = False) -> Figure:
    """Test score of a linear classifier on each block's features: a panel a label fraction."""
    table = _measured(table, metric)
    fractions = levels(table, "label_fraction")
    across = 1 if narrow else min(2, max(1, len(fractions)))
    figure, panels = drawing.panels(len(fractions), across, narrow, height=2.9)
    drawn = looks(arms or table["arm"])
    for axes, fraction in zip(panels, fractions, strict=True):
        for arm, runs in _by_arm(table[table["label_fraction"] == fraction], drawn):
            x = runs["block"].astype(float) + drawing.apart(arm, drawn)
            drawing.scores(axes, x, _shown(runs, metric), drawn[arm])
        if len(fractions) > 1:
            axes.set_title(f"{percent(fraction)} of labels")
        drawing.block_axis(axes, table, f"test {_unit(metric)}")
    drawing.legend(figure, drawn, table["arm"], narrow)
    return figure


def probing_alt(table: DataFrame, *, metric: str) -> str:
    """Each arm's mean score per block."""
    table = _measured(table, metric)
    most = levels(table, "label_fraction")[-1]
    return (
        f"Line chart of test {metric_name(metric)} in percent against block, of linear classifiers on frozen features "
        f"trained on {percent(most)} of the labels. " + _means(table[table["label_fraction"] == most], "block", metric)
    )


@drawing.styled
def distributions(curves: DataFrame, *, arms: Sequence[str] = (), output: str = "", narrow: bool = False) -> Figure:
    """Distribution of one output's test probabilities in each model and in the reference, with the KS gap between.

    Args:
        curves: what `representative` chose: columns arm, label_fraction, x, cdf, reference_cdf of one seed and output.
        output: the output's name, for the axis.
    """
    fractions = levels(curves, "label_fraction")
    drawn = looks(arms or curves["arm"])
    shown = [arm for arm in drawn if arm in set(curves["arm"])]
    cells = [(arm, f) for f in fractions for arm in shown]
    widest = min(1.0, math.ceil(10 * float(curves["x"].max())) / 10)  # many classes leave little for each
    across = min(2 if narrow else 4, max(1, len(shown)))
    figure, panels = drawing.panels(len(cells), across, narrow, height=1.75)
    for place, (axes, (arm, fraction)) in enumerate(zip(panels, cells, strict=True)):
        part = curves[(curves["arm"] == arm) & (curves["label_fraction"] == fraction)].sort_values("x")
        axes.set_title(drawing.short(arm_name(arm)), fontsize=8)
        axes.set(xlim=(-0.02 * widest, 1.02 * widest), ylim=(-0.02, 1.06))
        axes.set_xticks([0, widest / 2, widest], ["0", f"{widest / 2:g}", f"{widest:g}"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"] if place % across == 0 else [])
        if len(part):
            drawing.gap_between(axes, part, drawn[arm], f"{percent(fraction)} of labels")
    figure.supxlabel(f"predicted probability{f' of “{output}”' if output else ''}", fontsize=9, color=MUTED)
    figure.supylabel("share of images", fontsize=9, color=MUTED)
    keys = [
        Line2D([], [], color=MUTED, lw=1.2, label="reference model"),
        Line2D([], [], color=INK, lw=3, label="KS gap"),
    ]
    drawing.legend(figure, drawn, shown, narrow, keys)
    return figure


def distributions_alt(curves: DataFrame) -> str:
    """The greatest gap of each model."""
    gaps = curves.assign(gap=(curves["cdf"] - curves["reference_cdf"]).abs())
    found = gaps.groupby(["label_fraction", "arm"], sort=False)["gap"].max().reset_index().to_dict("records")
    text = "; ".join(f"{arm_name(g['arm'])} at {percent(g['label_fraction'])} {g['gap']:.2f}" for g in found)
    return (
        f"Small charts of cumulative distributions of a test probability beside the reference's. Greatest gaps: {text}."
    )


def representative(curves: DataFrame) -> DataFrame:
    """The rows of one seed and one output: the first seed that most models have, the output of median mean gap.

    Fractions of all labels are left out. The choice looks at no single arm, so it favours none.
    """
    small = curves[curves["label_fraction"] < 1]
    if small.empty:
        return small
    gap = (small["cdf"] - small["reference_cdf"]).abs().groupby([small["output"], small["arm"], small["seed"]]).max()
    ranked = gap.groupby(level=0).mean().sort_values(kind="stable")
    output = ranked.index[(len(ranked) - 1) // 2]
    models = small.groupby("seed")[["arm", "label_fraction"]].apply(lambda part: len(part.drop_duplicates()))
    chosen: DataFrame = small[(small["output"] == output) & (small["seed"] == models.idxmax())]
    return chosen


@drawing.styled
def losses(histories: Mapping[tuple[str, int], DataFrame], *, arms: Sequence[str] = (), narrow: bool = False) -> Figure:
    """Training losses of the pretrainings against epochs: InfoNCE of all arms, then a panel an arm's block losses.

    Args:
        histories: metrics.jsonl of each (arm, seed), a row a line of it; columns epoch, info_nce, mse_1, barlow_1, ...
    """
    drawn = looks(arms or [arm for arm, _ in histories])
    terms = block_losses(histories)
    figure, panels = drawing.panels(1 + len(terms), 1 if narrow else min(3, 1 + len(terms)), narrow, height=2.4)
    for (arm, _), history in histories.items():
        drawing.curve(panels[0], history, "info_nce", drawn[arm].colour, drawn[arm].dash)
    panels[0].set_title("InfoNCE")
    for axes, (arm, loss) in zip(panels[1:], terms, strict=True):
        mine = [history for (other, _), history in histories.items() if other == arm]
        for seed, history in enumerate(mine):
            for block, dash in zip((1, 2, 3, 4), DASHES, strict=True):
                name = str(block) if seed == 0 else ""
                drawing.curve(axes, history, f"{loss}_{block}", drawn[arm].colour, dash, name=name)
        axes.set_title(f"{drawing.short(arm_name(arm))}\nblock losses")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylabel("loss" if axes is panels[0] or narrow else "")
    keys = [
        Line2D([], [], color=MUTED, ls=d, lw=1.3, label=f"block {b}") for b, d in zip((1, 2, 3, 4), DASHES, strict=True)
    ]
    drawing.legend(figure, drawn, [arm for arm, _ in histories], narrow, keys if terms else (), markers=False)
    return figure


def losses_alt(histories: Mapping[tuple[str, int], DataFrame]) -> str:
    """First and last InfoNCE of each arm, averaged over seeds."""
    ends: dict[str, list[tuple[float, float]]] = {}
    for (arm, _), history in histories.items():
        values = history["info_nce"].dropna() if "info_nce" in history else pd.Series(dtype=float)
        if len(values):
            ends.setdefault(arm, []).append((float(values.iloc[0]), float(values.iloc[-1])))
    spans = {arm: np.mean(pairs, axis=0) for arm, pairs in ends.items()}
    text = "; ".join(f"{arm_name(arm)} from {a:.2f} to {b:.2f}" for arm, (a, b) in spans.items())
    return f"Line charts of training losses against epochs. InfoNCE, mean over seeds: {text}."


def block_losses(histories: Mapping[tuple[str, int], DataFrame]) -> list[tuple[str, str]]:
    """The (arm, `mse` or `barlow`) pairs that any history holds terms of, in the arms' order."""
    return list(
        dict.fromkeys(
            (arm, loss)
            for (arm, _), history in histories.items()
            for loss in ("mse", "barlow")
            if any(f"{loss}_{block}" in history for block in (1, 2, 3, 4))
        )
    )


def _measured(table: DataFrame, metric: str) -> DataFrame:
    return table[(table["metric"] == metric) & table["value"].notna()]


def _by_arm(table: DataFrame, drawn: Mapping[str, Look]) -> list[tuple[str, DataFrame]]:
    return [(arm, table[table["arm"] == arm]) for arm in drawn if (table["arm"] == arm).any()]


def _shown(runs: DataFrame, metric: str) -> DataFrame:
    return runs[["value", "low", "high"]].astype(float) * (100 if metric in SCORES else 1)


def _unit(metric: str) -> str:
    return f"{metric_name(metric)} (%)" if metric in SCORES else metric_name(metric)


def _kernel_label(kernel: str) -> str:
    return {"cka_linear": "Linear", "cka_rbf": "RBF", "cka_authors": "Authors' RBF"}.get(kernel, kernel)


def _fraction_label(fraction: float, seen: Mapping[float, int] | None) -> str:
    return percent(fraction) + (f"\n{seen[fraction]:,} images" if seen and fraction in seen else "")


def _means(table: DataFrame, column: str, metric: str) -> str:
    """`MoCo: 1% 61.2, 6% 78.1; ...`, means over seeds."""
    lines = []
    for arm in levels(table, "arm"):
        mine = table[table["arm"] == arm]
        means = mine.groupby(column)["value"].mean()
        word = percent if column == "label_fraction" else "block {}".format
        flagged = {x for x, part in mine.groupby(column) if unranked(part)}
        said = [f"{word(x)} {number(v, metric)}{' (uninformative)' if x in flagged else ''}" for x, v in means.items()]
        lines.append(f"{arm_name(arm)}: " + ", ".join(said))
    return "; ".join(lines) + "."
