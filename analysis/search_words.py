"""A search's objectives, trials and parameters as readers see them: in tables, figures and sentences alike."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.names import SCORES, arm_name, metric_name, number
from analysis.packed import duration

_OBJECTIVES = {
    "ece": "calibration error (ECE)",
    "seconds": "training time",
    "accelerator_seconds": "accelerator time",
    "peak_memory": "peak memory",
}
_UNITS = {"seconds": "s", "accelerator_seconds": "s", "peak_memory": "MiB"}
EVALUATORS = {"fanova": "fANOVA", "ped_anova": "PED-ANOVA"}


def objective_name(objective: str, metric: str) -> str:
    return f"validation {metric_name(metric)}" if objective == "score" else _OBJECTIVES.get(objective, objective)


def axis_name(objective: str, metric: str) -> str:
    """The objective with its unit."""
    unit = "%" if objective == "score" and metric in SCORES else _UNITS.get(objective)
    return objective_name(objective, metric) + (f" ({unit})" if unit else "")


def scale(objective: str, metric: str) -> float:
    """What an objective is multiplied by to be drawn: scores in percent, memory in MiB."""
    if objective == "score" and metric in SCORES:
        return 100.0
    return 2.0**-20 if objective == "peak_memory" else 1.0


def objective_text(value: float | None, objective: str, metric: str) -> str:
    """A value with the decimals and the unit that it bears; `–` for none."""
    if value is None or not math.isfinite(value):
        return "–"
    match objective:
        case "score":
            return number(value, metric)
        case "seconds" | "accelerator_seconds":
            return duration(value)
        case "peak_memory":
            return f"{value / 2**20:,.0f} MiB"
        case _:
            return number(value, objective)


def is_missing(value: Any) -> bool:
    """A parameter that is not active: None, or the NaN that a table makes of it."""
    return value is None or (not isinstance(value, str | list | dict | tuple) and bool(pd.isna(value)))


def parameter_name(name: str) -> str:
    """`block_2` is `block 2`; a setting keeps its path, as the study writes it."""
    return name.replace("_", " ") if name.removeprefix("block_").isdigit() else name


def parameter_text(name: str, value: Any) -> str:
    """A parameter's value in few signs; `not active` for none."""
    if is_missing(value):
        return "not active"
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return ("on" if value else "off") if name.startswith("block_") else ("yes" if value else "no")
    if isinstance(value, float) or hasattr(value, "dtype"):
        return f"{float(value):.3g}".replace("e-0", "e-").replace("-", "−", 1 if float(value) < 0 else 0)
    if isinstance(value, str) and value[:1] in "[{":
        return _unquoted(value)
    return str(value)


def _unquoted(text: str) -> str:
    """Lists and mappings are stored as JSON."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False).replace('"', "")
    except ValueError:
        return text


def described(params: Mapping[str, Any]) -> str:
    """Active parameters in a line: `mse at blocks 2, 3; mse.scale 0.31; learning_rate 0.5`."""
    active = {name: value for name, value in params.items() if not is_missing(value)}
    switches = [name for name in active if name.startswith("block_")]
    rest = [f"{n} {parameter_text(n, value)}" for n, value in active.items() if n != "loss" and n not in switches]
    words = []
    if "loss" in active:
        words.append("no block loss" if active["loss"] == "none" else str(active["loss"]))
    if switches:
        on = [name.removeprefix("block_") for name in switches if parameter_text(name, active[name]) == "on"]
        words.append(f"at block{'' if len(on) == 1 else 's'} {', '.join(on)}" if on else "at no block")
    return "; ".join([" ".join(words), *rest] if words else rest)


def start_name(start: str) -> str:
    """`paper_mse` is the paper's arm; `start_2` is the study's own second warm start."""
    if start.startswith("paper_"):
        loss = start.removeprefix("paper_")
        return f"paper’s {arm_name('moco' if loss == 'moco' else f'moco_{loss}')}"
    return f"own start {start.removeprefix('start_')}" if start.startswith("start_") else start


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
