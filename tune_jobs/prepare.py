"""A study's plan on its dataset as it is now, and the dataset packed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import shard_digests
from ssl_core.data.packing import fingerprint, pack
from tune_jobs.cluster import local_ray
from tune_jobs.packing import Bar, OnRay, Start
from tune_jobs.plan import Plan, datasets, plan
from tune_jobs.stage import Stage
from tune_jobs.store import Store
from tune_jobs.study import Study

if TYPE_CHECKING:
    from ssl_core.data.dataset import Dataset

PARTIAL = ".pack"  # folder of datasets that are being packed, below the stages
DIGESTS = ".digests.json"  # of source files, so that an unchanged dataset is not read again for its fingerprint


def planned(study: Study, store: Store, *, remember: bool = True) -> Plan:
    """The study's plan on its dataset as it is now. Reads the source for its fingerprint, but for files whose digests
    are known from before. Without `remember`, a root that is not there is not made.

    Raises DataError where the dataset is missing or unreadable.
    """
    cache: Path | None = store.stages / DIGESTS
    if remember:
        store.stages.mkdir(parents=True, exist_ok=True)
    elif not store.stages.is_dir():
        cache = None
    with Bar("reading") as bar:
        return plan(study, {config: fingerprint(config, cache=cache, progress=bar) for config in datasets(study)})


def packed(
    config: DatasetConfig, store: Store, stage: Stage, facts: Mapping[str, Any], *, on_ray: Start = local_ray
) -> tuple[Dataset, bool]:
    """The packed dataset, and whether it was packed just now.

    What a killed run packed of it is kept in `<root>/stages/.pack/<stage>` and gone on with. `on_ray` starts or joins
    the Ray that decodes where there is more than one shard.
    Raises DataError for what is wrong with the data as a whole: a class absent from a split, images of several sizes,
    ... Single images that cannot be read are left out and listed.
    """
    from ssl_core.data.dataset import Dataset

    if store.finished(stage):
        return Dataset.open(store.find("data", stage.key)), False
    started, clock = time.time(), time.monotonic()
    work = store.stages / PARTIAL / stage.folder
    with _alone(work.with_name(f"{work.name}.lock")):
        if store.finished(stage):  # another study packed it meanwhile
            return Dataset.open(store.find("data", stage.key)), False
        with OnRay(on_ray) as run, Bar(f"packing {config.name or config.source}") as bar:
            pack(config, work, run=run, cache=store.stages / DIGESTS, progress=bar)
        seconds = {"started": started, "wall_seconds": time.monotonic() - clock, "accelerator_seconds": 0.0}
        environment = {"environment": {"cpus": os.cpu_count()}}
        store.publish(stage, work, {**facts, **seconds, **environment}, digests=shard_digests(work))
    return Dataset.open(store.find("data", stage.key)), True


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process packs the same dataset in this root."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


def summary(folder: Path) -> dict[str, Any]:
    """What a packed dataset says of itself: counts, classes, groups, how the splits were made."""
    facts: dict[str, Any] = json.loads((folder / "dataset.json").read_text())["summary"]
    return facts
