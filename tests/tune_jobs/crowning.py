"""Promotions whose gates count as passed: what comes after the gates, and processes that are killed there."""

from __future__ import annotations

from killed import die_before
from promotable import Trained

from ssl_core.data.dataset import Dataset
from tune_jobs.promotion.candidate import choose
from tune_jobs.promotion.gates import Gate
from tune_jobs.promotion.packing import Package
from tune_jobs.promotion.place import held
from tune_jobs.promotion.promote import Asked, Attempt, Promotion

PASSED = Gate("weights", True, "they are the same")


def crowned(wards: Trained, arm: str, *, killed_before: int | None = None) -> Promotion:
    """Register an arm, with files in its model's place; killed before the write to MLflow of that number."""
    found, store = wards.found(), wards.store
    candidate = choose(found, store, arm=arm, seed=0)
    with held(found.study, store) as place:
        place.mend()
        with place.records.begun() as work:
            (work / "model").mkdir()
            (work / "model" / "MLmodel").write_text("flavors: {}")
            dataset = Dataset.open(store.find("data", candidate.data.key))
            attempt = Attempt(found, store, Asked(), place, candidate, place.registry.champion(), work)
            done = Promotion(study="wards", model="wards", candidate=arm, why="", tracking="", gates=(PASSED,))
            if killed_before is not None:
                die_before(place.client, killed_before, "set_", "create_", "delete_", "log_")
            return attempt.enter(Package(work / "model", dataset, 1.0), done)


def killed_while_crowning(wards: Trained, arm: str, call: int) -> None:
    crowned(wards, arm, killed_before=call)
