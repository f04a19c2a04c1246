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
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tune_jobs.plan import Plan, as_config
from tune_jobs.stage import Stage, canonical
from tune_jobs.store import Store, file_digest
from tune_jobs.study import Study
from tune_jobs.tracking_client import connect, experiment
from tune_jobs.tracking_facts import Record, flatten, merged, summary, total
from tune_jobs.tracking_runs import Runs, now

FILES = "intermoco.files"
#: Tags that together name a run of a study.
IDENTITY = tuple(f"intermoco.{name}" for name in ("kind", "arm", "seed", "mode", "label_fraction", "stage"))
#: MLflow's limit of a dataset's digest, in characters.
DIGEST = 36


def study_key(study: Study, plan: Plan) -> str:
    """Identity of a study's run: everything the study asks, and the stages that answer it.

    Resources and tracking are left out, and what is made of the answers, and the search: its winners are arms. So is
    where the dataset lies: the keys of its stages hold its content.
    """
    asked = yaml.safe_load(study.to_yaml())
    for section in ("resources", "tracking", "dataset", "search", "decision", "promotion"):
        del asked[section]
    return hashlib.sha256(canonical({"study": asked, "stages": sorted(plan.by_key)}).encode()).hexdigest()[:16]


class Writer:
    """One study's runs in one MLflow store, as they were found and as they are left."""

    def __init__(self, study: Study, plan: Plan, store: Store, uri: str) -> None:
        self.study, self.plan, self.store = study, plan, store
        self.client = connect(uri)
        name = study.tracking.experiment or study.study
        self.runs = Runs(
            self.client,
            experiment(self.client, name, uri, store.root),
            tag="intermoco.study_key",
            key=study_key(study, plan),
            identity=IDENTITY,
            growing=("study", "arm"),
        )
        self.created = self.already_there = 0
        self._records: dict[str, Record] = {}

    def stage(self, stage: Stage) -> None:
        """Write a finished stage's run, if it is not there."""
        parent = self._parent(stage.labels.get("arm"))
        tags = {"intermoco.kind": stage.kind, "intermoco.stage": stage.folder}
        tags |= {f"intermoco.{name}": str(value) for name, value in stage.labels.items()}
        if there := self.runs.find(tags):
            self.already_there += 1
            self.runs.place(there, parent)
            return
        record = self._record(stage)
        folder = record.folder.relative_to(self.store.root).as_posix()
        told = {**self._study_tag, **tags, "intermoco.folder": folder, **record.origin}
        run = self.runs.create(stage.name, told, record.started, parent)
        self.runs.log(run, record.params, record.points)
        for path in record.files:
            self.client.log_artifact(run, str(path))
        self.runs.end(run, tags, parent, "FINISHED", record.ended)
        self.created += 1

    def write(self, key: str) -> None:
        """Write the runs of the finished stage of this key: one under each arm that shares it."""
        for stage in self.plan.stages:
            if stage.key == key:
                self.stage(stage)

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
        paths = sorted(p for p in paths if p.is_file() and p.resolve().is_relative_to(folder.resolve()))
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
        """Make a parent's run say what its stages say now."""

        planned = {s.key for s in stages}
        records = {s.key: r for s, r in self._finished(stages)}
        complete = len(records) == len(planned)
        tags = {"intermoco.stages": f"{len(records)} of {len(planned)}", **merged(r.origin for r in records.values())}
        status = "FINISHED" if complete else "RUNNING" if live else "KILLED"
        found = self.runs.grow(
            run,
            params=params,
            metrics={**total(records.values()), **metrics},
            tags=tags,
            state=(status, max((r.ended for r in records.values()), default=now())),
        )
        if not found.inputs.dataset_inputs:
            self._name_dataset(run)

    def _parent(self, arm: str | None = None) -> str:
        """Id of an arm's run, or of the study's; made where it is not there."""
        tags = {"intermoco.kind": "study"} if arm is None else {"intermoco.kind": "arm", "intermoco.arm": arm}
        study = None if arm is None else self._parent()
        if there := self.runs.find(tags):
            self.runs.place(there, study)
            return there.id
        stages = self.plan.stages if arm is None else [s for s in self.plan.stages if s.labels.get("arm") == arm]
        started = min((r.started for _, r in self._finished(stages)), default=now())
        told = {**tags, "mlflow.note.content": self.study.question} if arm is None else tags
        return self.runs.create(arm or self.study.study, {**self._study_tag, **told}, started, study)

    @property
    def _study_tag(self) -> dict[str, str]:
        return {"intermoco.study": self.study.study}

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
