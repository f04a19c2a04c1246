"""Where images come from, what identifies them, and how they are packed. Light to import: reading is `reading.py`'s."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import SPLITS, TEST, TRAIN, VAL, Dataset, pixel_statistics
from ssl_core.errors import DataError

if TYPE_CHECKING:
    from ssl_core.data.reading import Raw

_FRESH_NS = 2_000_000_000  # a file changed this recently may change again within one tick of its clock


def fingerprint(config: DatasetConfig, *, cache: Path | None = None) -> str:
    """sha256 over the source's content and the settings that shape what is packed; never of a path, a name or a date.

    `cache` is a JSON file of file digests, reused where a file's path, size and modification time are unchanged.
    Raises DataError where the source is missing or unreadable.
    """
    from ssl_core.data.reading import source_files

    files = source_files(config)  # name within the source -> path
    shaping = {"source", "size", "validation", "test", "split_seed"}
    if config.source == "npz":
        shaping |= {f.name for f in fields(config) if f.name.endswith("_key")}
    content = {
        "settings": {name: getattr(config, name) for name in sorted(shaping)},
        "files": list(zip(files, _digests(list(files.values()), cache), strict=True)),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def pack(config: DatasetConfig, folder: Path) -> Dataset:
    """Read the source, check it, split it where it is not split, and save it in `folder`.

    Raises DataError, with the value and the remedy, for whatever is wrong with the data.
    """
    from ssl_core.data.reading import read
    from ssl_core.data.splits import check_splits

    digest = fingerprint(config)
    folder.mkdir(parents=True, exist_ok=True)
    raw = read(config, folder / "images.npy")
    groups = raw.ids if raw.groups is None else raw.groups
    splits, origin = _split(config, raw, groups)
    check_splits(raw.labels, groups, splits, class_names=raw.class_names)
    mean, std = pixel_statistics(raw.images, np.flatnonzero(splits == TRAIN))
    dataset = Dataset(
        name=config.name or config.source,
        images=raw.images,
        labels=raw.labels,
        splits=splits,
        groups=groups,
        ids=raw.ids,
        class_names=raw.class_names,
        task=raw.task,
        mean=mean,
        std=std,
        fingerprint=digest,
        split_origin=origin,
    )
    dataset.save(folder)
    return dataset


def _split(config: DatasetConfig, raw: Raw, groups: NDArray[np.str_]) -> tuple[NDArray[np.int8], str]:
    """Splits, and how they came about. A split that is not given is carved out of train, or of all where none is."""
    from ssl_core.data.splits import make_splits

    given = np.full(len(raw.labels), TRAIN, dtype=np.int8) if raw.given is None else raw.given
    present = {int(s) for s in np.unique(given)}
    if TRAIN not in present:
        words = ", ".join(SPLITS[s] for s in sorted(present))
        raise DataError(f"the given splits hold {words} and no train; mark the training images train")
    missing = [s for s in (VAL, TEST) if s not in present]
    if not missing:
        return given, "given"
    train = np.flatnonzero(given == TRAIN)
    splits = given.copy()
    splits[train] = make_splits(
        raw.labels[train],
        groups[train],
        validation=config.validation if VAL in missing else 0.0,
        test=config.test if TEST in missing else 0.0,
        seed=config.split_seed,
        class_names=raw.class_names,
    )
    made = f"made, seed {config.split_seed}{'' if raw.groups is None else ', group-aware'}"
    return splits, made if raw.given is None else f"given; {' and '.join(SPLITS[s] for s in missing)} {made}"


def _digests(paths: Sequence[Path], cache: Path | None) -> list[str]:
    """sha256 of each file, from `cache` where it is up to date; new ones are added to it."""
    known: dict[str, dict[str, Any]] = {}
    if cache is not None and cache.is_file():
        try:
            known = json.loads(cache.read_text())
        except ValueError:
            known = {}  # cut short by a crash: only time is lost
    digests, added = [], False
    for path in paths:
        try:
            stat, now = path.stat(), time.time_ns()
            key, state = str(path.resolve()), {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            entry = known.get(key, {})
            if {k: entry.get(k) for k in state} != state:
                with path.open("rb") as file:
                    entry = {**state, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
                if now - stat.st_mtime_ns > _FRESH_NS:
                    known[key], added = entry, True
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); check that it exists and its rights") from error
        digests.append(str(entry["sha256"]))
    if cache is not None and added:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
        partial.write_text(json.dumps(known))
        partial.replace(cache)
    return digests
