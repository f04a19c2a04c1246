"""How long stages take, from those that are finished: decides what is started first, never what comes out."""

from __future__ import annotations

import heapq
import json
import math
import os
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tune_jobs.stage import Stage
from tune_jobs.store import MANIFEST, Store

#: Rough cost of a kind where nothing of it was measured yet, in seconds where nothing was measured at all.
WEIGHT: Mapping[str, float] = {"pretrain": 20.0, "finetune": 5.0}
#: Manifests of a kind that are read, the newest first: a store of many thousand stages delays no start.
READ = 40
#: Seconds of the shortest stage.
LEAST = 1e-3

#: What is alike in stages that take about as long: kind, mode, label fraction, workers.
Sort = tuple[str, Any, Any, int]


class Durations:
    """Seconds measured, by sort; an estimate for any stage: the median of its sort, or of what is most like it."""

    def __init__(self) -> None:
        self._measured: dict[tuple[Any, ...], list[float]] = {}  # by sort and by what is left of it, in order

    def add(self, sort: Sort, seconds: float) -> None:
        if math.isfinite(seconds):
            for likeness in _likenesses(sort):
                insort(self._measured.setdefault(likeness, []), max(seconds, LEAST))

    def expected(self, sort: Sort) -> float:
        """Seconds that a stage of this sort takes, as far as is known; above 0."""
        for likeness in _likenesses(sort):
            if known := self._measured.get(likeness):
                return _median(known)
        # nothing of its kind was measured: its weight, as long as a weight of one has taken in other kinds
        scales = [_median(known) / weight(key[0]) for key, known in self._measured.items() if len(key) == 1]
        return weight(sort[0]) * (_median(sorted(scales)) if scales else 1.0)


def weight(kind: str) -> float:
    return WEIGHT.get(kind, 1.0)


def sort_of(stage: Stage) -> Sort:
    return _sort(stage.kind, stage.config, stage.demand.workers)


def _sort(kind: str, config: Mapping[str, Any], workers: int) -> Sort:
    return kind, config.get("mode"), config.get("fraction", config.get("label_fraction")), workers


def _likenesses(sort: Sort) -> tuple[tuple[Any, ...], ...]:
    """The sort, then what is left of it where no stage of just that sort was measured."""
    return sort, sort[:3], sort[:1]


def _median(ordered: list[float]) -> float:
    return ordered[len(ordered) // 2]


def measured(store: Store, kinds: Iterable[str]) -> Durations:
    """What the newest finished stages of these kinds in a store took. Reads at most `READ` manifests a kind."""
    durations = Durations()
    for folder in _newest(store, set(kinds)):
        try:
            manifest = json.loads((store.stages / folder / MANIFEST).read_text())
            sort = _sort(manifest["kind"], manifest["config"], manifest.get("workers", 1))
            durations.add(sort, float(manifest["wall_seconds"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # whoever needs that stage will say what is wrong with it; the order of work can do without
    return durations


def _newest(store: Store, kinds: set[str]) -> Iterator[str]:
    """Folders of finished stages, the `READ` newest of each kind."""
    found: dict[str, list[tuple[float, str]]] = {kind: [] for kind in kinds}
    try:
        with os.scandir(store.stages) as entries:
            for entry in entries:
                if (kind := entry.name.rpartition("-")[0]) in kinds:
                    found[kind].append((entry.stat().st_mtime, entry.name))
    except OSError:
        return  # no store yet, or one that refuses: the weights will do
    for aged in found.values():
        yield from (name for _, name in heapq.nlargest(READ, aged))
