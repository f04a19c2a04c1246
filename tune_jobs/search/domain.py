"""What one setting may be, as a study writes it: options in a list, or a range; checked against the setting's type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ssl_core.config import PretrainConfig
from ssl_core.errors import ConfigError, nearest
from tune_jobs.schema import plain
from tune_jobs.search.parameter import SWITCH, Choice, Range, is_number, same, shown, stored

_EXAMPLE = "options in a list, e.g. [0.1, 0.3], or a range, e.g. {low: 0.01, high: 1, log: true}"
_KEYS = ("low", "high", "log", "step", "choices", "when", "each")


@dataclass(frozen=True)
class Field:
    """What numbers a field of the arm takes; neither: it takes words, lists, or true and false."""

    fractions: bool = False
    whole: bool = False
    switch: bool = False  # true and false
    lists: bool = False


def field_of(where: str, path: Any) -> Field:
    """The field of an arm at this dotted path; ConfigError where there is none, or where it does not vary."""
    if not isinstance(path, str):
        raise ConfigError(f"{where}: {path!r} is no setting; write the dotted path of one, e.g. `moco.temperature`")
    section: Any = PretrainConfig
    walked: list[str] = []
    for key in path.split("."):
        hints = typing.get_type_hints(section) if section is not None else {}
        known = [f.name for f in dataclasses.fields(section)] if section is not None else []
        if key not in known:
            raise _unknown(where, path, walked, known)
        walked.append(key)
        members = _members(hints[key])
        section = next((m for m in members if dataclasses.is_dataclass(m)), None)
    if section is not None:
        names = ", ".join(f"{path}.{f.name}" for f in dataclasses.fields(section) if (path, f.name) not in _ELSEWHERE)
        raise ConfigError(f"{where}: is a section; write each field that varies by its path: {names}")
    head, _, last = path.rpartition(".")
    if (head, last) in _ELSEWHERE:
        raise ConfigError(f"{where}: {_ELSEWHERE[head, last]}")
    lists = any(typing.get_origin(m) is tuple for m in members)
    return Field(fractions=float in members, whole=int in members, switch=bool in members, lists=lists)


#: Fields that vary in another way, and how.
_ELSEWHERE: Mapping[tuple[str, str], str] = {
    ("", "seed"): "seeds of a trial are no parameter; name its replicates in search.seeds",
    ("mse", "blocks"): "both losses look at the same blocks; list those that may be on in search.space.blocks",
    ("barlow", "blocks"): "both losses look at the same blocks; list those that may be on in search.space.blocks",
}


def _unknown(where: str, path: str, walked: list[str], known: list[str]) -> ConfigError:
    if path.startswith(SWITCH):
        return ConfigError(f"{where}: list the blocks that may be on in search.space.blocks, e.g. `blocks: [3, 4]`")
    if path.rpartition("_")[0] in ("mse.scale", "barlow.scale"):
        own = path.rpartition("_")[0]
        return ConfigError(f"{where}: write `{own}: {{low: ..., high: ..., each: block}}` for one scale a block")
    if not known:
        return ConfigError(f"{where}: {'.'.join(walked)} is no section; write what it may be at `{'.'.join(walked)}`")
    last = path.rpartition(".")[2]
    elsewhere = (
        [last] if last in ("loss", "blocks") else [n for n in _leaves(PretrainConfig) if f".{n}".endswith(f".{last}")]
    )
    if elsewhere:
        return ConfigError(f"{where}: no such setting; did you mean {' or '.join(elsewhere)}?")
    prefix = ".".join([*walked, ""]) if walked else ""
    names = [f"{prefix}{k}" for k in known] + ([] if walked else ["loss", "blocks"])
    return ConfigError(f"{where}: no such setting{nearest(path, names)}")


def _leaves(cls: Any, prefix: str = "") -> list[str]:
    """Dotted paths of all fields that are no section."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        section = next((m for m in _members(hint) if dataclasses.is_dataclass(m)), None)
        if typing.get_origin(hint) is not typing.ClassVar:
            found += [f"{prefix}{name}"] if section is None else _leaves(section, f"{prefix}{name}.")
    return found


def _members(hint: Any) -> tuple[Any, ...]:
    """The types in a union, or the one type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(m for option in typing.get_args(hint) for m in _members(option))
    return (hint,)


def read_domain(where: str, raw: Any, field: Field) -> tuple[Choice | Range, Any, bool]:
    """The domain of a setting, the conditions written with it, and whether there is one a block."""
    if isinstance(raw, list | tuple):
        return _choice(where, raw, field), None, False
    if raw is None:
        raise ConfigError(f"{where}: is empty; write {_EXAMPLE}")
    if not isinstance(raw, Mapping):
        raise ConfigError(
            f"{where}: {shown(raw)} does not vary; write {_EXAMPLE}; a setting that all trials share goes to `pretrain`"
        )
    for key in raw:
        if key not in _KEYS:
            raise ConfigError(f"{where}.{key}: no such key{nearest(str(key), _KEYS)}")
    each = raw.get("each")
    if each not in (None, "block"):
        raise ConfigError(
            f"{where}.each: {each!r} is nothing to have one each of; write `each: block`, or leave it out"
        )
    domain: Choice | Range
    if "choices" in raw:
        if extra := [k for k in ("low", "high", "log", "step") if k in raw]:
            raise ConfigError(f"{where}.{extra[0]}: goes with a range, not with choices; write one of the two")
        if not isinstance(raw["choices"], list | tuple):
            raise ConfigError(f"{where}.choices: {raw['choices']!r} is no list; write e.g. [64, 128]")
        domain = _choice(where, raw["choices"], field)
    else:
        domain = _range(where, raw, field)
    if "when" in raw and raw["when"] is None:
        raise ConfigError(f"{where}.when: is empty; name a condition, e.g. {{loss: [mse, both]}}, or leave it out")
    return domain, raw.get("when"), each is not None


def _choice(where: str, raw: Any, field: Field) -> Choice:
    options = [_option(where, plain(option), field) for option in raw]
    if not options:
        raise ConfigError(f"{where}: has no options; name at least one, e.g. [64, 128], or leave it out")
    for at, option in enumerate(options):
        if any(same(option, other) or same(stored(option), stored(other)) for other in options[:at]):
            raise ConfigError(f"{where}: {shown(option)} is named twice; name each option once")
    return Choice(tuple(options))


def _option(where: str, option: Any, field: Field) -> Any:
    """An option as the field takes it: 1e-5, a word to YAML, as a number."""
    if isinstance(option, bool) and not field.switch:
        raise ConfigError(f"{where}: {shown(option)} is none of its values; true and false are for switches alone")
    if field.switch and not isinstance(option, bool):
        raise ConfigError(f"{where}: {shown(option)} is neither true nor false; write [true, false]")
    numeric = field.fractions or field.whole
    if field.lists and not numeric and not isinstance(option, list | None):
        raise ConfigError(f"{where}: {shown(option)} is no list, as each option is, e.g. [[0.2, 1], [0.6, 1]]")
    for number in option if isinstance(option, list) else [option]:
        if str(number).strip().lstrip("+-.").lower() in ("inf", "infinity", "nan"):
            raise ConfigError(f"{where}: {number} is no finite number; leave it out")
    number = as_number(option) if numeric else None
    if number is None:
        return option
    return number if field.fractions or number != int(number) else int(number)


def as_number(raw: Any) -> Any:
    """A finite number from a number or from text, which 1e-5 is to YAML; None where it is none."""
    if isinstance(raw, str):
        try:
            raw = float(raw)
        except ValueError:
            return None
    return raw if is_number(raw) else None


def _range(where: str, raw: Mapping[str, Any], field: Field) -> Range:
    if not field.fractions and not field.whole:
        example = "[true, false]" if field.switch else "[[0.2, 1], [0.6, 1]]" if field.lists else "[this, that]"
        raise ConfigError(f"{where}: has no range, as it is no number; list its options, e.g. {example}")
    for key in ("low", "high"):
        if raw.get(key) is None:
            raise ConfigError(f"{where}.{key}: is missing; write {_EXAMPLE}")
    low, high = (_number(f"{where}.{key}", raw[key], field) for key in ("low", "high"))
    log, step = raw.get("log", False), raw.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log: {log!r} is neither true nor false")
    if low > high:
        raise ConfigError(f"{where}: low {shown(low)} is above high {shown(high)}; exchange the two")
    if low == high:
        raise ConfigError(f"{where}: low and high are both {shown(low)}, so nothing varies; widen it")
    if log and low <= 0:
        raise ConfigError(f"{where}.low: {shown(low)} has no logarithm; set low above 0, or leave out log")
    if step is not None:
        if log:
            raise ConfigError(f"{where}.step: {step!r} goes with an even axis, not with log; leave out one of the two")
        step = _number(f"{where}.step", step, field)
        if step <= 0:
            raise ConfigError(f"{where}.step: {shown(step)} must be above 0")
        _check_step(where, low, high, step)
    return Range(low, high, log, step)


def _check_step(where: str, low: float, high: float, step: float) -> None:
    ends = [Decimal(str(end)) for end in (low, high, step)]
    count, rest = divmod(ends[1] - ends[0], ends[2])
    if count == 0:
        raise ConfigError(
            f"{where}.step: {shown(step)} is longer than the range from {shown(low)} to {shown(high)}; shorten it"
        )
    if rest:
        raise ConfigError(
            f"{where}.step: steps of {shown(step)} from {shown(low)} do not reach {shown(high)}; "
            f"use high {ends[0] + count * ends[2]}, or another step"
        )


def _number(where: str, raw: Any, field: Field) -> float:
    """A finite number: a whole one where the field takes no others."""
    number = as_number(raw)
    if number is None:
        raise ConfigError(f"{where}: {shown(raw)} is no finite number; write e.g. 0.01 or 1.0e-5")
    if field.fractions:
        return float(number)
    if number != int(number):
        raise ConfigError(f"{where}: {shown(number)} is no whole number, and this setting takes no others")
    return int(number)
