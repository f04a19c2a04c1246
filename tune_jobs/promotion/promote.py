"""The verb `promote`: gates, then a version in MLflow, then the aliases; and the way back."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from analysis.model_calibration import draw
from tune_jobs.promotion import evidence, lineage
from tune_jobs.promotion.candidate import Candidate, choose
from tune_jobs.promotion.card import PLOT, card, description
from tune_jobs.promotion.gates import Gate
from tune_jobs.promotion.packing import Package, export, package
from tune_jobs.promotion.place import Place, held
from tune_jobs.promotion.registry import Version
from tune_jobs.search.promotion import Promoted
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.tracking_client import mask


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What a promotion found and did."""

    study: str
    model: str
    candidate: str
    why: str
    tracking: str  # password hidden
    mended: tuple[str, ...] = ()
    outcome: Literal["promoted", "already", "refused"] = "refused"
    gates: tuple[Gate, ...] = ()
    version: str | None = None
    former: str | None = None
    record: Path | None = None

    @property
    def is_champion(self) -> bool:
        return self.outcome != "refused"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "record": self.record and str(self.record)}


@dataclass(frozen=True)
class RolledBack:
    model: str
    version: str  # champion now
    former: str


@dataclass(frozen=True)
class Asked:
    """What the command line says of a promotion."""

    arm: str | None = None
    seed: int | None = None
    reason: str | None = None  # promote though the champion is not beaten
    formats: tuple[str, ...] = ()  # to export as: onnx, pt2


def promote(found: Promoted, store: Store, asked: Asked, tell: Callable[[str], None] | None = None) -> Promotion:
    """Check every gate on a study's model; where all pass, register it and make it the champion.

    A reason lets a champion stand that is not beaten, and no other gate. Nothing is registered where a gate fails, and
    nothing changes where the model is the champion already. One promotion a root at a time: another waits, and is then
    compared with the new champion.

    `tell` gets a line for the candidate, and one for each gate as soon as it is known.

    Raises InputError for an arm or seed that is not there; TrackingError where MLflow is out of reach; ExportError,
    with nothing registered, for a file that does not answer as the evaluation did.
    """
    candidate = choose(found, store, arm=asked.arm, seed=asked.seed)
    with held(found.study, store) as place:
        mended = place.mend()
        with place.reached():
            champion = place.registry.champion()
        done = Promotion(
            study=found.study.study,
            model=place.registry.name,
            candidate=f"{candidate.name} seed {candidate.seed}",
            why=candidate.why,
            tracking=mask(place.uri),
            mended=mended,
        )
        say = tell or _unheard
        say(f"{done.study}: {done.candidate}; {done.why}")
        same = lineage.identity(found, candidate, store)
        if champion is not None and champion.complete and same.items() <= champion.tags.items():
            return replace(done, outcome="already", version=champion.number)
        with place.records.begun() as work:
            return Attempt(found, store, asked, place, candidate, champion, work).run(done, say)


def roll_back(study: Study, store: Store, reason: str | None) -> RolledBack:
    """Champion and previous change places; the same again undoes it. InputError where there is no previous."""
    with held(study, store) as place:
        place.mend()
        with place.reached():
            now, before = place.registry.rollback(by=_who(), why=reason or "rolled back")
    return RolledBack(place.registry.name, now, before)


@dataclass(frozen=True)
class Attempt:
    """One candidate on its way; `work` is the folder of its files."""

    found: Promoted
    store: Store
    asked: Asked
    place: Place
    candidate: Candidate
    champion: Version | None
    work: Path

    def run(self, done: Promotion, tell: Callable[[str], None]) -> Promotion:
        packed = package(self.found, self.candidate, self.store, self.work)
        gates: tuple[Gate, ...] = ()
        for gate in evidence.gates(self.found, self.candidate, self.champion, packed, self.store, self.work):
            tell(f"{'pass' if gate.passed else 'FAIL'}  {gate.name:12} {gate.sentence}")
            gates = (*gates, gate)
        failed = [gate for gate in gates if not gate.passed]
        if failed and (self.asked.reason is None or not all(gate.forceable for gate in failed)):
            return replace(done, gates=gates)
        for gate in failed:
            tell(f"forced: the gate {gate.name} is passed over, which is recorded: {self.asked.reason}")
        return self.enter(packed, replace(done, gates=gates))

    def enter(self, packed: Package, done: Promotion) -> Promotion:
        """Into the registry, and onto the throne. Killed anywhere it leaves what `Place.mend` puts right."""
        version = self._registered(packed, done.gates)
        expected = None if self.champion is None else self.champion.number
        with self.place.reached():
            self.place.registry.promote(
                version, expected=expected, by=_who(), why=self.asked.reason or self.candidate.why
            )
        return replace(
            done, outcome="promoted", version=version.number, former=expected, record=self.place.records.publish()
        )

    def _registered(self, packed: Package, gates: Sequence[Gate]) -> Version:
        """A complete version of the model: one that is there, made by the same code, or a new one with its run."""
        told = lineage.tags(self.found, self.candidate, self.store, packed, gates)
        same = lineage.identity(self.found, self.candidate, self.store) | {"intermoco.code": told["intermoco.code"]}
        described = self._written(packed, gates, told)
        with self.place.reached():
            there = self.place.registry.find(same) if lineage.exact(told["intermoco.code"]) else None
        if there is not None:
            self._recorded(there)
            return there
        parent = self.place.parent(self.found)
        with self.place.reached():
            name = f"promotion {self.candidate.arm} seed {self.candidate.seed}"
            run, source = self.place.runs.begin(name, told, parent, described, self.work)
            made = self.place.registry.create(run=run, source=source, tags=told, description=described)
            self._recorded(made)
            self.place.registry.complete(made)
            self.place.runs.end(run)
        return made

    def _written(self, packed: Package, gates: Sequence[Gate], told: dict[str, str]) -> str:
        """Card, plot, gates and exports in the promotion's folder; the card as MLflow shows it."""
        told["intermoco.record"] = f"{self.found.study.study}/promotion/{self.place.records.next}"
        if self.asked.reason is not None:
            told["intermoco.forced"] = self.asked.reason
        exports = export(
            packed,
            self.store.path(self.candidate.stage),
            self.store.path(self.candidate.data),
            self.asked.formats,
            self.work,
            self.found.study.promotion.export_within,
        )
        facts = lineage.card_facts(
            self.found,
            self.candidate,
            self.store,
            packed,
            gates,
            model=self.place.registry.name,
            reason=self.asked.reason,
            exports=exports,
            lineage={name: told[f"intermoco.{name}"] for name in _LINEAGE if f"intermoco.{name}" in told},
        )
        text = json.dumps([asdict(gate) for gate in gates], indent=1, ensure_ascii=False) + "\n"
        (self.work / "gates.json").write_text(text, encoding="utf-8")
        (self.work / "card.md").write_text(card(facts), encoding="utf-8")
        draw({split: of.bins for split, of in facts.measured.calibration.items()}, self.work / PLOT)
        return description(facts)

    def _recorded(self, version: Version) -> None:
        """From here on the folder belongs to a version; the model itself is in MLflow."""
        self.place.records.say({"model": self.place.registry.name, "version": version.number, "run": version.run})


#: Tags that the card lists.
_LINEAGE = (
    "study",
    "arm",
    "seed",
    "stage",
    "encoder",
    "data",
    "fingerprint",
    "weights",
    "git_commit",
    "code",
    "record",
)


def _unheard(line: str) -> None:
    """Lines that nobody asked for."""
    del line


def _who() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
