"""A candidate packed as it will be served, and exported: files in the promotion's own folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_core.errors import ExportError, IntermocoError
from tune_jobs.promotion.candidate import Candidate
from tune_jobs.promotion.runs import MODEL
from tune_jobs.search.promotion import Promoted
from tune_jobs.store import Store

if TYPE_CHECKING:
    from analysis.predictions import Predictions
    from ssl_core.data.dataset import Dataset


@dataclass(frozen=True)
class Package:
    """A model's folder as MLflow loads it."""

    model: Path
    dataset: Dataset
    temperature: float  # logits are divided by it
    error: str | None = None  # why there is no model in the folder


def package(found: Promoted, candidate: Candidate, store: Store, work: Path) -> Package:
    """Write the model below `work`. Weights that cannot be read are an error of the package, for a gate to tell."""
    from ssl_core.data.dataset import Dataset
    from tune_jobs.promotion.package import save_model

    tuned, data = store.path(candidate.stage), store.find("data", candidate.data.key)
    temperature = _fitted(tuned) if found.study.promotion.temperature else 1.0
    dataset = Dataset.open(data)
    try:
        save_model(work / MODEL, tuned=tuned, data=data, temperature=temperature)
    except IntermocoError as error:
        return Package(work / MODEL, dataset, temperature, str(error))
    return Package(work / MODEL, dataset, temperature)


def as_served(found: Predictions, temperature: float) -> Predictions:
    """Stored predictions as the packed model should give them."""
    from ssl_core.temperature import tempered

    if temperature == 1:
        return found
    return dataclasses.replace(found, probabilities=tempered(found.probabilities, temperature, found.task))


def export(package: Package, tuned: Path, data: Path, formats: Sequence[str], work: Path, within: float) -> list[str]:
    """Write the model as each format below `work`; the files' names.

    Each is loaded anew and has to answer on the whole test set as the evaluation did, to `within`. Raises ExportError
    where it does not, and leaves no file.
    """
    if not formats:
        return []
    from analysis.predictions import read
    from ssl_core import export
    from ssl_core.predictor import Predictor
    from tune_jobs.promotion.package import form_of

    stored = read(tuned, "test")
    place = {name: row for row, name in enumerate(package.dataset.ids.tolist())}
    check = package.dataset.images[[place[name] for name in stored.ids.tolist()]], stored.probabilities
    predictor = Predictor.load(tuned / "model.pt", form_of(data), temperature=package.temperature)
    writers = {"onnx": export.export_onnx, "pt2": export.export_program}
    names = {name: f"model.{name}" for name in formats}
    for name, file in names.items():
        try:
            writers[name](predictor, work / file, check, evaluated_within=within)
        except ExportError as error:
            raise ExportError(f"{error}: promotion.export_within is {within:g}") from error
    return list(names.values())


def _fitted(tuned: Path) -> float:
    """The temperature that fits the validation predictions of a fine-tuning best."""
    from analysis.predictions import read
    from analysis.temperature import fit_temperature

    found = read(tuned, "val")
    return fit_temperature(found.labels, found.probabilities, found.task)
