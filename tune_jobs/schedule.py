"""Which ready stage starts now: the most urgent; where it does not fit, its room is kept, and others fill the gap.

A stage that needs more than is free (several workers, whole accelerators) would wait for ever behind small ones that
always fit. So the most urgent stage that has to wait gets a time: when, by what stages are expected to take, there is
room for it. Others start meanwhile if they are over by then, or take nothing of what it needs ("EASY backfilling").
A running stage that takes longer than expected counts as about to end, so that no wrong estimate keeps it waiting.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, repeat
from operator import itemgetter

from tune_jobs.durations import Durations, Sort, sort_of
from tune_jobs.room import Capacity, Pair, common, each, place, take
from tune_jobs.stage import Demand, Stage


@dataclass
class Running:
    """A stage that was started."""

    demand: Demand
    sort: Sort
    since: float
    nodes: tuple[str, ...]  # one for each worker; a guess for workers that Ray Train places


@dataclass
class Reserved:
    """The room of the stage that waits: from when on it is there, and what is left beside it then."""

    at: float
    beside: dict[str, Pair]


class Schedule:
    """Ready and running stages of an execution. `order` is the urgency of each stage, the smallest first."""

    def __init__(self, stages: Mapping[str, Stage], order: Mapping[str, tuple[float, int]], known: Durations) -> None:
        self.stages, self.order, self.known = stages, order, known
        self.running: dict[str, Running] = {}
        # nodes whose memory may still hold a stage's files: the last that wrote or read them
        self._held_by: dict[str, str] = {}
        # the most urgent first, one queue for each demand and sort: what holds for its first holds for all of it
        self._ready: dict[tuple[Demand, Sort], list[tuple[float, int, str]]] = {}

    def __bool__(self) -> bool:
        return bool(self.running or self._ready)

    @property
    def waiting(self) -> Iterator[Demand]:
        """What ready stages ask for, each stage's, those of the most urgent's sort first."""
        for demand, sort in sorted(self._ready, key=lambda kind: self._ready[kind][0]):
            yield from repeat(demand, len(self._ready[demand, sort]))

    def add(self, key: str) -> None:
        """A stage became ready."""
        stage = self.stages[key]
        queue = self._ready.setdefault((stage.demand, sort_of(stage)), [])
        heapq.heappush(queue, (*self.order[key], key))

    def end(self, key: str, now: float) -> float:
        """A running stage ended; the seconds that it took."""
        return now - self.running.pop(key).since

    def starting(self, total: Capacity, now: float) -> Iterator[str]:
        """Ready stages to start now, each counted as running from when it is given."""
        free, reserved = self._free(total), None
        queues = [(queue[0], kind) for kind, queue in self._ready.items()]
        heapq.heapify(queues)
        while queues:
            _, (demand, sort) = queues[0]
            nodes = self._gap(demand, sort, total, free, reserved, now)
            if nodes is None:
                if reserved is None:
                    reserved = self._reserve(demand, total, free, now)
                heapq.heappop(queues)  # nor does any other stage of this queue fit
                continue
            key = self._pop(demand, sort)
            nodes = self._near_its_inputs(key, nodes, total, free, reserved, now)
            left = self._ready.get((demand, sort))
            heapq.heapreplace(queues, (left[0], (demand, sort))) if left else heapq.heappop(queues)
            take(free, nodes, each(demand, total))
            if reserved and now + self.known.expected(sort) > reserved.at:
                take(reserved.beside, nodes, each(demand, total))
            self.running[key] = Running(demand, sort, now, nodes)
            yield key

    def _near_its_inputs(
        self, key: str, nodes: tuple[str, ...], total: Capacity, free: dict[str, Pair], reserved: Reserved | None,
        now: float,
    ) -> tuple[str, ...]:  # fmt: skip
        """Rather the node that has a lone worker's files in its memory, if there is room on it; never a later start."""
        stage = self.stages[key]
        if stage.demand.workers > 1 or len(free) == 1:
            return nodes
        # what one stage leaves for few others first, the dataset that all read last
        roles = sorted(stage.inputs, key=lambda role: role == "data")
        near = next((self._held_by[i] for i in map(stage.inputs.__getitem__, roles) if i in self._held_by), "")
        nodes = self._gap(stage.demand, sort_of(stage), total, free, reserved, now, near) or nodes
        self._held_by.update(dict.fromkeys((key, *stage.inputs.values()), nodes[0]))
        return nodes

    def hopeless(self) -> Iterator[str]:
        """All ready stages, the most urgent first, none of them ready any more: for where nothing will ever fit."""
        while self._ready:
            yield self._pop(*min(self._ready, key=lambda kind: self._ready[kind][0]))

    def _pop(self, demand: Demand, sort: Sort) -> str:
        key = heapq.heappop(self._ready[demand, sort])[-1]
        if not self._ready[demand, sort]:
            del self._ready[demand, sort]
        return key

    def _free(self, total: Capacity) -> dict[str, Pair]:
        """What is free of each node. Stages whose node was lost are run again: they come before all ready ones."""
        free, homeless = total.by_node, list[Running]()
        for stage in self.running.values():
            if all(name in free for name in stage.nodes) and stage.nodes:
                take(free, stage.nodes, each(stage.demand, total))
            else:
                homeless.append(stage)
        for stage in homeless:
            needed = each(stage.demand, total)
            stage.nodes = place(stage.demand.workers, needed, free) or ()
            take(free, stage.nodes, needed)
        return free

    def _gap(
        self, demand: Demand, sort: Sort, total: Capacity, free: dict[str, Pair], reserved: Reserved | None, now: float,
        near: str = "",
    ) -> tuple[str, ...] | None:  # fmt: skip
        """Nodes on which a stage can start without delaying the one that waits."""
        if reserved and now + self.known.expected(sort) > reserved.at:
            free = common(free, reserved.beside)
        return place(demand.workers, each(demand, total), free, near)

    def _reserve(self, demand: Demand, total: Capacity, free: dict[str, Pair], now: float) -> Reserved | None:
        """When there is room for a stage, as far as is known; None where even an idle cluster has none."""
        free, needed = dict(free), each(demand, total)
        ends = [(max(now, r.since + self.known.expected(r.sort)), r) for r in self.running.values()]
        for at, together in groupby(sorted(ends, key=itemgetter(0)), key=itemgetter(0)):
            for _, ended in together:
                take(free, ended.nodes, each(ended.demand, total), sign=-1)
            if nodes := place(demand.workers, needed, free):
                take(free, nodes, needed)
                return Reserved(at, free)
        return None
