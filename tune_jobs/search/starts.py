"""Trials that a search begins with: the paper's settings, and those that a study names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssl_core.config import BLOCKS, PretrainConfig, scale_of
from ssl_core.errors import ConfigError, nearest
from tune_jobs.search.domain import as_number
from tune_jobs.search.parameter import SWITCH, Choice, Parameter, shown

if TYPE_CHECKING:
    from tune_jobs.search.space import Space

#: The paper's settings of its losses (sections 3.2, 4.1).
PAPER: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "mse": {"mse.scale": 0.25},
    "barlow": {"barlow.scale": 5e-5, "barlow.width": 2048, "barlow.layers": 3},
}
_WHERE = "search.warm_starts"


def paper_starts(space: Space, bases: Mapping[str, PretrainConfig]) -> list[tuple[str, dict[str, Any], list[str]]]:
    """See `Space.paper_starts`."""
    domain = next((p.domain for p in space.parameters if p.name == "loss"), None)
    starts = []
    for loss, settings in PAPER.items():
        plain = bases["none"].mse is None and bases["none"].barlow is None
        if not (domain.allows(loss) if domain is not None else loss == "none" and plain):
            continue
        name, notes = f"paper_{'moco' if loss == 'none' else loss}", list[str]()
        wanted: dict[str, Any] = {} if domain is None else {"loss": loss}
        if loss != "none":
            wanted |= dict.fromkeys(space.switches, True)
        values = _fill(space, wanted, settings, bases, notes)
        if loss != "none":
            notes += _fixed(space, loss, settings, bases[loss])
        starts.append((name, values, [f"{name}: {note}" for note in notes]))
    return starts


def _fixed(space: Space, loss: str, settings: Mapping[str, Any], base: PretrainConfig) -> list[str]:
    """Sentences on the paper's settings that the space does not vary and the base has otherwise."""
    notes = []
    varied = {p.path for p in space.parameters}
    for path, value in settings.items():
        own = _at(base, path)
        if path not in varied and own != value:
            notes.append(f"{path} is {shown(own)} in every trial; the paper's is {value:g}")
    section = getattr(base, loss)
    listed = tuple(int(s.removeprefix(SWITCH)) for s in space.switches) or section.blocks
    if set(listed) != set(BLOCKS):
        notes.append(f"the loss is on blocks {', '.join(map(str, listed))} at most; the paper's is on all four")
    return notes


def complete(space: Space, given: Any, bases: Mapping[str, PretrainConfig]) -> dict[str, Any]:
    """See `Space.complete`."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{_WHERE}: {given!r} names no settings; write them with their values, e.g. {{loss: mse}}")
    fixed: dict[str, Any] = {}
    by_key = {key: _expand(space, key, value) for key, value in given.items()}
    for key, values in by_key.items():
        if again := sorted(set(values) & set(fixed)):
            raise ConfigError(f"{_WHERE}.{key}: sets {again[0]} a second time; set it once")
        fixed |= values
    losses = next((p.domain for p in space.parameters if p.name == "loss"), None)
    if isinstance(losses, Choice) and "loss" not in fixed:
        if len(losses.options) > 1:
            raise ConfigError(f"{_WHERE}: {dict(given)} names no loss; add `loss`, which may be {losses}")
        fixed["loss"] = losses.options[0]
    values = _fill(space, fixed, {}, bases, [])
    for key, names in by_key.items():
        if not set(names) & set(values) and any(value is not False for value in names.values()):
            condition = space[next(iter(names))].condition
            raise ConfigError(f"{_WHERE}.{key}: has no place here, only where {condition}; leave it out, or set that")
    return values


def _expand(space: Space, key: Any, value: Any) -> dict[str, Any]:
    """One key of a warm start as parameter values; ConfigError where it is none, or where it cannot be the value."""
    where = f"{_WHERE}.{key}"
    if key == "blocks" and space.switches:
        listed = [int(s.removeprefix(SWITCH)) for s in space.switches]
        blocks = value if isinstance(value, list | tuple) else [value]
        for block in blocks:
            if isinstance(block, bool) or block not in listed:
                raise ConfigError(f"{where}: block {shown(block)} is not among those of search.space.blocks {listed}")
        return {f"{SWITCH}{b}": b in blocks for b in listed}
    if each := [p for p in space.parameters if p.block is not None and p.path == key]:
        if isinstance(value, list | tuple):
            raise ConfigError(f"{where}: write one number for all blocks, or {each[0].name} and so on for each")
        return {p.name: _allowed(where, p, value) for p in each}
    known = {p.name: p for p in space.parameters}
    if key not in known:
        keys = {p.path or p.name for p in space.parameters} | set(known) | ({"blocks"} if space.switches else set())
        raise ConfigError(f"{where}: does not vary in this search{nearest(str(key), keys)}")
    return {key: _allowed(where, known[key], value)}


def _allowed(where: str, parameter: Parameter, value: Any) -> Any:
    domain = parameter.domain
    if not domain.allows(value) and (number := as_number(value)) is not None:
        value = number
    if not domain.allows(value):
        near = domain.nearest(value)
        hint = "" if near is None else f"; the nearest is {shown(near)}"
        raise ConfigError(f"{where}: {shown(value)} is none of its values; search.space allows {domain}{hint}")
    return domain.settle(value)


def _fill(
    space: Space,
    fixed: Mapping[str, Any],
    settings: Mapping[str, Any],
    bases: Mapping[str, PretrainConfig],
    notes: list[str],
) -> dict[str, Any]:
    """Complete values: the fixed ones, else what `settings` say of a path, else the base's, or the nearest allowed."""
    values: dict[str, Any] = {}
    for parameter in space.parameters:
        if not parameter.active(values):
            continue
        name, domain = parameter.name, parameter.domain
        if name in fixed:
            values[name] = fixed[name]
            continue
        base = bases[space.loss({**values, **_switched_on(space, values)})]
        if parameter.path is None:
            values[name] = int(name.removeprefix(SWITCH)) in base.blocks
            continue
        own = _of_base(base, parameter)
        want = settings.get(parameter.path, own)
        near = domain.nearest(want)
        if near is None:  # no number, such as auto: the paper's is the next best
            near = domain.nearest(next((s[parameter.path] for s in PAPER.values() if parameter.path in s), None))
        values[name] = domain.middle if near is None and not domain.allows(want) else near
        if not domain.allows(want):
            whose = "the paper's" if parameter.path in settings else "the study's"
            notes.append(
                f"{name} is {shown(values[name])}, not {whose} {shown(want)}, which search.space does not allow"
            )
    return values


def _switched_on(space: Space, values: Mapping[str, Any]) -> dict[str, bool]:
    """Switches that are not decided yet count as on, so that a block's own default is that of the loss."""
    return {name: True for name in space.switches if name not in values and "loss" in values}


def _of_base(base: PretrainConfig, parameter: Parameter) -> Any:
    assert parameter.path is not None
    if parameter.block is None:
        own = _at(base, parameter.path)
        return list(own) if isinstance(own, tuple) else own
    section = getattr(base, parameter.path.partition(".")[0])
    return "auto" if section.scale == "auto" else scale_of(section.scale, section.blocks).get(parameter.block)


def _at(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = getattr(config, key)
    return config
