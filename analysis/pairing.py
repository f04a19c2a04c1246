"""Whether the arms of a comparison saw the same labels, seed by seed, by what their stages wrote down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pandas import DataFrame

from analysis.tables import Finished

SEED_AND_LABELS, SEED = "seed and labels", "seed"
_Run = tuple[str, int, str, float]  # arm, seed, mode, label fraction


def paired_by(judged: DataFrame, finished: Sequence[Finished]) -> DataFrame:
    """verdicts.csv with a last column `paired_by`.

    `seed and labels` where in every seed that both arms ran the two saw the labels of the same images, or of all;
    `seed` where they did not, as with `labels.per_arm`: the test stays exact, since each arm's draw is as likely as the
    other's, but part of every difference is the luck of the draw, and there is no pairing by label subset. Missing
    where a stage left no samples.json.
    """
    seen = _seen(finished)
    told = [_told(row, seen) for row in judged.to_dict("records")]
    return judged.assign(paired_by=pd.Series(told, index=judged.index, dtype="string"))


def _seen(finished: Sequence[Finished]) -> dict[_Run, str]:
    """A digest of the labelled images that each fine-tuning or probe on a part of the labels saw."""
    found = {}
    for stage in finished:
        path = stage.folder / "samples.json" if stage.kind in ("finetune", "probe") else None
        if path is None or float(str(stage.labels["label_fraction"])) >= 1 or not path.is_file():
            continue
        ids = sorted(map(str, json.loads(path.read_text(encoding="utf-8"))["ids"]))
        found[_run(stage.labels)] = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    return found


def _run(labels: Mapping[str, Any]) -> _Run:
    mode = "full" if labels["mode"] == "scratch" else str(labels["mode"])
    return (str(labels["arm"]), int(labels["seed"]), mode, round(float(labels["label_fraction"]), 6))


def _told(row: Mapping[Any, Any], seen: Mapping[_Run, str]) -> str | None:
    fraction = round(float(row["label_fraction"]), 6)
    if fraction >= 1:
        return SEED_AND_LABELS
    first, second = (
        {seed: digest for (arm, seed, of, at), digest in seen.items() if (arm, of, at) == (name, row["mode"], fraction)}
        for name in (row["arm"], row["against"])
    )
    common = first.keys() & second.keys()
    if not common:
        return None
    return SEED_AND_LABELS if all(first[seed] == second[seed] for seed in common) else SEED
