"""One model's reliability diagram: how often what it is so and so sure of does happen, as bins and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from analysis import calibration
from ssl_core.data.dataset import Task


@dataclass(frozen=True)
class Bin:
    """Predictions whose probability lies in [low, high)."""

    low: float
    high: float
    n: int
    confidence: float  # mean probability
    happened: float  # share


def reliability(labels: NDArray[Any], probabilities: NDArray[Any], task: Task, *, bins: int = 10) -> list[Bin]:
    """Bins of equal width that hold a prediction, ascending.

    Binary: of the positive class's probability, against the share of positives. Multi-class: of the largest
    probability, against the share of correct answers. Multi-label: as binary, all labels together.
    """
    counted = calibration.reliability(labels, probabilities, task, bins=bins)
    return [
        Bin(b / bins, (b + 1) / bins, int(n), float(confidence), float(happened))
        for b, (n, confidence, happened) in enumerate(zip(*counted, strict=True))
        if n > 0
    ]


def draw(splits: Mapping[str, Sequence[Bin]], path: Path) -> None:
    """Write the diagram of each named split's bins to an .svg or .png file."""
    import matplotlib
    from matplotlib.figure import Figure

    from analysis.drawing import COLOURS, MUTED, STYLE

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "intermoco"}):
        figure = Figure(figsize=(4.2, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
        most = max(b.n for bins in splits.values() for b in bins)
        for colour, (name, bins) in zip(COLOURS[1:], splits.items(), strict=False):
            axes.plot([b.confidence for b in bins], [b.happened for b in bins], color=colour, label=name)
            sizes = [8 + 60 * b.n / most for b in bins]
            axes.scatter([b.confidence for b in bins], [b.happened for b in bins], s=sizes, color=colour)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean probability", ylabel="share that happened", title="Calibration")
        axes.set_aspect("equal")
        axes.legend(loc="upper left")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=144)
