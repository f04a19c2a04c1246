"""A searched parameter as an axis: where its values stand, whatever kind they are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from analysis import drawing
from analysis.search import SearchFindings
from analysis.search_words import is_missing, parameter_text

#: Whole numbers of at most so many values are choices.
_FEW = 6
#: Where a trial without the parameter passes, as a share of the axis.
OFF = -0.13


@dataclass(frozen=True)
class Axis:
    """One parameter. options: its values in order, as text, of a choice or a switch; else low and high of a range."""

    name: str
    options: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    @classmethod
    def of(cls, name: str, search: SearchFindings) -> Axis:
        """As wide as the values that were tried."""
        found = [v for v in search.trials[f"params_{name}"] if not is_missing(v)]
        log = name in search.logs
        if found and all(_is_number(v) for v in found):
            values = sorted({float(v) for v in found})
            if log or len(values) > _FEW or not all(v.is_integer() for v in values):
                return cls(name, low=values[0], high=values[-1], log=log and values[0] > 0)
            return cls(name, tuple(parameter_text(name, v) for v in values))
        texts = dict.fromkeys(parameter_text(name, v) for v in found)
        return cls(name, tuple(sorted(texts, key=lambda text: (text not in ("off", "no", "none"), text))))

    def share(self, value: Any) -> float:
        """Place of a value between 0 and 1; `OFF` where the parameter is not active."""
        if is_missing(value):
            return OFF
        if self.options:
            return (self.options.index(parameter_text(self.name, value)) + 0.5) / len(self.options)
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, float(value)))
        return (at - low) / (high - low) if high > low else 0.5

    def places(self, values: Iterable[Any], trials: Iterable[Any]) -> NDArray[np.float64]:
        """x of values in a chart of this parameter; points of one option stand beside each other, by their trial."""
        if not self.options:
            return np.array([float(v) for v in values])
        found = [self.options.index(parameter_text(self.name, v)) for v in values]
        aside = [0.44 * ((0.618034 * int(trial)) % 1.0 - 0.5) for trial in trials]
        return np.add(found, aside, dtype=np.float64)

    def marks(self) -> list[tuple[float, str]]:
        """What to write at which share of the axis."""
        if self.options:
            return [((i + 0.5) / len(self.options), drawing.short(text)) for i, text in enumerate(self.options)]
        ends = (self.low, self.high) if self.high > self.low else (self.low,)
        return [(self.share(end), parameter_text(self.name, end)) for end in ends]

    def draw(self, axes: Axes) -> None:
        """Scale and ticks of a small chart."""
        if self.options:
            texts = [text if len(text) <= 9 else f"{text[:8]}…" for text in self.options]
            axes.set_xticks(range(len(texts)), texts)
            axes.set_xlim(-0.5, len(texts) - 0.5)
        elif self.log:
            axes.set_xscale("log")
            wide = self.high / self.low
            axes.set_xlim(self.low / wide**0.06 / 1.02, self.high * wide**0.06 * 1.02)
            subs = (1.0,) if wide > 40 else (1.0, 3.0)
            axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            wide = (self.high - self.low) or max(abs(self.low), 1.0)
            axes.set_xlim(self.low - 0.06 * wide, self.high + 0.06 * wide)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def varied(search: SearchFindings) -> list[str]:
    """Parameters of which more than one value was tried."""
    columns = {name: search.trials[f"params_{name}"] for name in search.parameters}
    texts = {name: {parameter_text(name, v) for v in column if not is_missing(v)} for name, column in columns.items()}
    return [name for name, found in texts.items() if len(found) > 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool | np.bool_)


def _power(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}".replace("e-0", "e−").replace("e+0", "e")
