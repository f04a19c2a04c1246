"""The verb `data`: what a study's dataset holds, what is wrong with it, and what each label fraction takes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tune_jobs.ablate import ray_at, require_cluster
from tune_jobs.locks import running
from tune_jobs.origin import git_commit
from tune_jobs.plan import labels_of
from tune_jobs.prepare import planned, summary
from tune_jobs.readiness import checked, make_ready, queues
from tune_jobs.store import Store
from tune_jobs.study import Study

if TYPE_CHECKING:
    from ssl_core.data.audit import Audit
    from ssl_core.data.dataset import Dataset


@dataclass(frozen=True)
class Inspection:
    """What `data` tells, in a form to print or to write as JSON."""

    facts: dict[str, Any]  # the packed dataset's summary
    audit: Audit
    findings: Sequence[str]  # a line each
    fractions: Sequence[dict[str, Any]]
    seed: int  # whose fractions are shown

    @property
    def packing(self) -> str:
        """What packing cost, in a line."""
        cost = self.facts["packing"]
        return (
            f"packed  {cost['images']:,} images in {cost['seconds']:.1f} s, {cost['images_per_second']:,.0f} images/s, "
            f"{cost['source_bytes'] / 1e6:,.1f} MB read, {cost['bytes'] / 1e6:,.1f} MB written"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            **self.facts,
            "audit": self.audit.as_rows(),
            "seed": self.seed,
            "fractions": list(self.fractions),
        }


def inspect(study: Study, store: Store, address: str | None) -> Inspection:
    """Counts, classes, groups, splits, findings and label fractions; packs the dataset if that was not done yet.

    Raises DataError for what is wrong with the data as a whole, ConfigError for what the study asks of it in vain.
    """
    from ssl_core.data.audit import queue_findings

    with running(study.study, store):
        require_cluster(address, store, None)  # it tracks nothing
        full = planned(study, store)
        ready = make_ready(store, full, {"git_commit": git_commit()}, on_ray=ray_at(address))
        notes = checked(study, ready)
    dataset = ready.dataset
    facts = summary(store.find("data", next(full.of_kind("data")).key))
    down = study.downstream
    fractions = sorted({*down.fractions, *down.linear_fractions, *study.probe_fractions})
    about_queues = queue_findings(facts["n"]["train"], queues(study, facts["n"]["train"]))
    found = [*ready.audit.findings, *about_queues]
    lines = [f"{'STOPS' if f.severity == 'stops' else 'note '}  {f.name}: {f.text}" for f in found]
    return Inspection(
        facts=facts,
        audit=ready.audit,
        findings=[*lines, *(f"note   {note}" for note in notes)],
        fractions=[_fraction(study, dataset, fraction) for fraction in fractions],
        seed=study.seeds[0],
    )


def _fraction(study: Study, dataset: Dataset, fraction: float) -> dict[str, Any]:
    """How many images and groups, and how many of each class (positives of each label), a label fraction takes."""
    from ssl_core.data.labels import label_subset

    config = labels_of(study.downstream, study.baseline)
    rows = label_subset(
        dataset.labels,
        dataset.splits,
        fraction=fraction,
        seed=study.seeds[0],
        config=config,
        groups=dataset.groups,
    )
    labels = dataset.labels[rows]
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(dataset.class_names))
    classes = dict(zip(dataset.class_names, counts.tolist(), strict=True))
    return {"fraction": fraction, "n": len(rows), "groups": len(np.unique(dataset.groups[rows])), "classes": classes}
