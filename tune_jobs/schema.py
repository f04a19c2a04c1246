"""Raw YAML values to typed configurations, and back. Unknown keys are errors that name the nearest valid ones."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ssl_core.errors import ConfigError, nearest

T = TypeVar("T")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`; mappings merge key by key, everything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def build(
    cls: type[T],
    raw: Mapping[str, Any],
    where: str,
    *,
    shared: Mapping[str, Any] | None = None,
    unset: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> T:
    """`cls` from raw YAML values laid over `shared` ones. `unset` names fields that the study sets, not its author."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: expected keys and values, found {raw!r}")
    check_keys(cls, raw, where, unset=unset, also=also)
    values = {
        key: merge(plain(value), raw[key])
        if isinstance(raw.get(key), dict) and dataclasses.is_dataclass(value)
        else raw.get(key, value)
        for key, value in (shared or {}).items()
    }
    try:
        return TypeAdapter(cls).validate_python({**raw, **values})
    except ValidationError as error:
        first = error.errors()[0]
        # a dataclass in a union reports its own name as a step of the path: not a key that the author wrote
        path = [str(step) for step in first["loc"] if str(step)[:1].islower() or str(step).isdigit()]
        key = ".".join([*([where] if where else []), *path])
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            text = str(cause).removeprefix(f"{path[-1]}: ") if path else str(cause)
            raise ConfigError(f"{key}: {text}" if key else text) from None
        if first["type"] == "missing":
            raise ConfigError(f"{key}: is missing; every study needs it") from None
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{key}: {message}, found {first['input']!r}") from None


def check_keys(
    cls: Any, raw: Mapping[Any, Any], where: str, *, unset: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> None:
    """ConfigError at the first key that `cls`, or a section within it, does not have; names the nearest it has."""
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)} - set(unset) | set(also)
    prefix = f"{where}." if where else ""
    for key, value in raw.items():
        if key in unset:
            raise ConfigError(f"{prefix}{key}: is set by the study itself (seeds, fractions, shared sections)")
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: no such key{nearest(str(key), fields)}")
        section = _dataclass_of(hints.get(key))
        if section is not None and isinstance(value, Mapping):
            check_keys(section, value, f"{prefix}{key}")


def _dataclass_of(hint: Any) -> Any:
    """The dataclass that a field's type is, or is optionally; None for any other type."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((o for o in options if dataclasses.is_dataclass(o)), None)


def plain(value: Any) -> Any:
    """Dataclasses as mappings and tuples as lists, ready for YAML."""
    match value:
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case Mapping():
            return {k: plain(v) for k, v in value.items()}
        case tuple() | list():
            return [plain(v) for v in value]
        case _:
            return value


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their dotted path."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
