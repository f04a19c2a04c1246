"""Where a study's model is registered: MLflow, the study's own folder, and the locks on both."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tune_jobs.ablate import replay, tracking_uri
from tune_jobs.locks import promoting, running
from tune_jobs.promotion.record import Records
from tune_jobs.promotion.registry import Registry
from tune_jobs.promotion.runs import PromotionRuns
from tune_jobs.search.promotion import Promoted
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.tracking_client import connect, experiment, reached
from tune_jobs.tracking_writer import Writer


@dataclass(frozen=True)
class Place:
    """A registered model and what belongs to it; the root's promotions and the study are held."""

    study: Study
    store: Store
    uri: str
    client: Any
    registry: Registry
    runs: PromotionRuns
    records: Records

    def reached(self) -> AbstractContextManager[None]:
        """Around whatever asks MLflow: an error says which one, and what to do."""
        return reached(self.uri)

    def mend(self) -> tuple[str, ...]:
        """Finish or remove what a killed promotion of this root left; a sentence for each thing that matters."""
        with self.reached():
            said = self.registry.mend()
            complete = {v.number: v.run for v in self.registry.versions().values() if v.complete}
            self.runs.sweep(set(complete.values()))
            self.records.mend(lambda model, number: model == self.registry.name and number in complete)
            return tuple(said)

    def parent(self, found: Promoted) -> str | None:
        """Id of the study's run in MLflow, brought up to date so that what a promotion names is there."""
        with self.reached():
            replay(found, self.store)
            run = Writer(found.study, found.plan, self.store, self.uri).runs.find({"intermoco.kind": "study"})
            return None if run is None else run.id


@contextlib.contextmanager
def held(study: Study, store: Store) -> Iterator[Place]:
    """Wait for the root's other promotions, then hold them and the study.

    Raises InputError where the study is being run, TrackingError where MLflow is out of reach.
    """
    uri = tracking_uri(study, store)
    with promoting(store, _waits) as owner, running(study.study, store):
        with reached(uri):
            client = connect(uri)
            place = experiment(client, study.tracking.experiment or study.study, uri, store.root)
        name = study.promotion.model or study.study
        registry, runs = Registry(client, name, owner), PromotionRuns(client, place, owner)
        yield Place(study, store, uri, client, registry, runs, Records(study, store))


def _waits(process: str) -> None:
    print(f"note: waiting for another promotion in this root to end (process {process})", file=sys.stderr)
