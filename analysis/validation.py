"""What fine-tuned models do on the validation images: all that a choice between arms may look at.

Test predictions lie in the same files and are never opened here (design: selection looks at validation only).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas import DataFrame

from analysis.calibration import brier, ece
from analysis.predictions import Predictions, read
from analysis.tables import Finished, frame
from ssl_core.metrics import applicable, score
from ssl_core.scores import scorer, sides

WORST_CLASS = "worst_class"
_CLASS_COLUMNS = ("class_index", "class_name", "metric", "value", "n", "positives", "stage")


def validation_table(dataset: str, finished: Sequence[Finished]) -> DataFrame:
    """A row a measure of every finetune stage's validation predictions, in the modes linear, full and scratch.

    Columns are those of every tidy table (`analysis.tables.COLUMNS`); block, low and high are empty, n counts
    validation images. Measures, NaN where the images do not define them (a class without an image):

    - every score of the task (`ssl_core.metrics.applicable`), the study's own among them, in [0, 1];
    - ece and brier (`analysis.calibration`);
    - worst_class in [0, 1]: the lowest recall of a class, called by the largest probability; binary, above 0.5, so that
      it is the lower of sensitivity and specificity; multi-label: the lowest AUROC of a label, as at 0.5 a rare label
      may never be called. NaN where a class has no image, since nothing then vouches for it.

    A stage that two arms share comes under both. Raises DataError for a file that cannot be read.
    """
    seen: dict[Path, list[dict[str, Any]]] = {}
    records = []
    for stage in _finetuned(finished):
        if stage.folder not in seen:
            seen[stage.folder] = list(_measures(read(stage.folder, "val")))
        records += [{"dataset": dataset, **stage.labels, **row, "stage": stage.name} for row in seen[stage.folder]]
    return frame("validation", records)


def class_table(dataset: str, finished: Sequence[Finished], class_names: Sequence[str] = ()) -> DataFrame:
    """Recall and one-against-the-rest AUROC of every class (or label) on validation, for the same stages.

    Columns: dataset, arm, seed, mode, label_fraction, class_index, class_name (empty without `class_names`), metric
    (recall, auroc), value in [0, 1] or NaN, n (validation images), positives (of them of the class), stage. Binary
    tasks have the classes 0 and 1, whose recalls are specificity and sensitivity.
    """
    labelled = ("arm", "seed", "mode", "label_fraction")
    records = []
    for stage in _finetuned(finished):
        found = read(stage.folder, "val")
        cell = {"dataset": dataset, **{name: stage.labels.get(name) for name in labelled}}
        for metric, values in _by_class(found).items():
            for index, (value, positives) in enumerate(zip(values, _truth(found).sum(axis=0), strict=True)):
                name = class_names[index] if class_names else ""
                about = (index, name, metric, float(value), len(found.ids), int(positives), stage.name)
                records.append(cell | dict(zip(_CLASS_COLUMNS, about, strict=True)))
    return pd.DataFrame(records, columns=["dataset", *labelled, *_CLASS_COLUMNS])


def _finetuned(finished: Sequence[Finished]) -> Iterator[Finished]:
    return (stage for stage in finished if stage.kind == "finetune")


def _measures(found: Predictions) -> Iterator[dict[str, Any]]:
    labels, p, task = found.labels, found.probabilities, found.task
    values: dict[str, float] = {}
    truth = _truth(found)
    whole = bool(truth.any(axis=0).all() and (~truth).any(axis=0).all())
    for metric in applicable(task):
        values[metric] = score(metric, labels, p, task) if whole else math.nan
    values |= {"ece": ece(labels, p, task), "brier": brier(labels, p, task)}
    values[WORST_CLASS] = float(_by_class(found)["auroc" if task == "multilabel" else "recall"].min())  # NaN stays NaN
    for measure, value in values.items():
        yield {"metric": measure, "value": value, "n": len(found.ids)}


def _by_class(found: Predictions) -> dict[str, NDArray[np.float64]]:
    """recall and auroc [C] of the classes or labels; NaN for one without an image, or with nothing but its images."""
    p = found.probabilities
    truth, called = sides(found.labels, p, found.task)
    positives = truth.sum(axis=0)
    recall = np.divide(
        (truth & called).sum(axis=0), positives, out=np.full(len(positives), math.nan), where=positives > 0
    )
    auroc = scorer("auroc", found.labels, p, found.task)(np.ones((len(truth), 1)))[:, 0]
    return {"recall": recall, "auroc": np.broadcast_to(auroc, recall.shape)}  # binary: one curve for both classes


def _truth(found: Predictions) -> NDArray[np.bool_]:
    return sides(found.labels, found.probabilities, found.task)[0]
