"""A study's resolved values as text to read: what arms share once, what is an arm's own beside its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ssl_core.data.config import OWN_KEYS, DatasetConfig
from tune_jobs.coherence import label_fraction
from tune_jobs.protocol import departures
from tune_jobs.schema import plain
from tune_jobs.search.config import SearchConfig
from tune_jobs.study import SET_BY_STUDY, SHARED, Study
from tune_jobs.tracking_client import mask


def overview(study: Study) -> str:
    """YAML of every value that decides the study's result, after protocol, file and overrides."""
    arms = {name: _without(plain(arm), "seed") for name, arm in study.arms.items() if arm is not None}
    shared = _common(list(arms.values()))
    own = {name: "scratch" if arm is None else _rest(arms[name], shared) for name, arm in study.arms.items()}
    downstream = plain(study.downstream)
    downstream["labels"].pop("salt")
    modes = {mode: _without(downstream.pop(mode), *SET_BY_STUDY, *SHARED, "augment") for mode in ("linear", "full")}
    both = _common(list(modes.values()))
    by_mode = {mode: _rest(values, both) for mode, values in modes.items()}
    downstream |= {"linear and full": both, **{mode: values for mode, values in by_mode.items() if values}}
    apart = {name: _rest(plain(down), plain(study.downstream)) for name, down in study.tuned_apart.items()}
    packed = {name: _rest(plain(config), plain(study.dataset)) for name, config in study.packed_apart.items()}
    values = {
        "dataset": _dataset(study.dataset),
        "seeds": list(study.seeds),
        "pretrain": shared,
        "arms": {f"{name} (baseline)" if name == study.baseline else name: value for name, value in own.items()},
        "downstream": downstream,
        **({"downstream of arms": apart} if apart else {}),
        **({"dataset of arms": packed} if packed else {}),
        "probe": _analysis(study.probe, study.probe_fractions),
        "reuse": _analysis(study.reuse, study.reuse_fractions),
        "ks": plain(study.ks),
        **({"search": _search(study.search, shared)} if study.search else {}),
        "decision": {**plain(study.decision), "fraction": label_fraction(study.decision, study.downstream)},
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=118, default_flow_style=None)


def protocol_lines(study: Study) -> list[str]:
    """The protocol, and what the study sets otherwise."""
    found = departures(study)
    if not found:
        return [f"protocol {study.protocol}, as it stands"]
    return [f"protocol {study.protocol}, but for", *(f"  {key}: {text}" for key, text in found.items())]


def _dataset(config: DatasetConfig) -> dict[str, Any]:
    """What is set and is a setting of this source."""
    own = {key for key, sources in OWN_KEYS.items() if config.source in sources}
    return {k: v for k, v in plain(config).items() if v is not None and (k in own or k not in OWN_KEYS)}


def _search(search: SearchConfig, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The search; of what a trial starts from what arms do not share, and each loss as it is before it is varied."""
    said = _without(plain(search), "space", "bases", "score", "storage")
    both, base = search.bases["both"], _without(plain(search.bases["none"]), "seed", "mse", "barlow")
    return {
        "space": plain(search.space.raw),
        **said,
        "score": _without(plain(search.score), "seed", "labels", "bootstrap"),
        "storage": None if search.storage is None else mask(search.storage),
        "trials start from": {**_rest(base, shared), "mse": plain(both.mse), "barlow": plain(both.barlow)},
    }


def _analysis(config: Any, fractions: Sequence[float]) -> dict[str, Any] | None:
    if config is None:
        return None
    return {"fractions": list(fractions), **_without(plain(config), "fraction", "seed", "labels")}


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def _common(many: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of them hold alike, nested."""
    if not many:
        return {}
    shared: dict[str, Any] = {}
    for key, first in many[0].items():
        values = [each.get(key) for each in many]
        if all(isinstance(value, Mapping) for value in values):
            if inner := _common([value for value in values if value is not None]):
                shared[key] = inner
        elif all(value == first for value in values):
            shared[key] = first
    return shared


def _rest(values: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without what is in `shared`."""
    rest: dict[str, Any] = {}
    for key, value in values.items():
        if key in shared and isinstance(value, Mapping) and isinstance(shared[key], Mapping):
            if inner := _rest(value, shared[key]):
                rest[key] = inner
        elif key not in shared or shared[key] != value:
            rest[key] = value
    return rest
