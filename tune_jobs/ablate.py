"""The verb `ablate`: a study from YAML to report and MLflow."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tune_jobs.audit import enforce
from tune_jobs.cluster import is_local, joined_ray, local_ray
from tune_jobs.executor import Outcome, execute
from tune_jobs.failures import one_line
from tune_jobs.findings import write_report
from tune_jobs.locks import running
from tune_jobs.memory import require_memory
from tune_jobs.origin import git_commit
from tune_jobs.packing import Start
from tune_jobs.plan import Plan
from tune_jobs.prepare import planned
from tune_jobs.readiness import Ready, checked, make_ready
from tune_jobs.room import here
from tune_jobs.runner import RayRunner, check_fits
from tune_jobs.search.promotion import Promoted, promoted
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.waiting import ROOM_SECONDS, await_room
from tune_jobs.watch import Watch

if TYPE_CHECKING:
    from tune_jobs.tracking import Synced


@dataclass
class Result:
    """What a run did and left."""

    study: str
    metric: str
    outcome: Outcome
    plan: Plan
    wall_seconds: float
    written: dict[str, Any] = field(default_factory=dict)
    late: str | None = None  # why MLflow is behind, if it is

    @property
    def failed(self) -> bool:
        return bool(self.outcome.failed)

    def as_json(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "executed": len(self.outcome.executed),
            "cached": len(self.outcome.cached),
            "failed": len(self.outcome.failed),
            "skipped": len(self.outcome.skipped),
            "failures": {self.plan.by_key[k].name: one_line(e) for k, e in self.outcome.failed.items()},
            "wall_seconds": round(self.wall_seconds, 2),
            "tracking_late": self.late,
            **self.written,
        }


def ablate(study: Study, *, root: Path, address: str | None, command: str) -> Result:
    """Run what is not finished, write tables and report, bring MLflow up to date.

    A study whose search has come to its end is run with the search's best trials as arms (`promoted`). Raises
    InputError before anything has run; KeyboardInterrupt on Ctrl-C or SIGTERM, with finished stages kept.
    """
    clock, store = time.monotonic(), Store(root)
    with running(study.study, store), terminable():
        return complete(begin(study, store, address, command), clock)


@dataclass(frozen=True)
class Begun:
    """A study whose data is packed, audited and fit for it: what its stages, or its trials, can start from."""

    study: Study
    plan: Plan
    store: Store
    address: str | None
    command: str  # to be typed again
    facts: Mapping[str, Any]  # of every manifest
    ready: Ready


def begin(study: Study, store: Store, address: str | None, command: str) -> Begun:
    """Find bad input before anything runs; pack and audit what is not yet."""
    require_cluster(address, store, tracking_uri(study, store))
    full = planned(study, store)
    if address is None:  # a cluster's capacity is known once it is joined
        check_fits(full.by_key.values(), here())
    facts = {"git_commit": git_commit()}
    ready = make_ready(store, full, facts, on_ray=ray_at(address))
    enforce(study, ready.audit)
    for note in checked(study, ready):
        print(f"note: {note}", file=sys.stderr)
    if address is None:
        require_memory(full, store, ready.datasets)
    if said := ", ".join(finding.name for finding in ready.audit.findings):
        print(f"note: the audit found {said}; `intermoco data` and the report say more", file=sys.stderr)
    return Begun(study, full, store, address, command, facts, ready)


def complete(begun: Begun, clock: float) -> Result:
    """Run the stages, then write what they say; `clock` is when all of it began."""
    store = begun.store
    found = promoted(begun.study, begun.plan, store)
    study, full = found.study, found.plan
    if found.arms:
        checked(study, begun.ready)
    folder = store.root / study.study
    (folder / "study.yaml").write_text(begun.study.to_yaml())
    outcome = _execute(study, full, store, begun.address, begun.facts)
    made = begun.ready.made
    outcome.cached = [key for key in outcome.cached if key not in made]
    outcome.executed = [*made, *outcome.executed]
    _write_failures(folder, full, outcome)
    errors = {full.by_key[k].name: one_line(e) for k, e in outcome.failed.items()}
    written = write_report(found, store, errors, begun.command)
    late = track(found, store)
    written["tracking"] = tracking_uri(study, store, masked=True)
    return Result(study.study, study.downstream.metric, outcome, full, time.monotonic() - clock, written, late)


def tracking_uri(study: Study, store: Store, *, masked: bool = False) -> str:
    """The study's MLflow, SQLite below the root where it names none; ConfigError for a file that it may not write."""
    from tune_jobs.tracking import default_uri, mask
    from tune_jobs.tracking_client import require_own

    if study.tracking.uri:
        require_own("tracking.uri", study.tracking.uri, store.root, "experiments", "set MLFLOW_TRACKING_URI instead")
    uri = study.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(store.root)
    return mask(uri) if masked else uri


def track(found: Promoted, store: Store) -> str | None:
    """Replay finished stages and trials into MLflow; what hindered it, in words, if something did."""
    study = found.study
    try:
        replay(found, store)
    except Exception as error:  # MLflow and its stores raise many kinds; none may cost the study its result
        return (
            f"MLflow at {tracking_uri(study, store, masked=True)} is behind ({one_line(error)}); run `intermoco sync`"
        )
    return None


def replay(found: Promoted, store: Store) -> Synced:
    """Bring MLflow to what the study's finished stages, and its search's trials, say."""
    from tune_jobs.tracking import Synced, sync

    study, uri = found.study, tracking_uri(found.study, store)
    done = sync(study, found.plan, store, uri=uri, folder=store.root / study.study)
    if found.ledger is None:
        return done
    from tune_jobs.search.tracking import sync_search

    trials = sync_search(study, found.plan, store, found.ledger, uri=uri, arms=found.arms)
    return Synced(done.uri, done.created + trials.created, done.already_there + trials.already_there)


def _execute(study: Study, full: Plan, store: Store, address: str | None, facts: Mapping[str, Any]) -> Outcome:
    """Run unfinished stages on Ray; no Ray is started where there are none."""
    if all(store.finished(stage) for stage in full.by_key.values()):
        return Outcome(cached=list(full.by_key))
    from tune_jobs.tracking import follow

    with ray_at(address)():
        asks = study.resources
        most = (asks.most_cpus, asks.most_accelerators) if address else (0.0, 0.0)
        runner = RayRunner(store, facts, most=most, alone=is_local())
        patience = ROOM_SECONDS if address else 0.0
        await_room(lambda: check_fits(full.by_key.values(), runner.capacity()), patience=patience)
        follower = follow(study, full, store, uri=tracking_uri(study, store))
        try:
            with Watch(full, on_finished=lambda stage: follower.add(stage.key)) as watch:
                outcome = execute(full, store, runner, watch)
        except BaseException:
            runner.cancel()
            follower.close(timeout=2)  # the next run catches up
            raise
        finally:
            runner.close()
        follower.close(timeout=30, settle=60)  # what it could not send goes with the tables and the report
    return outcome


def ray_at(address: str | None) -> Start:
    """What joins the Ray at an address, or starts and stops a local one; nothing where one is joined already."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return contextlib.nullcontext
    return (lambda: joined_ray(address)) if address else local_ray


def require_cluster(address: str | None, store: Store, tracking: str | None) -> None:
    """ConfigError where the nodes of the cluster at an address, if there is one, cannot work together on this root."""
    if address is not None:
        from tune_jobs.fitness import require_fit

        with ray_at(address)():
            require_fit(store.root, tracking)


def _write_failures(folder: Path, full: Plan, outcome: Outcome) -> None:
    """The whole traceback of each failed stage, for whoever has to find out why."""
    target = folder / "failures"
    for old in target.glob("*.txt"):
        old.unlink()
    for key, error in outcome.failed.items():
        target.mkdir(exist_ok=True)
        text = "".join(traceback.format_exception(error))
        (target / f"{full.by_key[key].folder}.txt").write_text(f"{full.by_key[key].name}\n\n{text}")


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does: cleanly, resumable. Python drops what a callback of a weak reference raises:
    an interrupt that falls into one comes again.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def dropped(what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, _thread.interrupt_main).start()  # in here it would be dropped too
        else:
            told(what)

    before, told = signal.signal(signal.SIGTERM, interrupt), sys.unraisablehook
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = told
        signal.signal(signal.SIGTERM, before)
