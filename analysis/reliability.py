"""The reliability diagram: how often a model is right at each probability that it states, seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas import DataFrame

from analysis import calibration, drawing
from analysis.drawing import MUTED, looks
from analysis.layout import levels
from analysis.names import arm_name, number, percent
from analysis.predictions import FILE, read
from analysis.tables import Finished

BINS = 10
#: A bin of fewer images is left out: the share of so few says little.
FEWEST = 5
#: More arms than these would hide each other.
MOST = 6
COLUMNS = ("arm", "label_fraction", "seed", "bin", "n", "stated", "observed")


def measured(finished: Sequence[Finished], arms: Sequence[str]) -> DataFrame:
    """`COLUMNS`, one row a bin with images, of every model whose weights were all trained; of the first `MOST` arms.

    Reads the test predictions of the finetune stages that are there. `stated` is the mean probability of a bin,
    `observed` the mean outcome.
    """
    runs = [s for s in finished if s.kind == "finetune" and s.labels.get("mode") in ("full", "scratch")]
    full = {s.labels.get("arm") for s in runs if s.labels["mode"] == "full"}
    runs = [s for s in runs if s.labels["mode"] == "full" or s.labels.get("arm") not in full]
    shown = [arm for arm in arms if any(s.labels.get("arm") == arm for s in runs)][:MOST]
    rows = []
    for stage in runs:
        if stage.labels.get("arm") not in shown or not (stage.folder / FILE).is_file():
            continue
        found = read(stage.folder, "test")
        bins = calibration.reliability(found.labels, found.probabilities, found.task, bins=BINS)
        model = [stage.labels[name] for name in ("arm", "label_fraction", "seed")]
        rows += [(*model, b, *each) for b, each in enumerate(zip(*bins, strict=True)) if each[0] > 0]
    return DataFrame(rows, columns=list(COLUMNS))


@drawing.styled
def reliability(table: DataFrame, scores: DataFrame, *, arms: Sequence[str] = (), narrow: bool = False) -> Figure:
    """Share that came true against stated probability, a panel a label fraction: means and range over seeds.

    Args:
        table: what `measured` gave.
        scores: the tidy ks table, for the calibration error (ECE) that stands in each panel.
    """
    fractions = levels(table, "label_fraction")
    drawn = looks(arms or table["arm"])
    figure, panels = drawing.panels(len(fractions), 1 if narrow else min(3, len(fractions)), narrow, height=3.3)
    for place, (axes, fraction) in enumerate(zip(panels, fractions, strict=True)):
        axes.plot([0, 1], [0, 1], color=MUTED, lw=1, zorder=1)
        part = table[table["label_fraction"] == fraction]
        for arm, look in drawn.items():
            bins = _over_seeds(part[part["arm"] == arm])
            x, y, colour = bins["stated"], bins["observed"], look.colour
            axes.vlines(x, bins["low"], bins["high"], color=colour, lw=1, zorder=3)
            axes.plot(x, y, color=colour, marker=look.marker, ms=3.5, ls=look.dash, lw=1.3, zorder=3)
        axes.set_title(f"{percent(fraction)} of labels")
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
        axes.set_xlabel("\n".join(["stated probability", *_errors(scores, fraction, drawn)]), fontsize=8.5)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_ylabel("share that came true" if narrow or place == 0 else "")
    keys = [
        Line2D([], [], color=MUTED, lw=1, label="perfectly calibrated"),
        Line2D([], [], color=MUTED, marker="|", ls="", ms=9, label="lowest to highest seed"),
    ]
    drawing.legend(figure, drawn, table["arm"], narrow, keys)
    return figure


def reliability_alt(table: DataFrame, scores: DataFrame) -> str:
    """Each model's mean stated and observed probability, and its calibration error."""
    said = []
    for fraction, arm in table[["label_fraction", "arm"]].drop_duplicates().itertuples(index=False):
        part = table[(table["label_fraction"] == fraction) & (table["arm"] == arm)]
        total = part["n"].sum()
        stated, observed = (float((part["n"] * part[name]).sum() / total) for name in ("stated", "observed"))
        error = _error(scores, fraction, arm)
        ended = "" if error is None else f", ECE {number(error, 'ece')}"
        said.append(f"{arm_name(arm)} at {percent(fraction)} states {stated:.2f}, {observed:.2f} came true{ended}")
    return f"Charts of the share that came true against the stated probability. On average {'; '.join(said)}."


def _over_seeds(part: DataFrame) -> DataFrame:
    """stated, observed, low, high of each bin that holds enough images in the mean seed."""
    if part.empty:
        return DataFrame(columns=["stated", "observed", "low", "high"], dtype=float)
    enough = part.groupby("bin")["n"].transform("mean") >= FEWEST
    bins = part[enough].groupby("bin")
    return DataFrame(
        {
            "stated": bins["stated"].mean(),
            "observed": bins["observed"].mean(),
            "low": bins["observed"].min(),
            "high": bins["observed"].max(),
        }
    )


def _errors(scores: DataFrame, fraction: float, arms: Iterable[str]) -> list[str]:
    """A line an arm: its calibration error."""
    found = {arm: _error(scores, fraction, arm) for arm in arms}
    lines = [f"{drawing.short(arm_name(arm))}: ECE {number(e, 'ece')}" for arm, e in found.items() if e is not None]
    return ["", *lines[:MOST]] if lines else []


def _error(scores: DataFrame, fraction: float, arm: str) -> float | None:
    """Mean over seeds of a model's calibration error; None where it was not measured."""
    at = (scores["metric"] == "ece") & (scores["label_fraction"] == fraction) & (scores["arm"] == arm)
    value = scores.loc[at, "value"].mean()
    return None if pd.isna(value) else float(value)
