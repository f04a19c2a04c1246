"""What a downstream run learns from, in which batches and views, and what it is scored on, when and by what.

All of it follows from the configuration and the dataset, before any weight is touched (paper section 3.3).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_core import metrics
from ssl_core.config import NO_AUGMENT, AugmentConfig, FinetuneConfig, LabelsConfig
from ssl_core.data.dataset import TEST, VAL, Dataset
from ssl_core.data.labels import absent_outcomes
from ssl_core.errors import DataError
from ssl_core.scores import Scored
from ssl_core.seeding import generator

if TYPE_CHECKING:
    from ssl_core.batches import Rows

log = logging.getLogger(__name__)


def batch_stream(rows: Rows, size: int, seed: int) -> Iterator[Rows]:
    """Endless batches of exactly min(size, len(rows)) rows: seeded orders of all rows, one after another.

    A batch that an epoch cannot fill takes the rest from the next epoch's order, so that batch norm never meets a
    batch smaller than the others and no sample is seen less than another.
    """
    size = min(size, len(rows))
    pending, epoch = rows[:0], 0
    while True:
        while len(pending) < size:
            pending = np.concatenate([pending, generator(seed, "order", epoch).permutation(rows)])
            epoch += 1
        yield pending[:size]
        pending = pending[size:]


def augmentation(config: FinetuneConfig) -> AugmentConfig:
    """Of the training images. `small_augment: flip` turns it into a horizontal flip alone below all labels."""
    if config.small_augment == "flip" and config.fraction < 1:
        return dataclasses.replace(NO_AUGMENT, flip=0.5)
    return config.augment


def scored_rows(config: FinetuneConfig, dataset: Dataset, split: int) -> Rows:
    """The images of a validation or test split that are predicted and scored, in row order.

    All of them; under `drop_last` those of full batches, or all where no batch is full: the authors' code would then
    score nothing.
    """
    rows = dataset.rows(split)
    full = len(rows) - len(rows) % config.batch_size
    return rows[:full] if config.drop_last and full > 0 else rows


def check_scored(config: FinetuneConfig, dataset: Dataset) -> None:
    """Raise DataError if a score cannot be computed on its split, whatever the model will predict."""
    for name, split, wanted in (
        ("validation", VAL, (config.metric, selects_by(config))),
        ("test", TEST, (config.metric,)),
    ):
        rows = scored_rows(config, dataset, split)
        if config.drop_last and len(rows) < config.batch_size:
            log.warning("%d %s images fill no batch of %d; drop_last keeps them", len(rows), name, config.batch_size)
        even = np.full((len(rows), dataset.n_outputs), 1 / max(2, dataset.n_outputs))
        for metric in wanted:
            try:
                metrics.score(metric, dataset.labels[rows], even, dataset.task)
            except DataError as error:
                raise DataError(f"{name} split of {dataset.name}: {error}") from error


def selects_by(config: FinetuneConfig) -> Scored:
    """The validation score by which the best evaluation is told."""
    return config.metric if config.select == "metric" else config.select


def planned_steps(config: FinetuneConfig, images: int) -> int:
    """Steps on so many training images, where training is not stopped early."""
    return max(config.epochs * math.ceil(images / config.batch_size), config.min_steps)


def evaluation_steps(steps: int, evaluations: int) -> list[int]:
    """After how many of `steps` steps to evaluate: evenly spread, the end included, `evaluations` times at most."""
    return sorted({max(1, round(steps * (i + 1) / evaluations)) for i in range(evaluations)})


def samples(
    config: LabelsConfig,
    fraction: float,
    seed: int,
    rows: Rows,
    *,
    ids: NDArray[np.str_],
    labels: NDArray[Any],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """What samples.json says of the labelled images `rows` that a run learns from; `ids` and `labels` are all images'.

    `absent` names what they lack, e.g. `class sick` or `label mass positive`: of that the run cannot learn anything.
    """
    return {
        "fraction": fraction,
        "seed": seed,
        "draw": config.draw,
        "unit": config.unit,
        "absent": absent_outcomes(labels, rows, class_names),
        "ids": ids[rows].tolist(),
    }
