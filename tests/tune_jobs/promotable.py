"""A small study that was really trained, without Ray: what the tests of promotion promote."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from studies import few_digits, raw

from tune_jobs.audit import audited
from tune_jobs.loading import load
from tune_jobs.prepare import packed, planned
from tune_jobs.search.promotion import Promoted, promoted
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store, file_digest
from tune_jobs.work import perform

LEAK = "duplicates_across_splits"
SEEDS = range(6)  # the fewest with which a champion can be beaten


@dataclass(frozen=True)
class Trained:
    """A study of two arms, `good` and `poor`, whose stages are finished."""

    root: Path
    yaml: Path

    @property
    def store(self) -> Store:
        return Store(self.root)

    def found(self, *overrides: str) -> Promoted:
        study = load(str(self.yaml), overrides)
        return promoted(study, planned(study, self.store), self.store)

    def stage(self, arm: str, seed: int) -> Stage:
        (stage,) = (
            s for s in self.found().plan.of_kind("finetune") if (s.labels["arm"], s.labels["seed"]) == (arm, seed)
        )
        return stage

    def folder(self, arm: str, seed: int) -> Path:
        return self.store.path(self.stage(arm, seed))

    def copy(self, to: Path, empty_database: Path) -> Trained:
        """The same in a root of its own, with an empty MLflow."""
        shutil.copytree(self.root.parent, to, dirs_exist_ok=True, copy_function=_link_weights)
        values = yaml.safe_load(self.yaml.read_text())
        values["dataset"]["path"] = str(to / Path(values["dataset"]["path"]).name)
        (to / "study.yaml").write_text(yaml.safe_dump(values))
        shutil.copy(empty_database, to / "runs" / "mlflow.db")
        return Trained(to / "runs", to / "study.yaml")


def _link_weights(source: str, target: str) -> None:
    """Weights are large, and nobody writes into them."""
    (os.link if source.endswith(".pt") else shutil.copy2)(source, target)


def train(folder: Path, **changes: Any) -> Trained:
    """Train it below `folder`; `changes` replace sections of its YAML."""
    section = few_digits(folder)
    with np.load(section["path"]) as file:
        arrays = dict(file)
    arrays["images"][18:180:54] = arrays["images"][0]  # copies in several splits: a leak, which the study accepts
    patients = np.array([f"patient {i // 6}" for i in range(len(arrays["labels"]))])  # six images each
    np.savez(section["path"], **arrays, group=patients, class_names=np.array(["zero", "<b>one", "t|wo"]))
    little = {"full": {"epochs": 1, "min_steps": 1, "evaluations": 1, "learning_rate": 1e-6}}
    values = raw(
        study="wards",
        question="Is *this* |useful|?",
        seeds=[*SEEDS],
        dataset={**section, "accept": [LEAK]},
        arms={"good": "scratch", "poor": {"scratch": True, "downstream": little}},
        promotion={"ece": 1.0, "worst_class": 0.0},
        **dict.fromkeys(("probe", "reuse", "ks")),
    )
    values["downstream"] |= {"fractions": [1.0], "linear_fractions": [1.0]}
    values["downstream"]["full"] = {
        "epochs": 1, "min_steps": 20, "evaluations": 2, "batch_size": 42, "learning_rate": 3e-3,
    }  # fmt: skip
    values |= changes
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    made = Trained(folder / "runs", path)
    study, store = load(str(path)), made.store
    full = planned(study, store)
    (data,), (audit,) = full.of_kind("data"), full.of_kind("audit")
    dataset, _ = packed(study.dataset, store, data, {})
    audited(store, audit, dataset, {})
    threads = torch.get_num_threads()
    for stage in full.of_kind("finetune"):
        perform(stage, store, Demand(), {"git_commit": "c" * 40}, lambda values: None)
    torch.set_num_threads(threads)
    return made


def swap(folder: Path, other: Path, *, hidden: bool) -> None:
    """Put another stage's weights into a finished one; `hidden`: and write their digest into its manifest."""
    (folder / "model.pt").unlink()  # it may be a link
    shutil.copy(other / "model.pt", folder / "model.pt")
    if hidden:
        forge(folder, "model.pt")


def forge(folder: Path, name: str) -> None:
    """Let a finished stage's manifest say of a file what it is now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] |= {"sha256": file_digest(folder / name), "bytes": (folder / name).stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
