"""Decoding a dataset once into a folder that training reads: planned, cut into shards, described, assembled.

What a killed run finished of a folder is kept: the next run with the same source and settings goes on there. Until a
folder is finished it also holds `plan.json`, what was decided before the first image was decoded, and `facts/`, one
file a finished shard (see `sharding`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import SPLITS, TEST, TRAIN, VAL, Dataset, mean_and_std, save_shard_list
from ssl_core.data.decoding import MISSING
from ssl_core.data.identity import Progress, fingerprint, identity
from ssl_core.data.listing import Listing, listing
from ssl_core.data.planning import PLAN, Plan, R, Run, T, plan
from ssl_core.data.sharding import FACTS, IMAGES, ShardFacts, ShardTask, make_shard
from ssl_core.data.shards import Shards
from ssl_core.errors import DataError

__all__ = ["Progress", "Run", "fingerprint", "pack", "serial", "split"]

_THREADS = min(4, os.cpu_count() or 1)  # that decode a shard in this process


def serial(function: Callable[[T], R], tasks: Sequence[T], /) -> Iterable[R]:
    """In this process, one task after the other."""
    return map(function, tasks)


def pack(
    config: DatasetConfig,
    folder: Path,
    *,
    run: Run = serial,
    threads: int = _THREADS,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """The source's images in `folder`, checked, split where they are not split; those that cannot be read are left out.

    The result does not depend on `run`, `threads` (decoding within a task, where tasks do not run side by side) or on
    how often packing was interrupted.
    `cache` is `fingerprint`'s; `progress` is told of images packed. Memory: about `SHARD_BYTES` a task under way.
    Raises DataError, with the value and the remedy, for whatever is wrong with the data as a whole.
    """
    clock = time.monotonic()
    found = listing(config)
    digest = identity(config, found, cache=cache)
    if (done := _finished(config, folder, digest)) is not None:
        return done
    splits, origin = split(config, found)  # before hours of decoding: it may be refused
    pixels = found.pixels() if found.pixels is not None else None
    decided = Plan.open(folder)
    if decided is None or decided.fingerprint != digest:
        decided = plan(config, found, digest, pixels, run)
        _clear(folder)
        decided.save(folder)
    tasks = _tasks(decided, config, folder, found.paths if pixels is None else pixels, threads)
    unfinished = [task for task in tasks if not task.finished]
    if run is not serial and len(unfinished) > 1:  # several at a time: one CPU for each
        unfinished = [dataclasses.replace(task, threads=1) for task in unfinished]
    resumed = len(found.ids) - sum(len(task.source) for task in unfinished)
    _check_space(folder, (len(found.ids) - resumed) * decided.image_bytes)
    _make(unfinished, run if pixels is None else serial, resumed, len(found.ids), progress)
    facts = [_facts(task) for task in tasks]
    made = len(found.ids) - resumed
    seconds = time.monotonic() - clock
    packing = {
        "images": made,  # in this run; `resumed` in those before it that were interrupted
        "resumed": resumed,
        "seconds": seconds,
        "images_per_second": made / seconds,
        "source_bytes": sum(int(f.rows["source_bytes"].sum()) for f in facts),
        "bytes": sum(f.bytes for f in facts),
    }
    dataset = _assembled(config, found, decided, tasks, facts, splits, origin, packing)
    _write_beside(folder, found, facts)
    dataset.save(folder)
    shutil.rmtree(folder / FACTS, ignore_errors=True)
    (folder / PLAN).unlink(missing_ok=True)
    return dataset


def split(config: DatasetConfig, found: Listing) -> tuple[NDArray[np.int8], str]:
    """Splits, and how they came about. A split that is not given is carved out of train, or of all where none is."""
    from ssl_core.data.splits import check_splits, make_splits

    groups = _groups(found)
    given = np.full(len(found.labels), TRAIN, dtype=np.int8) if found.given is None else found.given
    present = {int(s) for s in np.unique(given)}
    if TRAIN not in present:
        words = ", ".join(SPLITS[s] for s in sorted(present))
        raise DataError(f"the given splits hold {words} and no train; mark the training images train")
    missing = [s for s in (VAL, TEST) if s not in present]
    splits, origin = given, "given"
    if missing:
        train = np.flatnonzero(given == TRAIN)
        splits = given.copy()
        splits[train] = make_splits(
            found.labels[train],
            groups[train],
            validation=config.validation if VAL in missing else 0.0,
            test=config.test if TEST in missing else 0.0,
            seed=config.split_seed,
            class_names=found.class_names,
        )
        made = f"made, seed {config.split_seed}{'' if found.groups is None else ', group-aware'}"
        origin = made if found.given is None else f"given; {' and '.join(SPLITS[s] for s in missing)} {made}"
    check_splits(found.labels, splits, class_names=found.class_names)
    return splits, origin


def _groups(found: Listing) -> NDArray[np.str_]:
    return found.ids if found.groups is None else found.groups


def _finished(config: DatasetConfig, folder: Path, digest: str) -> Dataset | None:
    """What `folder` holds, where that is this dataset and whole: its packer was killed before it could say so."""
    if (folder / PLAN).exists() or not (folder / "dataset.json").exists():
        return None
    try:
        there = Dataset.open(folder)
    except DataError:
        return None
    return there if (there.fingerprint, there.name) == (digest, config.name or config.source) else None


def _clear(folder: Path) -> None:
    """Remove what was packed here from other images or with other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").unlink(missing_ok=True)
    shutil.rmtree(folder / FACTS, ignore_errors=True)
    shutil.rmtree(folder / IMAGES, ignore_errors=True)


def _tasks(
    decided: Plan,
    config: DatasetConfig,
    folder: Path,
    source: tuple[Path, ...] | NDArray[np.uint8] | None,
    threads: int,
) -> list[ShardTask]:
    assert source is not None, "a listing has paths or pixels"
    form, step = decided.form(config), decided.a_shard
    return [
        ShardTask(
            index=index,
            folder=folder,
            source=source[start : start + step],
            form=form,
            shape=decided.shape,
            threads=threads,
        )
        for index, start in enumerate(range(0, len(source), step))
    ]


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the packed images need {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free; make room, choose "
            "another --output, or a smaller dataset.size"
        )


def _make(tasks: Sequence[ShardTask], run: Run, done: int, total: int, progress: Progress | None) -> None:
    read = 0
    if progress is not None:
        progress(done, total, read)
    for made in run(make_shard, tasks):
        done, read = done + made.images, read + made.source_bytes
        if progress is not None:
            progress(done, total, read)


def _facts(task: ShardTask) -> ShardFacts:
    """What the finished task left. DataError where a file was missing where it was decoded, but is not missing here."""
    facts = ShardFacts.open(task.facts_file)
    for place, why in facts.reasons.items():
        path = task.source[place]
        if why == MISSING and isinstance(path, Path) and path.exists():
            task.facts_file.unlink()
            raise DataError(
                f"image {path} is here, but not on the machine that was to decode it; mount it at this path"
            )
    return facts


def _assembled(
    config: DatasetConfig,
    found: Listing,
    decided: Plan,
    tasks: Sequence[ShardTask],
    facts: Sequence[ShardFacts],
    splits: NDArray[np.int8],
    origin: str,
    packing: dict[str, Any],
) -> Dataset:
    """The dataset of the readable images, its rows aligned; `shards.json` is written."""
    from ssl_core.data.splits import check_splits

    kept = np.concatenate([f.rows["readable"] for f in facts])  # (N,)
    if not kept.any():
        raise DataError(f"none of the {len(kept)} images can be read, e.g. {found.ids[0]} {facts[0].reasons[0]}")
    labels, splits, groups = found.labels[kept], splits[kept], _groups(found)[kept]
    if not kept.all():
        check_splits(labels, splits, class_names=found.class_names)
    written = [(task, f) for task, f in zip(tasks, facts, strict=True) if f.bytes]
    counts = [int(f.rows["readable"].sum()) for _, f in written]
    folder = tasks[0].folder
    files = [
        {"file": f"{IMAGES}/{task.images_file.name}", "images": count, "bytes": f.bytes, "sha256": f.sha256}
        for (task, f), count in zip(written, counts, strict=True)
    ]
    save_shard_list(folder, files, decided.shape)
    total, squares = (np.concatenate([f.known[key] for f in facts]) for key in ("total", "squares"))  # (n, C)
    train = splits == TRAIN
    mean, std = mean_and_std(total[train], squares[train], decided.shape[0] * decided.shape[1])
    return Dataset(
        name=config.name or config.source,
        images=Shards([task.images_file for task, _ in written], counts, decided.shape),
        labels=labels,
        splits=splits,
        groups=groups,
        ids=found.ids[kept],
        class_names=found.class_names,
        task=found.task,
        mean=mean,
        std=std,
        fingerprint=decided.fingerprint,
        split_origin=origin,
        details={
            "source": config.source,
            "notes": list(decided.notes),
            "unreadable": int((~kept).sum()),
            "form": dataclasses.asdict(decided.form(config)),
            "packing": packing,
        },
    )


def _write_beside(folder: Path, found: Listing, facts: Sequence[ShardFacts]) -> None:
    """`likeness.npz` and `inventory.npz`, a row a packed image; `unreadable.json`, an entry a listed image left out."""
    likeness: dict[str, Any] = {key: np.concatenate([f.likeness[key] for f in facts]) for key in facts[0].likeness}
    np.savez(folder / "likeness.npz", **likeness)
    inventory: dict[str, Any] = {
        **{k: np.concatenate([f.rows[k][f.rows["readable"]] for f in facts]) for k in ("width", "height", "bits")},
        **{k: np.concatenate([f.known[k] for f in facts]) for k in ("low", "high")},
    }
    np.savez(folder / "inventory.npz", **inventory)
    unreadable, start = [], 0
    for f in facts:
        unreadable += [{"id": str(found.ids[start + place]), "reason": why} for place, why in f.reasons.items()]
        start += len(f.rows["readable"])
    (folder / "unreadable.json").write_text(json.dumps(unreadable, indent=1, ensure_ascii=False), encoding="utf-8")
    for left in (folder / IMAGES).glob(".*.tmp"):  # of killed processes
        left.unlink(missing_ok=True)
