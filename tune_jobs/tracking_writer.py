"""Brings one study's runs in MLflow to what its finished stages say.

    study run                 study.yaml, tables, report, dataset facts
    ├── stage run             data, ks: stages of no arm
    └── arm run               its pretraining's settings, mean test scores over seeds
        └── stage run         settings, metrics over time, final measures, small files

What is there is found again by its tags, never by a remembered id. A stage's run is written once, its tag
`intermoco.complete` last: a run without it is half-written, it is deleted and written anew. The runs of the study and
of its arms grow with what is finished: they are compared, and what differs is written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tune_jobs.plan import Plan, as_config
from tune_jobs.stage import Stage, canonical
from tune_jobs.store import Store, file_digest
from tune_jobs.study import Study
from tune_jobs.tracking_client import connect, experiment
from tune_jobs.tracking_facts import Point, Record, finite, flatten, merged, summary, total

Identity = tuple[str | None, ...]

PARENT, COMPLETE, FILES = "mlflow.parentRunId", "intermoco.complete", "intermoco.files"
#: Tags that together name a run of a study.
IDENTITY = tuple(f"intermoco.{name}" for name in ("kind", "arm", "seed", "mode", "label_fraction", "stage"))
SOURCE = {"mlflow.source.name": "intermoco"}
#: MLflow's limit of a dataset's digest, in characters.
DIGEST = 36


def study_key(study: Study, plan: Plan) -> str:
    """Identity of a study's run: everything the study asks, and the stages that answer it.

    Resources and tracking are left out. So is where the dataset lies: the keys of its stages hold its content.
    """
    asked = yaml.safe_load(study.to_yaml())
    for section in ("resources", "tracking", "dataset"):
        del asked[section]
    return hashlib.sha256(canonical({"study": asked, "stages": sorted(plan.by_key)}).encode()).hexdigest()[:16]


@dataclass
class Run:
    """A run that is in MLflow, by its id there."""

    id: str
    parent: str | None


class Writer:
    """One study's runs in one MLflow store, as they were found and as they are left."""

    def __init__(self, study: Study, plan: Plan, store: Store, uri: str) -> None:
        self.study, self.plan, self.store = study, plan, store
        self.key = study_key(study, plan)
        self.client = connect(uri)
        name = study.tracking.experiment or study.study
        self.experiment = experiment(self.client, name, uri, store.root)
        self.created = self.already_there = 0
        self._records: dict[str, Record] = {}
        self._runs = self._found()

    def stage(self, stage: Stage) -> None:
        """Write a finished stage's run, if it is not there."""
        parent = self._parent(stage.labels.get("arm"))
        tags = {"intermoco.kind": stage.kind, "intermoco.stage": stage.folder}
        tags |= {f"intermoco.{name}": str(value) for name, value in stage.labels.items()}
        if there := self._runs.get(_identity(tags)):
            self.already_there += 1
            self._place(there, parent)
            return
        record = self._record(stage)
        folder = record.folder.relative_to(self.store.root).as_posix()
        run = self._create(stage.name, {**tags, "intermoco.folder": folder, **record.origin}, record.started, parent)
        self._log(run, record.params, record.points)
        for path in record.files:
            self.client.log_artifact(run, str(path))
        self.client.set_terminated(run, "FINISHED", record.ended)
        self.client.set_tag(run, COMPLETE, "true")
        self._runs[_identity(tags)] = Run(run, parent)
        self.created += 1

    def summarise(self, *, live: bool) -> None:
        """Bring the runs of the arms and of the study up to what is finished.

        live: the study is under way, so what is not finished is RUNNING; else it was left unfinished: KILLED.
        """
        for arm in self.study.arms:
            stages = [s for s in self.plan.stages if s.labels.get("arm") == arm]
            if done := self._finished(stages):
                self._grow(self._parent(arm), stages, self._arm_params(arm), summary(done), live=live)
        params = {"protocol": self.study.protocol, **self._dataset_params()}
        self._grow(self._parent(), self.plan.stages, params, {}, live=live)

    def files(self, folder: Path) -> None:
        """The study's own files: study.yaml, tables and report; all of them again where one has changed."""
        paths = [folder / "study.yaml", *(folder / "tables").glob("*.csv"), *(folder / "report").rglob("*")]
        paths = sorted(p for p in paths if p.is_file())
        names = {p.relative_to(folder).as_posix(): file_digest(p) for p in paths}
        digest = hashlib.sha256(canonical(names).encode()).hexdigest()
        run = self._parent()
        if self.client.get_run(run).data.tags.get(FILES) == digest:
            return
        for path in paths:
            within = path.relative_to(folder).parent.as_posix()
            self.client.log_artifact(run, str(path), None if within == "." else within)
        self.client.set_tag(run, FILES, digest)

    def _grow(
        self,
        run: str,
        stages: Sequence[Stage],
        params: Mapping[str, str],
        metrics: Mapping[str, float],
        *,
        live: bool,
    ) -> None:
        """Make a parent's run say what its stages say now. A parameter that is there stays: MLflow changes none."""
        from mlflow.entities import RunTag

        planned = {s.key for s in stages}
        records = {s.key: r for s, r in self._finished(stages)}
        complete = len(records) == len(planned)
        tags = {"intermoco.stages": f"{len(records)} of {len(planned)}", **merged(r.origin for r in records.values())}
        metrics = {name: finite(value) for name, value in {**total(records.values()), **metrics}.items()}

        found = self.client.get_run(run)
        known, now = found.data.metrics, _now()
        self._log(
            run,
            {name: value for name, value in params.items() if name not in found.data.params},
            [Point(name, value, now, 0) for name, value in metrics.items() if not _same(known.get(name), value)],
        )
        if not found.inputs.dataset_inputs:
            self._name_dataset(run)
        status = "FINISHED" if complete else "RUNNING" if live else "KILLED"
        ended = max((r.ended for r in records.values()), default=now)
        if found.info.status != status or (complete and found.info.end_time != ended):
            if status == "RUNNING":
                self.client.update_run(run, status)
            else:
                self.client.set_terminated(run, status, ended)
        tags[COMPLETE] = json.dumps(complete)
        if news := [RunTag(name, value) for name, value in tags.items() if found.data.tags.get(name) != value]:
            self.client.log_batch(run, tags=news)

    def _parent(self, arm: str | None = None) -> str:
        """Id of an arm's run, or of the study's; made where it is not there."""
        tags = {"intermoco.kind": "study"} if arm is None else {"intermoco.kind": "arm", "intermoco.arm": arm}
        study = None if arm is None else self._parent()
        if there := self._runs.get(_identity(tags)):
            self._place(there, study)
            return there.id
        stages = self.plan.stages if arm is None else [s for s in self.plan.stages if s.labels.get("arm") == arm]
        started = min((r.started for _, r in self._finished(stages)), default=_now())
        told = {**tags, "mlflow.note.content": self.study.question} if arm is None else tags
        run = self._create(arm or self.study.study, told, started, study)
        self._runs[_identity(tags)] = Run(run, study)
        return run

    def _place(self, run: Run, parent: str | None) -> None:
        """Move a run below its parent, if that was deleted by hand and written anew."""
        if parent is not None and run.parent != parent:
            self.client.set_tag(run.id, PARENT, parent)
            run.parent = parent

    def _create(self, name: str, tags: Mapping[str, str], started: int, parent: str | None) -> str:
        common = {"intermoco.study": self.study.study, "intermoco.study_key": self.key} | SOURCE
        above = {} if parent is None else {PARENT: parent}
        run = self.client.create_run(
            self.experiment, start_time=started, tags={**common, **above, **tags}, run_name=name
        )
        return str(run.info.run_id)

    def _log(self, run: str, params: Mapping[str, str], points: Sequence[Point]) -> None:
        from mlflow.entities import Metric, Param

        metrics = [Metric(p.name, p.value, p.time, p.step) for p in points]
        self.client.log_batch(run, metrics, [Param(name, value) for name, value in params.items()])  # it splits them

    def _finished(self, stages: Sequence[Stage]) -> list[tuple[Stage, Record]]:
        return [(s, self._record(s)) for s in stages if s.key in self._records or self.store.finished(s)]

    def _record(self, stage: Stage) -> Record:
        if stage.key not in self._records:
            self._records[stage.key] = Record.read(stage, self.store)
        return self._records[stage.key]

    def _arm_params(self, arm: str) -> dict[str, str]:
        config = self.study.arms[arm]
        if config is None:
            return {"pretrain": "scratch", **flatten({"encoder": as_config(self.study.encoder)})}
        return flatten({name: value for name, value in as_config(config).items() if name != "seed"})

    def _dataset_params(self) -> dict[str, str]:
        for stage, record in self._finished(list(self.plan.of_kind("data"))):
            facts = record.folder / "dataset.json"
            said = json.loads(facts.read_text(encoding="utf-8")).get("summary", {}) if facts.is_file() else {}
            return flatten({"dataset": {**stage.config, **said}})
        return {}

    def _name_dataset(self, run: str) -> None:
        """Fill the run's column Dataset in MLflow's page."""
        from mlflow.entities import Dataset, DatasetInput

        stage = next(self.plan.of_kind("data"))
        source = json.dumps({"uri": f"stages/{stage.folder}"})
        dataset = Dataset(stage.config["name"], stage.config["fingerprint"][:DIGEST], "local", source)
        self.client.log_inputs(run, [DatasetInput(dataset)])

    def _found(self) -> dict[Identity, Run]:
        """The study's runs by identity. Deletes half-written stage runs, and all but one of several of one identity."""
        runs: dict[Identity, Run] = {}
        for run in sorted(self._search(), key=lambda r: (r.info.start_time, r.info.run_id)):
            tags = run.data.tags
            whole = tags.get(COMPLETE) == "true" or tags["intermoco.kind"] in ("study", "arm")
            if whole and _identity(tags) not in runs:
                runs[_identity(tags)] = Run(run.info.run_id, tags.get(PARENT))
            else:
                self.client.delete_run(run.info.run_id)
        return runs

    def _search(self) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment], f"tags.`intermoco.study_key` = '{self.key}'", max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


def _identity(tags: Mapping[str, str]) -> Identity:
    return tuple(tags.get(name) for name in IDENTITY)


def _now() -> int:
    return round(1000 * time.time())


def _same(old: float | None, new: float) -> bool:
    return old is not None and (old == new or (old != old and new != new))
