"""What a fine-tuned model said of each image of a split, as its stage left it in predictions.npz."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import Task
from ssl_core.errors import DataError

FILE = "predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """Of one split, in the dataset's order."""

    ids: NDArray[np.str_]  # (N,)
    groups: NDArray[np.str_]  # (N,), what a resample draws: patients, or the images themselves
    labels: NDArray[Any]  # (N,) or, where multi-label, (N, L)
    probabilities: NDArray[np.float64]  # (N, K): of the positive class, of every class or of every label
    task: Task


def read(folder: Path, split: Literal["val", "test"]) -> Predictions:
    """The predictions of one split that a finetune stage left in `folder`; the other split's are not opened.

    Raises DataError where the file cannot be read, is no plain arrays, or holds probabilities that are no numbers.
    """
    path = folder / FILE
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            ids, groups, labels = (file[f"{split}_{name}"] for name in ("ids", "groups", "labels"))
            probabilities = file[f"{split}_probabilities"].astype(np.float64)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}); remove {folder} and fine-tune again") from error
    if not np.isfinite(probabilities).all():
        raise DataError(f"{folder} holds {split} probabilities that are NaN or infinite; fine-tune it again")
    task: Task = "multilabel" if labels.ndim == 2 else "binary" if probabilities.shape[1] == 1 else "multiclass"
    return Predictions(ids, groups, labels, probabilities, task)
