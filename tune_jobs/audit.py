"""The verb `data`: what a study's dataset holds, and what each label fraction takes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tune_jobs.locks import running
from tune_jobs.origin import git_commit
from tune_jobs.prepare import check, packed, planned
from tune_jobs.store import Store
from tune_jobs.study import Study

if TYPE_CHECKING:
    from ssl_core.data.dataset import Dataset


def audit(study: Study, store: Store) -> dict[str, Any]:
    """Counts, classes, groups, splits and label fractions; packs the dataset if that was not done yet.

    Raises DataError for what is wrong with the data, ConfigError for what the study asks of it in vain.
    """
    with running(study.study, store):
        full = planned(study, store)
        dataset, _ = packed(study, store, next(full.of_kind("data")), {"git_commit": git_commit()})
    check(study, dataset)
    fractions = {*study.downstream.fractions, *study.downstream.linear_fractions, *study.probe_fractions}
    return {
        "name": dataset.name,
        **dataset.summary,
        "seed": study.seeds[0],
        "fractions": [_fraction(dataset, fraction, study.seeds[0]) for fraction in sorted(fractions)],
    }


def _fraction(dataset: Dataset, fraction: float, seed: int) -> dict[str, Any]:
    """How many images, and how many of each class (positives of each label), a label fraction takes."""
    from ssl_core.data.splits import label_subset

    rows = label_subset(dataset.labels, dataset.splits, fraction=fraction, seed=seed)
    labels = dataset.labels[rows]
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(dataset.class_names))
    classes = dict(zip(dataset.class_names, counts.tolist(), strict=True))
    return {"fraction": fraction, "n": len(rows), "classes": classes}
