"""Protocols: the three settings of every switch on which the paper, its published code and good practice differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from tune_jobs.schema import leaves, merge, plain

if TYPE_CHECKING:
    from tune_jobs.study import Study

Protocol = Literal["paper", "authors", "recommended"]
PROTOCOLS: tuple[Protocol, ...] = ("paper", "authors", "recommended")
FOLDER = Path(__file__).parent / "protocols"


def base(protocol: Protocol, source: str | None) -> dict[str, Any]:
    """The protocol's settings for a dataset source, in the schema of a study's YAML."""
    file = _read(protocol)
    return merge(file["all"], file.get(source, {}) if source else {})


@cache
def _read(protocol: Protocol) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((FOLDER / f"{protocol}.yaml").read_text())
    return values


def departures(study: Study) -> dict[str, str]:
    """What a study sets otherwise than the protocol it names: dotted key -> `its value (protocol: the other)`.

    Settings that arms do not share are named with their arm. Which arms there are, and what they put losses on, is the
    study's question and no departure.
    """
    from tune_jobs.resolution import resolve

    settings = base(study.protocol, study.dataset.source)
    dataset = {**plain(study.dataset), "size": None, "crop": None, **settings.get("dataset", {})}
    fractions = {name: list(getattr(study.downstream, name)) for name in ("fractions", "linear_fractions")}
    arms = {name: _skeleton(config) for name, config in study.arms.items()}
    pure = resolve(
        {
            "study": study.study,
            "dataset": dataset,
            "protocol": study.protocol,
            "arms": arms,
            "downstream": fractions,
            "ks": None,
        }
    )
    ours, theirs = leaves(_settings(study)), leaves(_settings(pure))
    found: dict[str, str] = {}
    for key, value in ours.items():
        other = theirs.get(key)
        if value != other:
            found[key] = f"{_word(value)} ({study.protocol}: {_word(other)})"
    return _shared(found, [name for name, arm in study.arms.items() if arm is not None])


def _skeleton(config: Any) -> Any:
    """An arm with the same losses on the same blocks and nothing else of its own."""
    if config is None:
        return "scratch"
    losses = {"mse": config.mse, "barlow": config.barlow}
    return {name: {"blocks": list(loss.blocks)} for name, loss in losses.items() if loss is not None}


def _settings(study: Study) -> dict[str, Any]:
    from tune_jobs.study import SET_BY_STUDY, SHARED

    down = study.downstream
    left_out = (*SET_BY_STUDY, *SHARED, "augment", "normalise", "precision")
    tuning = {
        mode: {k: v for k, v in plain(getattr(down, mode)).items() if k not in left_out} for mode in ("linear", "full")
    }
    return {
        "dataset": {"size": study.dataset.size, "crop": study.dataset.crop},
        "arms": {name: plain(arm) for name, arm in study.arms.items() if arm is not None},
        "downstream": {**{name: plain(getattr(down, name)) for name in SHARED}, **tuning},
        **({} if study.reuse is None else {"reuse": plain(study.reuse)}),
    }


def _shared(found: Mapping[str, str], arms: list[str]) -> dict[str, str]:
    """What most arms set alike is named once, as `pretrain.key`; what an arm sets on its own, as `arms.<name>.key`."""
    texts: dict[str, list[str]] = {}  # setting -> of each arm that departs in it
    for key, text in found.items():
        if key.startswith("arms."):
            texts.setdefault(key.split(".", 2)[2], []).append(text)
    result: dict[str, str] = {}
    for key, text in found.items():
        if not key.startswith("arms."):
            result[key] = text
            continue
        setting = key.split(".", 2)[2]
        usual, count = Counter(texts[setting]).most_common(1)[0]
        result[f"pretrain.{setting}" if text == usual and 2 * count > len(arms) else key] = text
    return result


def _word(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list():
            return "[" + ", ".join(map(_word, value)) + "]"
        case _:
            return str(value)
