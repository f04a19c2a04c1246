"""Runs of one thing in one MLflow experiment: found again by their tags, never by a remembered id.

A run that is written once has the tag `intermoco.complete` set last: one without it is half-written, it is deleted and
written anew. A run that grows is compared with what it should say, and what differs is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune_jobs.tracking_facts import Point, finite

Identity = tuple[str | None, ...]

PARENT, COMPLETE = "mlflow.parentRunId", "intermoco.complete"
_SOURCE = {"mlflow.source.name": "intermoco"}


@dataclass
class Run:
    """A run that is in MLflow, by its id there."""

    id: str
    parent: str | None
    tags: dict[str, str]


class Runs:
    """The runs whose tag `tag` is `key`, in one experiment.

    Args:
        identity: tags that together name one of them.
        growing: values of `intermoco.kind` of those that grow; all others are written once.
    """

    def __init__(
        self,
        client: Any,
        experiment: str,
        *,
        tag: str,
        key: str,
        identity: Sequence[str],
        growing: Collection[str],
    ) -> None:
        self.client, self.experiment = client, experiment
        self._tag, self._key, self._names, self._growing = tag, key, identity, growing
        self._runs = self._found()

    def find(self, tags: Mapping[str, str]) -> Run | None:
        """The run that these tags name."""
        return self._runs.get(self._identity(tags))

    def create(self, name: str, tags: Mapping[str, str], started: int, parent: str | None) -> str:
        """Begin a run; its id. One that is written once has to be ended by `end`."""
        above = {} if parent is None else {PARENT: parent}
        run = self.client.create_run(
            self.experiment,
            start_time=started,
            tags={self._tag: self._key} | _SOURCE | above | dict(tags),
            run_name=name,
        )
        if tags["intermoco.kind"] in self._growing:
            self._runs[self._identity(tags)] = Run(run.info.run_id, parent, dict(tags))
        return str(run.info.run_id)

    def end(self, run: str, tags: Mapping[str, str], parent: str, status: str, ended: int) -> Run:
        """A run that is written once has been written."""
        self.client.set_terminated(run, status, ended)
        self.client.set_tag(run, COMPLETE, "true")
        whole = self._runs[self._identity(tags)] = Run(run, parent, dict(tags))
        return whole

    def place(self, run: Run, parent: str | None) -> None:
        """Move a run below its parent, if that was deleted by hand and written anew."""
        if parent is not None and run.parent != parent:
            self.client.set_tag(run.id, PARENT, parent)
            run.parent = parent

    def tag(self, run: Run, name: str, value: str | None) -> None:
        """Set a tag, where it differs; None: take it away."""
        if run.tags.get(name) == value:
            return
        if value is None:
            self.client.delete_tag(run.id, name)
            del run.tags[name]
        else:
            self.client.set_tag(run.id, name, value)
            run.tags[name] = value

    def renew(self, run: Run, params: Mapping[str, str]) -> None:
        """Delete a growing run that holds other parameters: MLflow changes none. What lies below it stays."""
        held = self.client.get_run(run.id).data.params
        if any(params.get(name) != value for name, value in held.items()):
            self.client.delete_run(run.id)
            del self._runs[self._identity(run.tags)]

    def log(self, run: str, params: Mapping[str, str], points: Sequence[Point]) -> None:
        from mlflow.entities import Metric, Param

        metrics = [Metric(p.name, p.value, p.time, p.step) for p in points]
        self.client.log_batch(run, metrics, [Param(name, value) for name, value in params.items()])  # it splits them

    def grow(
        self,
        run: str,
        *,
        params: Mapping[str, str],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        state: tuple[str, int],
    ) -> Any:
        """Make a growing run say what it should; returns it as it was. `state`: MLflow's status, and the time it ended.

        A parameter that is there stays: MLflow changes none.
        """
        from mlflow.entities import RunTag

        status, ended = state
        found = self.client.get_run(run)
        known, at = found.data.metrics, now()
        values = {name: finite(value) for name, value in metrics.items()}
        self.log(
            run,
            {name: value for name, value in params.items() if name not in found.data.params},
            [Point(name, value, at, 0) for name, value in values.items() if not _same(known.get(name), value)],
        )
        if found.info.status != status or (status == "FINISHED" and found.info.end_time != ended):
            if status == "RUNNING":
                self.client.update_run(run, status)
            else:
                self.client.set_terminated(run, status, ended)
        tags = {**tags, COMPLETE: json.dumps(status == "FINISHED")}
        if news := [RunTag(name, value) for name, value in tags.items() if found.data.tags.get(name) != value]:
            self.client.log_batch(run, tags=news)
        return found

    def _found(self) -> dict[Identity, Run]:
        """Runs by identity. Deletes half-written ones, and all but one of several of one identity."""
        runs: dict[Identity, Run] = {}
        for run in sorted(self._search(), key=lambda r: (r.info.start_time, r.info.run_id)):
            tags = run.data.tags
            whole = tags.get(COMPLETE) == "true" or tags["intermoco.kind"] in self._growing
            if whole and self._identity(tags) not in runs:
                runs[self._identity(tags)] = Run(run.info.run_id, tags.get(PARENT), dict(tags))
            else:
                self.client.delete_run(run.info.run_id)
        return runs

    def _search(self) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment], f"tags.`{self._tag}` = '{self._key}'", max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _identity(self, tags: Mapping[str, str]) -> Identity:
        return tuple(tags.get(name) for name in self._names)


def now() -> int:
    """Milliseconds since 1970."""
    return round(1000 * time.time())


def _same(old: float | None, new: float) -> bool:
    return old is not None and (old == new or (old != old and new != new))
