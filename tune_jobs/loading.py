"""A study's YAML file, or a packaged one, with the command line's overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ssl_core.errors import ConfigError, nearest
from tune_jobs.resolution import resolve
from tune_jobs.study import Study

PRESETS = Path(__file__).parent / "presets"
#: Values of a study, those behind an alias counted each time: no study has as many, aliases of aliases soon do.
MOST_VALUES = 100_000


def load(source: str, overrides: Sequence[str] = ()) -> Study:
    """The study that `source` names (a YAML file, or a packaged preset), with `key.path=value` overrides applied.

    Raises ConfigError for an unknown study or key (naming the nearest valid ones) and for an impossible value.
    """
    raw = _read(source)
    for override in overrides:
        _override(raw, override)
    return resolve(raw)


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"} and not path.is_file():
        presets = {p.stem: p for p in PRESETS.glob("*.yaml")}
        if source not in presets:
            raise ConfigError(f"study {source!r} is neither a YAML file nor a packaged study{nearest(source, presets)}")
        path = presets[source]
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"study {source}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"study {source}: not valid YAML: {' '.join(str(error).split())}") from None
    if _more_than(MOST_VALUES, raw):
        raise ConfigError(f"study {source}: it says more than {MOST_VALUES:,} values; look at its aliases (*name)")
    if not isinstance(raw, dict):
        raise ConfigError(f"study {source}: expected keys and values at the top level, found {type(raw).__name__}")
    return raw


def _more_than(most: int, value: Any) -> bool:
    """Whether there are more values in it, as it would be written out: without end, where it holds itself."""
    left, seen = [value], 0
    while left and seen <= most:
        value = left.pop()
        seen += 1
        left.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    return seen > most


def _override(raw: dict[str, Any], override: str) -> None:
    """Apply one `--set key.path=value`; the value is read as YAML."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {override!r}: write key=value, e.g. --set seeds=[0,1,2] or --set pretrain.epochs=10")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML") from error
    if _more_than(MOST_VALUES, value):
        raise ConfigError(
            f"--set {path.strip()}: it says more than {MOST_VALUES:,} values; look at its aliases (*name)"
        )
    *parents, last = _keys(path.strip())
    node = raw
    for depth, key in enumerate(parents):
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {'.'.join(parents[: depth + 1])} is {child!r}, it holds no keys")
        node = child
    node[last] = value


def _keys(path: str) -> list[str]:
    """The keys of a dotted path. Those of a search's space are paths of their own: `search.space.mse.scale`."""
    space = "search.space."
    return ["search", "space", path.removeprefix(space)] if path.startswith(space) else path.split(".")
