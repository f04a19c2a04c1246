"""Before a study runs: its dataset packed, its promises checked against it. Bad input is found here, not later."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.data.sources import fingerprint, pack
from ssl_core.errors import ConfigError
from ssl_core.feasibility import check_pretrain
from tune_jobs.plan import Plan, plan
from tune_jobs.stage import Stage
from tune_jobs.store import Store
from tune_jobs.study import Study

if TYPE_CHECKING:
    from ssl_core.data.dataset import Dataset

DIGESTS = ".digests.json"  # of source files, so that an unchanged dataset is not read again for its fingerprint


def planned(study: Study, store: Store, *, remember: bool = True) -> Plan:
    """The study's plan on its dataset as it is now. Reads the source for its fingerprint, writes nothing else.

    Raises DataError where the dataset is missing or unreadable.
    """
    cache = store.stages / DIGESTS if remember else None
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
    return plan(study, fingerprint(study.dataset, cache=cache))


def packed(study: Study, store: Store, stage: Stage, facts: Mapping[str, Any]) -> tuple[Dataset, bool]:
    """The study's packed dataset, and whether it was packed just now.

    Raises DataError for everything wrong with the data: an unreadable image (with its path), a class absent from a
    split, images of several channel counts, ...
    """
    from ssl_core.data.dataset import Dataset

    if store.finished(stage):
        return Dataset.open(store.find("data", stage.key)), False
    started, clock = time.time(), time.monotonic()
    work = store.begin(stage)
    try:
        pack(study.dataset, work)
        seconds = {"started": started, "wall_seconds": time.monotonic() - clock, "accelerator_seconds": 0.0}
        store.publish(stage, work, {**facts, **seconds, "environment": {"cpus": os.cpu_count()}})
    except BaseException:
        store.discard(work)
        raise
    return Dataset.open(store.find("data", stage.key)), True


def check(study: Study, dataset: Dataset) -> list[str]:
    """ConfigError or DataError for what the study asks of this dataset and cannot have; else what to tell the user."""
    from ssl_core.data.dataset import TRAIN
    from ssl_core.data.splits import label_subset

    images, warnings = len(dataset.rows(TRAIN)), []
    for name, arm in study.arms.items():
        if arm is not None:
            try:
                found = check_pretrain(arm, images, study.resources.workers)
            except ConfigError as error:
                raise ConfigError(f"arms.{name}: {error}") from None
            warnings += [f"arms.{name}: {warning}" for warning in found]
    if study.downstream.metric == "f1" and dataset.task == "multiclass":
        raise ConfigError(
            f"downstream.metric: f1 is the F1 of the positive class, {dataset.name} has {len(dataset.class_names)} "
            "classes; use f1_macro or auroc"
        )
    fractions = {*study.downstream.fractions, *study.downstream.linear_fractions, *study.probe_fractions}
    for fraction in sorted(fractions):
        label_subset(dataset.labels, dataset.splits, fraction=fraction, seed=study.seeds[0])
    return warnings


def summary(folder: Path) -> dict[str, Any]:
    """What a packed dataset says of itself: counts, classes, groups, how the splits were made."""
    facts: dict[str, Any] = json.loads((folder / "dataset.json").read_text())["summary"]
    return facts
