"""A search space: which settings vary, over what, and under which conditions.

A study declares it (`tune_jobs.search.declaration` reads that), a sampler draws from it parameter by parameter, and
each draw makes an arm: the base of its loss with the drawn values laid on it. Parameters whose conditions do not hold
are not drawn, so no sampler models values that change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ssl_core.config import PretrainConfig, scale_of
from ssl_core.errors import ConfigError, nearest
from tune_jobs.schema import plain
from tune_jobs.search.parameter import SWITCH, Choice, Parameter, Range

__all__ = ["LOSSES", "Choice", "Parameter", "Range", "Space"]

#: What `loss` may be, and the block losses that are on with each.
LOSSES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "mse": ("mse",),
    "barlow": ("barlow",),
    "both": ("mse", "barlow"),
}


@dataclass(frozen=True)
class Space:
    """The parameters that vary, each after those its conditions name. `raw` is what was read, for YAML."""

    parameters: tuple[Parameter, ...]
    raw: Mapping[str, Any]

    @classmethod
    def read(cls, raw: Any, bases: Mapping[str, PretrainConfig]) -> Space:
        """The space that a study declares; `bases` by loss are what its arms start from.

        ConfigError where it cannot be, or where a value of it makes no arm; names the key, the value and the remedy.
        """
        from tune_jobs.search.declaration import check_bases, read

        space = cls(read(raw, bases), plain(raw))
        check_bases(space, bases)
        space.extremes(bases)
        return space

    def extremes(self, bases: Mapping[str, PretrainConfig]) -> list[tuple[str, PretrainConfig]]:
        """Arms with each option and each end of a range, and what they have, e.g. `barlow.width 64`; else middling.

        For checks of what arms may be. ConfigError, with key and value, where one cannot be.
        """
        from tune_jobs.search.extremes import extremes

        return extremes(self, bases)

    def __getitem__(self, name: str) -> Parameter:
        """The parameter of this name; KeyError where there is none."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    @property
    def switches(self) -> tuple[str, ...]:
        """Names of the blocks' switches, ascending."""
        return tuple(p.name for p in self.parameters if p.name.startswith(SWITCH))

    @property
    def logs(self) -> frozenset[str]:
        """Parameters that are drawn on a log axis."""
        return frozenset(p.name for p in self.parameters if isinstance(p.domain, Range) and p.domain.log)

    def distributions(self) -> dict[str, Any]:
        """Optuna's distribution of each parameter, whatever its conditions."""
        return {p.name: p.domain.distribution() for p in self.parameters}

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Values that Optuna's trial draws, of the parameters that are there; lists are JSON text."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.name] = parameter.domain.suggest(trial, parameter.name)
        return values

    def loss(self, values: Mapping[str, Any]) -> str:
        """The loss that is on: `none` where no block is."""
        loss: str = values.get("loss", "none")
        return "none" if self.switches and not self.blocks(values) else loss

    def blocks(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """Blocks whose switch is on, ascending."""
        return tuple(sorted(int(n.removeprefix(SWITCH)) for n in self.switches if values.get(n)))

    def arm(self, values: Mapping[str, Any], bases: Mapping[str, PretrainConfig]) -> PretrainConfig:
        """The base of the loss with `values` laid on it. Values of parameters that are not there count for nothing.

        ConfigError for an unknown parameter, one that is there but has no value, and an arm that cannot be.
        """
        names = [p.name for p in self.parameters]
        for name in values:
            if name not in names:
                raise ConfigError(f"search.space: {name} is no parameter of this search{nearest(name, names)}")
        loss = self.loss(values)
        arm = plain(bases[loss])
        if self.switches:
            for section in LOSSES[loss]:
                arm[section] |= _on_blocks(section, getattr(bases[loss], section), self.blocks(values))
        scales: dict[str, dict[int, float]] = {}
        for parameter in self._there(values):
            value = values[parameter.name]
            option = parameter.domain.option(value) if isinstance(parameter.domain, Choice) else value
            assert parameter.path is not None
            if parameter.block is not None:
                scales.setdefault(parameter.path, {})[parameter.block] = option
            else:
                _lay(arm, parameter.path, option)
        for path, by_block in scales.items():  # equal scales are one number, so that equal arms are written equally
            each = [by_block[block] for block in arm[path.partition(".")[0]]["blocks"]]
            _lay(arm, path, each[0] if len(set(each)) == 1 else each)
        return _build(arm)

    def _there(self, values: Mapping[str, Any]) -> list[Parameter]:
        """Parameters of the arm's fields that are there; ConfigError where one has no value or an impossible one."""
        there, seen = [], dict[str, Any]()
        for parameter in self.parameters:
            if not parameter.active(seen):
                continue
            name = parameter.name
            if name not in values:
                raise ConfigError(f"search.space.{name}: a trial has no value for it; it needs {parameter.domain}")
            if not parameter.domain.allows(values[name]):
                raise ConfigError(f"search.space.{name}: {values[name]!r} is not allowed; allowed: {parameter.domain}")
            seen[name] = values[name]
            if parameter.path is not None:
                there.append(parameter)
        return there

    def paper_starts(self, bases: Mapping[str, PretrainConfig]) -> list[tuple[str, dict[str, Any], list[str]]]:
        """The paper's settings that the space allows: name, complete values, and sentences on what is not the paper's.

        `paper_moco`: no loss; `paper_mse`: scale 0.25; `paper_barlow`: scale 5e-5, three layers of 2048; all blocks.
        """
        from tune_jobs.search.starts import paper_starts

        return paper_starts(self, bases)

    def complete(self, given: Mapping[str, Any], bases: Mapping[str, PretrainConfig]) -> dict[str, Any]:
        """A warm start in the keys of the space, e.g. {loss: mse, blocks: [3, 4], mse.scale: 1}, as parameter values.

        What is not given takes the base's value, or the nearest allowed one. ConfigError for what cannot be given.
        """
        from tune_jobs.search.starts import complete

        return complete(self, given, bases)


def _on_blocks(section: str, own: Any, blocks: Sequence[int]) -> dict[str, Any]:
    """What a loss of the base becomes on these blocks: a scale a block is picked apart."""
    if not isinstance(own.scale, tuple):
        return {"blocks": list(blocks)}
    by_block = scale_of(own.scale, own.blocks)
    if missing := [b for b in blocks if b not in by_block]:
        raise ConfigError(
            f"search.bases: {section}.scale {list(own.scale)} says nothing of block {missing[0]}, which "
            f"search.space.blocks may switch on; give one scale for all, or vary `{section}.scale` with `each: block`"
        )
    return {"blocks": list(blocks), "scale": [by_block[b] for b in blocks]}


def _lay(arm: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        arm = arm[key]
    arm[last] = value


@cache
def _reader() -> TypeAdapter[PretrainConfig]:
    return TypeAdapter(PretrainConfig)  # dear to make, and an arm is made for every suggestion


def _build(values: Mapping[str, Any]) -> PretrainConfig:
    try:
        return _reader().validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        text = str(cause) if cause is not None else first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(text) from None
