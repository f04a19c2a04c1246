"""A search's place, and its best trials as arms of the study, beside the paper's settings, with the study's seeds."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ssl_core.config import PretrainConfig
from tune_jobs.plan import Plan, as_config, plan
from tune_jobs.schema import plain
from tune_jobs.stage import canonical
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.tracking_client import require_own

if TYPE_CHECKING:
    from pathlib import Path

    from tune_jobs.search.ledger import Ledger


@dataclass(frozen=True)
class Promoted:
    """A study with what its search adds. Without a finished search it is the study as it was."""

    study: Study
    plan: Plan
    ledger: Ledger | None = None
    arms: Mapping[int, str] = field(default_factory=dict)  # of the best trials: number to arm
    starts: Mapping[str, str] = field(default_factory=dict)  # of the paper's settings: name to arm
    controls: Mapping[int, str] = field(default_factory=dict)  # of the best trials without their block losses


def search_folder(study: Study, store: Store) -> Path:
    """Where the study's search keeps its storage and curves."""
    return store.root / study.study / "search"


def identity(study: Study, full: Plan) -> dict[str, str]:
    """What a search is: digests of its parts, by names that an error can say. Going on changes none of them."""
    search = study.search
    assert search is not None
    parts: dict[str, Any] = {
        "dataset": next(full.of_kind("data")).key,
        "search.space": list(plain(search.space.raw).items()),  # their order is that of the draws
        "the arms' common settings": {loss: as_config(base) for loss, base in search.bases.items()},
        "search.objectives": list(search.objectives),
        "search.score": as_config(search.score),
        "search.seeds": list(search.seeds),
        "resources.workers": study.resources.workers,
    }
    return {name: hashlib.sha256(canonical(part).encode()).hexdigest()[:16] for name, part in parts.items()}


def opened(study: Study, full: Plan, store: Store, *, create: bool) -> Ledger | None:
    """The study's search: to go on with where `create`, else to be read, None where it never ran.

    Raises ConfigError where the storage holds another search.
    """
    from tune_jobs.search.ledger import Ledger

    assert study.search is not None
    if study.search.storage:
        require_own("search.storage", study.search.storage, store.root, "studies", "give a server's address")
    place: dict[str, Any] = {
        "url": study.search.storage,
        "folder": search_folder(study, store),
        "name": study.study,
        "identity": identity(study, full),
    }
    return Ledger.open(study.search, **place) if create else Ledger.look(study.search, **place)


def promoted(study: Study, full: Plan, store: Store) -> Promoted:
    """The study with the paper's settings and the best trials as arms, where its search has come to its end.

    A trial that won by its rate or its temperature would have won without its block losses too: the same arm without
    them is an arm of its own, its control. An arm that the study has under another name is not added again.

    Raises ConfigError where the storage holds another search than the study's.
    """
    if study.search is None:
        return Promoted(study, full)
    ledger = opened(study, full, store, create=False)
    if ledger is None or not ledger.finished or not study.search.promote:
        return Promoted(study, full, ledger)
    search, arms = study.search, dict(study.arms)
    paper = search.space.paper_starts(search.bases)
    starts = {name: _add(arms, name, search.space.arm(values, search.bases)) for name, values, _ in paper}
    best = {trial.number: trial.arm for trial in ledger.best(search.promote)}
    names = {number: _add(arms, f"trial_{number}", arm) for number, arm in best.items()}
    controls = {
        number: _add(arms, f"trial_{number}_no_losses", dataclasses.replace(arm, mse=None, barlow=None))
        for number, arm in best.items()
        if search.controls and (arm.mse or arm.barlow)
    }
    larger = dataclasses.replace(study, arms=arms)
    fingerprints = {config: full.by_key[key].config["fingerprint"] for key, config in full.datasets.items()}
    return Promoted(larger, plan(larger, fingerprints), ledger, names, starts, controls)


def _add(arms: dict[str, PretrainConfig | None], name: str, arm: PretrainConfig) -> str:
    """Add an arm unless an equal one is there; the name that it goes by."""
    for other, there in arms.items():
        if there == arm:
            return other
    while name in arms:
        name += "_"
    arms[name] = arm
    return name
