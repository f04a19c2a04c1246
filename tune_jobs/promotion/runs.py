"""A promotion as a run in MLflow, below the study's: the model's folder, the card and the gates are its files.

Its tags are its own: it has none by which `tracking_writer` finds the runs of stages, so `sync` never looks at it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tune_jobs.promotion.registry import OWNER
from tune_jobs.tracking_runs import COMPLETE, PARENT, now

KIND = {"intermoco.kind": "promotion"}
NOTE = "mlflow.note.content"
MODEL = "model"  # folder of the run's artifacts that a version's source is
#: Seconds that a server may take to store a file. It answers when the file is where it keeps it, and weights have a
#: hundred megabytes; `tracking_client.IMPATIENCE` is for small questions.
STORING = 300


class PromotionRuns:
    """The promotions of one root in one experiment; its lock is held."""

    def __init__(self, client: Any, experiment: str, owner: str) -> None:
        self.client, self.experiment, self.owner = client, experiment, owner

    def begin(self, name: str, tags: Mapping[str, str], parent: str | None, note: str, folder: Path) -> tuple[str, str]:
        """Write a run with a note in Markdown and the files below `folder`: its id, and the address of its model."""
        above = {} if parent is None else {PARENT: parent}
        told = {**tags, **KIND, **above, OWNER: self.owner, "mlflow.source.name": "intermoco", NOTE: note}
        run = self.client.create_run(self.experiment, start_time=now(), tags=told, run_name=name)
        with _patience():
            self.client.log_artifacts(run.info.run_id, str(folder))
        return str(run.info.run_id), f"{run.info.artifact_uri}/{MODEL}"

    def end(self, run: str) -> None:
        """The run is whole: the version that it belongs to is."""
        self.client.set_terminated(run, "FINISHED", now())
        self.client.set_tag(run, COMPLETE, "true")

    def sweep(self, registered: Collection[str]) -> None:
        """Delete what a killed process left half-written; end what belongs to a complete version, by its run's id."""
        for run in list(self._begun()):
            if run.data.tags.get(COMPLETE) == "true":
                continue
            if run.info.run_id in registered:
                self.end(run.info.run_id)
            else:
                self.client.delete_run(run.info.run_id)

    def _begun(self) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                f"tags.`intermoco.kind` = 'promotion' and tags.`{OWNER}` = '{self.owner}'",
                max_results=1000,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """While files are sent. MLflow reads its setting anew for each request."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ.get(name)
    os.environ[name] = str(max(STORING, int(before or 0)))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
