"""What the gates are told, read from finished stages and the packed model. No test prediction is opened here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_jobs.audit import opened
from tune_jobs.findings import finished_stage
from tune_jobs.promotion import gates as asked
from tune_jobs.promotion.candidate import Candidate, champions_standing, standing
from tune_jobs.promotion.gates import Gate
from tune_jobs.promotion.packing import Package, as_served
from tune_jobs.promotion.registry import Version
from tune_jobs.promotion.reload import ask, reloaded
from tune_jobs.search.promotion import Promoted
from tune_jobs.store import MANIFEST, Store, file_digest

if TYPE_CHECKING:
    from analysis.predictions import Predictions

#: What a model's evaluation is made of.
EVALUATED = ("model.pt", "predictions.npz")


def gates(
    found: Promoted, candidate: Candidate, champion: Version | None, package: Package, store: Store, work: Path
) -> Iterator[Gate]:
    """Every gate's answer, in the order in which they are told; `work` is a folder for what is passed to the reload."""
    from analysis.predictions import read

    folder, bounds = store.path(candidate.stage), found.study.promotion
    said = as_served(read(folder, "val"), package.temperature)
    rival = None if champion is None else champions_standing(champion.tags, store)
    yield asked.beats_champion(standing(candidate, store), rival)
    yield _calibration(said, bounds.ece)
    yield _worst_class(candidate, package, store, said, bounds.worst_class)
    yield _leaks(found, store)
    yield _weights(candidate, store)
    yield _reload(found, candidate, package, said, store, work)


def manifest(candidate: Candidate, store: Store) -> dict[str, Any]:
    """The manifest of the fine-tuning as it was published; its files may have changed since."""
    found: dict[str, Any] = json.loads((store.path(candidate.stage) / MANIFEST).read_text(encoding="utf-8"))
    return found


def _calibration(said: Predictions, bound: float) -> Gate:
    from analysis.calibration import ece

    return asked.calibration(ece(said.labels, said.probabilities, said.task), bound, len(said.ids))


def _worst_class(candidate: Candidate, package: Package, store: Store, said: Predictions, floor: float) -> Gate:
    """Recalls and AUROCs stay as they are at any temperature: it turns no order and no answer round."""
    from analysis.validation import class_table

    names = package.dataset.class_names
    table = class_table("", [finished_stage(candidate.stage, store)], names)
    measure = "auroc" if said.task == "multilabel" else "recall"
    values = table.loc[table["metric"] == measure, "value"].tolist()
    return asked.worst_class(values, names, floor, said.task)


def _leaks(found: Promoted, store: Store) -> Gate:
    from ssl_core.data.audit import stopping

    stage, accept = next(found.plan.of_kind("audit")), found.study.dataset.accept
    if not store.finished(stage):
        return asked.leaks(None, [])
    audit = opened(store, stage)
    return asked.leaks(stopping(audit, accept), [f for f in stopping(audit, ()) if f.name in accept])


def _weights(candidate: Candidate, store: Store) -> Gate:
    folder, files = store.path(candidate.stage), manifest(candidate, store)["files"]
    recorded = {name: files[name]["sha256"] for name in EVALUATED}
    return asked.weights(recorded, {n: file_digest(folder / n) for n in EVALUATED if (folder / n).is_file()})


def _reload(
    found: Promoted, candidate: Candidate, package: Package, said: Predictions, store: Store, work: Path
) -> Gate:
    device = str(manifest(candidate, store)["environment"]["device"])
    if package.error is not None:
        return asked.reloads(asked.Reloaded(0, math.nan, device, device, error=package.error))
    what = ask(package.dataset, found.plan.datasets[candidate.data.key], said, evaluated=device)
    return asked.reloads(reloaded(package.model, what, work))
