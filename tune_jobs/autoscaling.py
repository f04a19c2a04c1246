"""Asks a cluster's autoscaler for what ready work could use, within a study's bounds, and takes it back."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any

from tune_jobs.room import Capacity, each
from tune_jobs.stage import Demand

Bundle = dict[str, float]
#: Seconds after which what a study asked for counts as taken back: its driver was killed.
LEASE = 60.0
#: Seconds between what a study asks.
PAUSE = 5.0
#: Seconds that ready stages wait for nodes where nothing runs any more.
PATIENCE = 1200.0
NAME = "intermoco-autoscaling"


def bundles(demands: Iterable[Demand], cluster: Capacity) -> list[Bundle]:
    """What stages ask for, a bundle for each worker, as long as all of it is within what the cluster may grow to."""
    found: list[Bundle] = []
    cpus = accelerators = 0.0
    for demand in demands:
        of_cpus, of_accelerators = each(demand, cluster)
        cpus += demand.workers * of_cpus
        accelerators += demand.workers * of_accelerators
        if cpus > max(cluster.most_cpus, cluster.cpus) or accelerators > cluster.may_have:
            break
        found += [{"CPU": of_cpus} | ({"GPU": of_accelerators} if of_accelerators else {})] * demand.workers
    return found


class Wishes:
    """A study's wishes. What is asked for lives in an actor of its own, which forgets those of a driver that died."""

    def __init__(self) -> None:
        self._me = uuid.uuid4().hex
        self._keeper: Any = None
        self._asked_at = self._met_at = time.monotonic() - PAUSE

    def ask(self, wanted: list[Bundle], *, running: bool) -> bool:
        """Ask for as much in all; whether it is worth waiting. `running`: whether anything is."""
        now = time.monotonic()
        if running or not wanted:
            self._met_at = now
        if now - self._asked_at >= PAUSE:
            self._asked_at = now
            self._tell(wanted)
        return bool(wanted) and now - self._met_at < PATIENCE

    def take_back(self) -> None:
        import ray

        if self._keeper is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._keeper.ask.remote(self._me, []), timeout=10)
            self._keeper = None

    def _tell(self, wanted: list[Bundle]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        # one for all studies, on the driver's node: elsewhere it would keep a node from being let go
        here = On(ray.get_runtime_context().get_node_id(), soft=True)
        with contextlib.suppress(ray.exceptions.RayError):  # a keeper that is gone is made anew by the next wish
            self._keeper = (
                ray.remote(num_cpus=0)(_Keeper)
                .options(name=NAME, namespace=NAME, lifetime="detached", get_if_exists=True, scheduling_strategy=here)
                .remote(LEASE)
            )
            self._keeper.ask.remote(self._me, wanted)


class _Keeper:
    """What all studies on a cluster ask for. Ends when none asks for anything."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._wishes: dict[str, tuple[float, list[Bundle]]] = {}
        self._lock = threading.Lock()
        self._began = time.monotonic()
        threading.Thread(target=self._forget, daemon=True).start()

    def ask(self, who: str, wanted: list[Bundle]) -> None:
        with self._lock:
            self._wishes[who] = (time.monotonic(), wanted)
            self._send()

    def _send(self) -> None:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[bundle for _, wanted in self._wishes.values() for bundle in wanted])

    def _forget(self) -> None:
        while True:
            time.sleep(1.0)
            with self._lock:
                since = time.monotonic() - self._lease
                kept = {who: wish for who, wish in self._wishes.items() if wish[0] > since and wish[1]}
                if kept != self._wishes:
                    self._wishes = kept
                    self._send()
                if not kept and self._began < since:
                    os._exit(0)
