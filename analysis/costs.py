"""What one model costs to make: its pretraining and its fine-tuning, from what finished stages took."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from pandas import DataFrame

from analysis.names import metric_name
from analysis.tables import Finished

#: What a model may be judged by besides its quality; less is better.
COSTS = ("accelerator_seconds", "wall_seconds", "peak_memory")
_WORDS = {"accelerator_seconds": "accelerator time", "wall_seconds": "wall time", "peak_memory": "peak memory"}
_COLUMNS = ("arm", "mode", "seed", *COSTS, "devices")


def model_costs(finished: Sequence[Finished], *, modes: Sequence[str], fraction: float) -> DataFrame:
    """A row for each model fine-tuned in one of `modes` at a label fraction: arm, mode, seed, costs, devices.

    accelerator_seconds and wall_seconds are those of its pretraining and of its fine-tuning together. A pretraining
    that several models share counts for each of them in full: it is what making this one model takes. Attempts that
    were lost with a node or a worker are left out.

    peak_memory is the largest of the two stages in bytes, of those that measured it: on an accelerator of its tensors,
    on a CPU of the process. devices: the distinct accelerators (or "cpu") that the stages ran on, joined by " + ".

    A cost is NaN where a stage that the model needs is not there, and where none measured it.
    """
    pretrained = {_model(s): s for s in finished if s.kind == "pretrain"}
    rows = []
    for stage in finished:
        mode = stage.labels.get("mode")
        if stage.kind != "finetune" or mode not in modes or stage.labels.get("label_fraction") != fraction:
            continue
        needed = [stage] if mode == "scratch" else [pretrained.get(_model(stage)), stage]
        there = [s for s in needed if s is not None]
        whole = len(there) == len(needed)
        peaks = [s.peak_memory for s in there if s.peak_memory is not None]
        rows.append(
            {
                "arm": stage.labels["arm"],
                "mode": mode,
                "seed": stage.labels["seed"],
                "accelerator_seconds": sum(s.accelerator_seconds for s in there) if whole else math.nan,
                "wall_seconds": sum(s.wall_seconds for s in there) if whole else math.nan,
                "peak_memory": float(max(peaks)) if peaks else math.nan,
                "devices": " + ".join(sorted({s.device for s in there if s.device})),
            }
        )
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def comparable(objectives: Sequence[str], measures: DataFrame) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(objectives that compare all models, sentences on those that do not).

    Accelerator time says nothing where a model was made without an accelerator: wall time takes its place. What some
    model lacks is left out, but for the first objective: who did not measure must not look good.
    """
    used: list[str] = []
    notes: list[str] = []
    for objective in objectives:
        wanted = objective
        if objective == "accelerator_seconds" and (measures[objective] == 0).any():
            every = bool((measures[objective] == 0).all())
            notes.append(
                f"{'The models were' if every else 'Some models were'} made without an accelerator, so cost is wall "
                "time: a figure of this machine and of what else it was doing."
            )
            wanted = "wall_seconds"
        if wanted != objectives[0] and measures[wanted].isna().any():
            lacking = ", ".join(str(arm) for arm in dict.fromkeys(measures.loc[measures[wanted].isna(), "arm"]))
            notes.append(f"Of {lacking} the {objective_name(wanted)} is not known, so it decides nothing here.")
        elif wanted not in used:
            used.append(wanted)
    devices = sorted({str(name) for name in measures["devices"] if name})
    if len(devices) > 1 and set(used) & set(COSTS):
        notes.append(f"Models were made on different hardware ({'; '.join(devices)}), so their costs compare roughly.")
    return tuple(used), tuple(notes)


def objective_name(objective: str) -> str:
    """An objective in words, as in the middle of a sentence; `score` is for whoever knows the metric to name."""
    return _WORDS.get(objective, objective.replace("_", " ") if objective == "worst_class" else metric_name(objective))


def _model(stage: Finished) -> tuple[object, object]:
    return stage.labels["arm"], stage.labels["seed"]
