"""What a model card says in numbers, from the finished stage: test scores whole, by class, by group; calibration.

The only part of a promotion that opens test predictions. It judges nothing: the gates are done by then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.calibration import brier, ece
from analysis.model_calibration import Bin, reliability
from analysis.predictions import Predictions, read
from analysis.strata import Groups, OfClass, by_class, by_group
from ssl_core.seeding import derive
from tune_jobs.promotion.packing import as_served

if TYPE_CHECKING:
    from tune_jobs.promotion.candidate import Candidate


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of one split are to be believed."""

    ece: float
    brier: float
    bins: Sequence[Bin]
    n: int


@dataclass(frozen=True)
class Measured:
    """Test scores and calibration of one model."""

    scores: Sequence[Mapping[str, Any]]  # metric, value, low, high, n: the study's metric first
    classes: Sequence[OfClass]
    groups: Groups
    calibration: Mapping[str, Calibration]  # by split: validation, test
    replicates: int


def measure(candidate: Candidate, folder: Path, class_names: Sequence[str], temperature: float) -> Measured:
    """Of the fine-tuning in `folder`, its probabilities as they will be served: scaled where `temperature` is not 1."""
    config = candidate.stage.config
    val, test = (as_served(read(folder, split), temperature) for split in ("val", "test"))
    groups = test.groups if config["resample"] == "groups" else test.ids
    drawn: dict[str, Any] = {"groups": groups, "replicates": config["bootstrap"]}
    drawn["seed"] = derive(config["seed"], "bootstrap")
    about = (test.labels, test.probabilities, test.task)
    return Measured(
        scores=_scores(folder, test, candidate, drawn, temperature),
        classes=by_class(*about, **drawn, names=class_names),
        groups=by_group(*about, **drawn),
        calibration={"validation": _calibration(val), "test": _calibration(test)},
        replicates=config["bootstrap"],
    )


def _scores(
    folder: Path, test: Predictions, candidate: Candidate, drawn: Mapping[str, Any], temperature: float
) -> Sequence[Mapping[str, Any]]:
    """As the study reported them; anew where the temperature is no longer 1, for it moves scores of several classes."""
    if temperature == 1:
        rows: list[Mapping[str, Any]] = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        return rows
    from ssl_core.metrics import rows as score

    return score(test.labels, test.probabilities, test.task, metric=candidate.metric, **drawn)


def _calibration(found: Predictions) -> Calibration:
    about = (found.labels, found.probabilities, found.task)
    return Calibration(ece(*about), brier(*about), reliability(*about), len(found.ids))
