"""The verb `data`: what a study's dataset holds, and what each label fraction takes of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ssl_core.errors import DataError
from tune_jobs.locks import running
from tune_jobs.origin import git_commit
from tune_jobs.prepare import check, packed, planned
from tune_jobs.store import Store
from tune_jobs.study import Study

SPLITS = ("train", "val", "test")


def audit(study: Study, store: Store) -> dict[str, Any]:
    """Counts, classes, groups, splits and label fractions; packs the dataset if that was not done yet.

    Raises DataError for what is wrong with the data, ConfigError for what the study asks of it in vain.
    """
    from ssl_core.dataset import TRAIN
    from ssl_core.splits import label_subset

    with running(study.study, store):
        full = planned(study, store)
        dataset, _ = packed(study, store, next(full.of_kind("data")), {"git_commit": git_commit()})
    check(study, dataset)
    classes = len(dataset.class_names)

    def per_class(rows: np.ndarray) -> list[int]:
        labels = dataset.labels[rows]
        counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)
        return [int(c) for c in counts]

    splits = {
        name: {
            "images": len(dataset.rows(code)),
            "groups": len(np.unique(dataset.groups[dataset.rows(code)])),
            "classes": per_class(dataset.rows(code)),
        }
        for code, name in enumerate(SPLITS)
    }
    if not splits["train"]["images"]:
        raise DataError(f"{dataset.name}: the training split is empty")
    fractions = []
    for fraction in sorted({*study.downstream.fractions, *study.downstream.linear_fractions, *study.probe_fractions}):
        rows = label_subset(dataset.labels, dataset.splits, fraction=fraction, seed=study.seeds[0])
        fractions.append({"fraction": fraction, "images": len(rows), "classes": per_class(rows)})
    return {
        "name": dataset.name,
        "task": dataset.task,
        "size": dataset.size,
        "channels": dataset.channels,
        "class_names": list(dataset.class_names),
        "fingerprint": dataset.fingerprint,
        "splits": splits,
        "splits_made": "",
        "fractions": fractions,
        "seed": study.seeds[0],
        "training_images": len(dataset.rows(TRAIN)),
    }
