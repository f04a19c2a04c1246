"""Conditions of a search space: a parameter is there only where others have certain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ssl_core.errors import ConfigError, nearest
from tune_jobs.search.parameter import SWITCH, Choice, Parameter, Range, same, shown

_WHERE = "search.space"


def conditioned(parameter: Parameter, raw: Any, domains: Mapping[str, Choice | Range]) -> Parameter:
    """The parameter with the conditions that its author wrote, beside those it has of itself."""
    where = f"{_WHERE}.{parameter.path or parameter.name}.when"
    when = dict(parameter.when)
    for name, values in _read(where, raw, domains).items():
        when[name] = _both(when[name], values) if name in when else values
        if not when[name]:
            own = replace(parameter, any_block=False).condition
            raise ConfigError(f"{where}.{name}: never holds, as {parameter.path} needs that {own}; leave it out")
    return replace(parameter, when=when)


def _read(where: str, raw: Any, domains: Mapping[str, Choice | Range]) -> dict[str, tuple[Any, ...]]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping) or not raw:
        raise ConfigError(f"{where}: {raw!r} names no parameter with its values; write e.g. {{loss: [mse, both]}}")
    return {name: _read_one(f"{where}.{name}", name, value, domains) for name, value in raw.items()}


def _read_one(where: str, name: Any, value: Any, domains: Mapping[str, Choice | Range]) -> tuple[Any, ...]:
    """Stored values of a parameter at which a condition holds."""
    domain = domains.get(name)
    if domain is None:
        if name == "blocks":
            raise ConfigError(f"{where}: name the switch of one block, e.g. `{SWITCH}3: true`")
        raise ConfigError(f"{where}: is no parameter of this search{nearest(str(name), domains)}")
    if isinstance(domain, Range) and not domain.whole:
        raise ConfigError(f"{where}: is drawn from {domain}, where no two trials agree; name a parameter with options")
    values = value if isinstance(value, list | tuple) and not domain.allows(value) else [value]
    if not values:
        raise ConfigError(f"{where}: names no value; name at least one, of {domain}")
    for one in values:
        if not domain.allows(one):
            raise ConfigError(f"{where}: {shown(one)} is none of its values; it may be {domain}")
    return tuple(domain.settle(one) for one in values)


def _both(some: Sequence[Any], others: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(v for v in some if any(same(v, other) for other in others))


def in_order(parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """Each parameter after those its conditions name, else as written. ConfigError where conditions go in a circle."""
    done: dict[str, Parameter] = {}
    waiting = {p.name: p for p in parameters}
    while waiting:
        ready = next((p for p in waiting.values() if not set(p.when) & set(waiting)), None)
        if ready is None:
            raise ConfigError(f"{_WHERE}: conditions go in a circle: {_circle(waiting)}; leave one of them out")
        done[ready.name] = waiting.pop(ready.name)
    for parameter in done.values():
        needed(parameter, done)
    return tuple(done.values())


def _circle(waiting: Mapping[str, Parameter]) -> str:
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in waiting[path[-1]].when if name in waiting))
    return " needs ".join(path[path.index(path[-1]) :])


def needed(parameter: Parameter, known: Mapping[str, Parameter]) -> dict[str, tuple[Any, ...]]:
    """Values that other parameters must have where it is there: by its conditions, and by those of what they name.

    ConfigError where these cannot hold together.
    """
    found: dict[str, tuple[Any, ...]] = {}
    todo, seen = [parameter], {parameter.name}
    while todo:
        one = todo.pop()
        for name, values in one.when.items():
            found[name] = _both(found[name], values) if name in found else values
            if not found[name]:
                raise ConfigError(
                    f"{_WHERE}.{parameter.path or parameter.name}.when: never holds: {one.name} is there only where "
                    f"{one.condition}, and another condition wants {name} otherwise; leave one of them out"
                )
            if name not in seen:
                seen.add(name)
                todo.append(known[name])
    return found
