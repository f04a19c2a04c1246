"""Which labelled images the runs of a study saw, as tables; every arm of a seed must have seen the same."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.dataset import TRAIN, Dataset
from ssl_core.errors import StageError
from tune_jobs.plan import Plan
from tune_jobs.stage import Stage, canonical
from tune_jobs.store import Store
from tune_jobs.study import Study

LABELS, COUNTS = "labels.csv", "label_counts.csv"
ALL_ARMS = "all"  # in the column `arm`, where every arm of a seed draws the same labels

_WHAT = ("dataset", "seed", "label_fraction", "arm")
_COUNTED = ("n", "groups", "class", "count", "target", "largest_deviation")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The labelled images of one fraction and seed, of one arm or of all."""

    seed: int
    fraction: float
    arm: str
    rows: NDArray[np.int64]  # of the packed dataset, ascending


def write_labels(study: Study, full: Plan, store: Store, folder: Path) -> Path:
    """Write `labels.csv` and `label_counts.csv` into `folder` from the finished stages; returns the first's path.

    labels.csv: dataset, seed, label_fraction, arm and id, one row an image that a fraction below 1 holds. arm is "all"
    where every arm draws alike. label_counts.csv, one row a class: beside these n images, groups, class, count,
    target (the fraction of the class' training images) and largest_deviation, of any class' count from its target.

    Raises StageError where arms that draw alike saw different images of a seed and fraction, or images that the
    packed dataset does not train on; and where the dataset is not packed.
    """
    dataset = Dataset.open(store.find("data", next(full.of_kind("data")).key))
    draws = drawn(study, full, store, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / COUNTS, (*_WHAT, *_COUNTED), (row for draw in draws for row in _counts(dataset, draw)))
    ids = ((*_what(dataset, draw), image) for draw in draws for image in dataset.ids[draw.rows])
    _write(folder / LABELS, (*_WHAT, "id"), ids)
    return folder / LABELS


def drawn(study: Study, full: Plan, store: Store, dataset: Dataset) -> list[Drawn]:
    """What the finished fine-tunings and probes saw, by fraction, seed and arm; StageError as `write_labels`."""
    found = []
    for (fraction, seed), stages in sorted(_small(full).items()):
        manners: dict[str, list[Stage]] = {}
        for stage in stages:
            manners.setdefault(_manner(stage), []).append(stage)
        for alike in manners.values():
            if not (finished := [stage for stage in alike if store.finished(stage)]):
                continue
            rows = _rows(finished[0], _same_ids(finished, store), dataset)
            of = {stage.labels["arm"] for stage in finished}
            arms = [ALL_ARMS] if len(manners) == 1 else [arm for arm in study.arms if arm in of]
            found += [Drawn(seed=seed, fraction=fraction, arm=arm, rows=rows) for arm in arms]
    return found


def _small(full: Plan) -> dict[tuple[float, int], list[Stage]]:
    """Planned fine-tunings and probes on less than all labels, by fraction and seed."""
    stages: dict[tuple[float, int], list[Stage]] = {}
    for stage in full.stages:
        if stage.kind in ("finetune", "probe") and stage.labels["label_fraction"] < 1:
            stages.setdefault((stage.labels["label_fraction"], stage.labels["seed"]), []).append(stage)
    return stages


def _same_ids(stages: Sequence[Stage], store: Store) -> set[str]:
    """The ids that all of them saw; StageError where they differ."""
    first, *others = stages
    ids = _ids(first, store)
    for stage in others:
        if differing := sorted(ids ^ _ids(stage, store)):
            raise StageError(
                f"{stage.name} and {first.name} draw their labels alike and saw different ones: {len(differing)} "
                f"images are in one alone, e.g. {', '.join(differing[:3])}; remove {store.path(stage)} and "
                f"{store.path(first)}, and run again"
            )
    return ids


def _manner(stage: Stage) -> str:
    """What a draw depends on beside fraction and seed: arms may differ in it, by `per_arm` or as the question asked."""
    labels = stage.config["labels"]
    return canonical({name: labels[name] for name in ("draw", "unit", "salt")})


def _ids(stage: Stage, store: Store) -> set[str]:
    path = store.path(stage) / "samples.json"
    try:
        return set(json.loads(path.read_text(encoding="utf-8"))["ids"])
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"{path}, the labels that {stage.name} saw, cannot be read ({error}); remove {path.parent} and run again"
        ) from error


def _rows(stage: Stage, ids: set[str], dataset: Dataset) -> NDArray[np.int64]:
    """Ascending rows of the ids; StageError where they are no training images."""
    train = dataset.rows(TRAIN)
    rows: NDArray[np.int64] = train[np.isin(dataset.ids[train], sorted(ids))]
    if len(rows) != len(ids):
        strange = sorted(ids - set(dataset.ids[rows].tolist()))
        raise StageError(
            f"{stage.name} saw labels of images that {dataset.name} does not train on: {len(strange)}, e.g. "
            f"{', '.join(strange[:3])}; remove that stage and run again"
        )
    return rows


def _what(dataset: Dataset, draw: Drawn) -> tuple[Any, ...]:
    return dataset.name, draw.seed, draw.fraction, draw.arm


def _counts(dataset: Dataset, draw: Drawn) -> Iterator[tuple[Any, ...]]:
    """A row of label_counts.csv for each class."""
    counts, training = (_per_class(dataset, rows) for rows in (draw.rows, dataset.rows(TRAIN)))
    target = draw.fraction * training
    groups, largest = len(np.unique(dataset.groups[draw.rows])), f"{np.abs(counts - target).max():.4g}"
    for name, count, aim in zip(dataset.class_names, counts.tolist(), target.tolist(), strict=True):
        yield *_what(dataset, draw), len(draw.rows), groups, name, count, f"{aim:.2f}", largest


def _per_class(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images of each class, positives of each label."""
    labels = dataset.labels[rows]
    if labels.ndim == 2:
        return np.asarray(labels.sum(axis=0, dtype=np.int64))
    return np.bincount(labels, minlength=len(dataset.class_names))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
