"""Arms at the edges of a search space: what shows, before anything runs, that each value makes an arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ssl_core.config import PretrainConfig
from ssl_core.errors import ConfigError
from tune_jobs.search.conditions import needed
from tune_jobs.search.parameter import Choice, Parameter, shown

if TYPE_CHECKING:
    from tune_jobs.search.space import Space


def extremes(space: Space, bases: Mapping[str, PretrainConfig]) -> list[tuple[str, PretrainConfig]]:
    """See `Space.extremes`. Whatever lies between two ends that make arms makes one, too: all limits are intervals."""
    found = []
    for parameter in space.parameters:
        key = f"search.space.{parameter.path or parameter.name}"
        domain = parameter.domain
        for value in domain.values if isinstance(domain, Choice) else (domain.low, domain.high):
            examples = _examples(space, parameter, value)
            if not examples:
                raise ConfigError(f"{key}.when: its conditions never hold together: {parameter.condition}; change one")
            for example in examples:
                try:
                    arm = space.arm(example, bases)
                except ConfigError as error:
                    if str(error).startswith("search."):
                        raise
                    raise _blame(space, example, parameter, bases, error) from None
                found.append((f"{parameter.name} {shown(value)}", arm))
    return found


def _blame(
    space: Space, values: Mapping[str, Any], suspect: Parameter, bases: Mapping[str, PretrainConfig], error: ConfigError
) -> ConfigError:
    """The error under the key of the first value that makes no arm alone: the suspect's, or another's beside it."""
    there = [p for p in space.parameters if p.name in values]
    found = suspect
    for one in (suspect, *there):
        beside = [replace(p, when={}, any_block=False) for p in there if p.path in (None, one.path)]
        try:
            replace(space, parameters=tuple(beside)).arm({p.name: values[p.name] for p in beside}, bases)
        except ConfigError as own:
            found, error = one, own
            break
    return ConfigError(f"search.space.{found.path or found.name}: {shown(values[found.name])} makes no arm: {error}")


def _examples(space: Space, parameter: Parameter, value: Any) -> list[dict[str, Any]]:
    """Complete values with this one among them, for each loss that it goes with; switches are on where they may be."""
    known = {p.name: p for p in space.parameters}
    wanted = {**needed(parameter, known), parameter.name: (value,)}
    losses = known["loss"].domain.options if "loss" in known and isinstance(known["loss"].domain, Choice) else ()
    found = []
    for loss in wanted.get("loss", losses) or (None,):
        values: dict[str, Any] = {}
        for name, one in known.items():
            if one.active(values):
                allowed = (loss,) if name == "loss" else wanted.get(name, (one.domain.middle,))
                on = name in space.switches and (name not in wanted or True in allowed)
                values[name] = on or allowed[0]
        if parameter.name in values:
            found.append(values)
    return found
