"""One parameter of a search space: what it may be, and under which conditions it is there at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

#: The switch of a block in the space: on where the losses look at that block.
SWITCH = "block_"


def stored(option: Any) -> Any:
    """An option as a sampler and a storage know it: lists and mappings as JSON text, all else as it is."""
    return json.dumps(option) if isinstance(option, list | tuple | Mapping) else option


def same(one: Any, other: Any) -> bool:
    """Equality that tells true from 1, and a tuple not from a list."""
    one, other = (list(v) if isinstance(v, tuple) else v for v in (one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float, not true or false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond floats
        return False


@dataclass(frozen=True)
class Choice:
    """One of several options, as the study's author wrote them."""

    options: tuple[Any, ...]

    @property
    def values(self) -> tuple[Any, ...]:
        """The options as they are stored."""
        return tuple(stored(o) for o in self.options)

    def option(self, value: Any) -> Any:
        """The option that is stored as `value`, or equals it; StopIteration where none does."""
        return next(o for o in self.options if same(o, value) or same(stored(o), value))

    def allows(self, value: Any) -> bool:
        return any(same(o, value) or same(stored(o), value) for o in self.options)

    def settle(self, value: Any) -> Any:
        """An allowed value as it is stored."""
        return stored(self.option(value))

    def nearest(self, value: Any) -> Any:
        """The stored value closest to `value`: by ratio where all are positive. None where they cannot be compared."""
        if self.allows(value):
            return self.settle(value)
        numbers = [o for o in self.options if is_number(o)]
        if not is_number(value) or not numbers:
            return None
        if value > 0 and all(n > 0 for n in numbers):
            return min(numbers, key=lambda n: abs(math.log(n / value)))
        return min(numbers, key=lambda n: abs(n - value))

    @property
    def middle(self) -> Any:
        return self.values[0]

    def distribution(self) -> Any:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def suggest(self, trial: Any, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)

    def __str__(self) -> str:
        return " or ".join(shown(o) for o in self.options)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both allowed; whole ones where both ends are ints."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def allows(self, value: Any) -> bool:
        if not is_number(value) or not self.low <= value <= self.high or (self.whole and value != int(value)):
            return False
        steps = (value - self.low) / (self.step or 1)
        return self.step is None or abs(steps - round(steps)) < 1e-8

    def settle(self, value: float) -> float:
        """An allowed value as a number of the range's kind."""
        return int(value) if self.whole else float(value)

    def nearest(self, value: Any) -> Any:
        """The allowed value closest to `value`; None where it is no number."""
        if not is_number(value):
            return None
        clipped = min(max(value, self.low), self.high)
        if self.step is not None and not self.allows(clipped):
            steps = min(round((clipped - self.low) / self.step), int((self.high - self.low) / self.step + 1e-8))
            clipped = float(Decimal(str(self.low)) + steps * Decimal(str(self.step)))
        return round(clipped) if self.whole else float(clipped)

    @property
    def middle(self) -> Any:
        return self.nearest(math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2)

    def distribution(self) -> Any:
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: Any, name: str) -> Any:
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def __str__(self) -> str:
        return f"{self.low:.10g} to {self.high:.10g}" + (
            f" in steps of {self.step:.10g}" if self.step is not None else ""
        )


def shown(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


@dataclass(frozen=True)
class Parameter:
    """A setting that varies. It is there only where all of its conditions hold."""

    name: str
    domain: Choice | Range
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # parameter to the stored values it may have
    path: str | None = None  # of the arm's field; None for the loss and the switches of blocks
    any_block: bool = False  # whether some switch must be on, too
    block: int | None = None  # where it is one block's scale

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether it is there beside `values` of the parameters before it; an absent one meets no condition."""
        for name, allowed in self.when.items():
            if name not in values or not any(same(values[name], value) for value in allowed):
                return False
        return not self.any_block or any(values[name] for name in values if name.startswith(SWITCH))

    @property
    def condition(self) -> str:
        """Its conditions in words: `loss is mse or both and a block is on`; empty where it is always there."""
        words = [f"{name} is {' or '.join(shown(v) for v in allowed)}" for name, allowed in self.when.items()]
        return " and ".join([*words, *(["a block is on"] if self.any_block else [])])
