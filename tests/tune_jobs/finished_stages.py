"""A small study whose stages are as their work would leave them, for the tests of MLflow's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tune_jobs.plan import Plan, plan
from tune_jobs.resolution import resolve
from tune_jobs.stage import Stage
from tune_jobs.store import Store
from tune_jobs.study import Study

STARTED = 1_700_000_000.0  # of the first stage, in seconds; each later one starts 100 s after the one before
STUDY = {
    "study": "toy",
    "question": "Do block losses help?",
    "dataset": {"source": "digits"},
    "seeds": [0, 1],
    "arms": {"moco": {}, "twin": {}, "mse": {"mse": {"blocks": [1, 2]}}, "supervised": "scratch"},
    "pretrain": {"moco": {"queue": 512}},
    "downstream": {"fractions": [0.1, 1.0], "linear_fractions": [1.0]},
}


def small(**changes: Any) -> tuple[Study, Plan]:
    study = resolve({**STUDY, **changes})
    return study, plan(study, "f" * 64)


def tiny(**changes: Any) -> tuple[Study, Plan]:
    """Nine stages."""
    arms = {"moco": {}, "supervised": "scratch"}
    return small(arms=arms, downstream={"fractions": [1.0]}, probe=None, reuse=None, **changes)


def auroc(stage: Stage) -> float:
    """A made-up test score, of the stage's identity."""
    return 0.5 + int(stage.key[:4], 16) / 2**17


def rows(stage: Stage) -> list[dict[str, Any]]:
    shared = {"value": auroc(stage), "low": auroc(stage) - 0.1, "high": auroc(stage) + 0.1, "n": 270}
    match stage.kind:
        case "finetune":
            return [{"metric": "auroc", **shared}, {"metric": "f1_macro", **shared, "value": 0.25}]
        case "probe":
            return [{"block": block, "metric": "auroc", **shared} for block in (1, 2)]
        case "reuse":
            return [{"block": 1, "metric": "cka_linear", "value": 0.9, "low": None, "high": None, "null": 0.1}]
        case "ks":
            return [{**m, "metric": "ks", "value": 0.3, "floor": 0.05} for m in stage.config["models"]]
        case _:
            return []


def finish(stage: Stage, planned: Plan, store: Store, lines: int = 3) -> None:
    """Publish a stage as its work would leave it."""
    if store.finished(stage):
        return
    work = store.begin(stage)
    match stage.kind:
        case "data":
            facts = {"task": "multiclass", "train": {"images": 1257}, "class_names": ["0", "1"]}
            (work / "dataset.json").write_text(json.dumps({"name": "digits", "summary": facts}))
        case "pretrain" | "finetune":
            log = [{"step": 10 * n, "epoch": float(n), "loss": 1 / n} for n in range(1, lines + 1)]
            (work / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
            (work / "model.pt").write_bytes(b"weights")
    if found := rows(stage):
        (work / "rows.json").write_text(json.dumps(found))
    facts = {
        "started": STARTED + 100 * list(planned.by_key).index(stage.key),
        "wall_seconds": 60.0,
        "accelerator_seconds": 30.0,
        "environment": {"python": "3.11.9", "cpus": 2},
        "git_commit": "a" * 40,
    }
    store.publish(stage, work, facts)


def finish_all(planned: Plan, store: Store) -> None:
    for stage in planned.by_key.values():
        finish(stage, planned, store)


def study_folder(study: Study, store: Store) -> Path:
    folder = store.root / study.study
    (folder / "tables").mkdir(parents=True)
    (folder / "report" / "figures").mkdir(parents=True)
    (folder / "study.yaml").write_text(study.to_yaml())
    (folder / "tables" / "linear.csv").write_text("arm,value\nmoco,0.9\n")
    (folder / "report" / "index.html").write_text("<h1>toy</h1>")
    (folder / "report" / "figures" / "linear.svg").write_text("<svg/>")
    return folder
