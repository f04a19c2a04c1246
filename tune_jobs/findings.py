"""Finished stages to tables and report: reads the store, computes nothing that a stage computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.errors import StageError
from tune_jobs.plan import Plan, as_config
from tune_jobs.prepare import summary
from tune_jobs.stage import Stage
from tune_jobs.store import Store
from tune_jobs.study import Study

if TYPE_CHECKING:
    from analysis.tables import Finished


def write_report(study: Study, full: Plan, store: Store, failed: Mapping[str, str], command: str) -> dict[str, Any]:
    """Rebuild tables and page from what is finished; returns the paths of what was written.

    Stages that are not finished are named in the report. Raises StageError where the dataset is not even packed.
    """
    from analysis.report import Facts, build

    folder = store.root / study.study
    data = next(full.of_kind("data"))
    finished = [_finished(s, store) for s in full.stages if store.finished(s)]
    waiting = {s.name: "not finished" for s in full.by_key.values() if not store.finished(s)}
    manifests = [store.manifest(s) for s in full.by_key.values() if store.finished(s)]
    facts = Facts(
        name=study.study,
        question=study.question,
        command=command,
        dataset=summary(store.find("data", data.key)),
        arms={name: None if arm is None else as_config(arm) for name, arm in study.arms.items()},
        baseline=study.baseline,
        metric=study.downstream.metric,
        seeds=study.seeds,
        versions=_versions(manifests),
        git_commits=tuple(sorted({m["git_commit"] for m in manifests if m.get("git_commit")})),
        failed={**waiting, **failed},
    )
    page = build(facts, finished, folder / "tables", folder / "report")
    return {
        "report": str(page),
        "tables": [str(p) for p in sorted((folder / "tables").glob("*.csv"))],
    }


def _finished(stage: Stage, store: Store) -> Finished:
    from analysis.tables import Finished

    folder = store.path(stage)
    rows = folder / "rows.json"
    return Finished(
        kind=stage.kind,
        key=stage.key,
        labels=stage.labels,
        folder=folder,
        rows=json.loads(rows.read_text()) if rows.is_file() else (),
        wall_seconds=store.manifest(stage)["wall_seconds"],
    )


def _versions(manifests: list[dict[str, Any]]) -> dict[str, str]:
    """Package versions that the stages ran with; all of them where they differ."""
    seen: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, value in manifest["environment"].items():
            if isinstance(value, str):
                seen.setdefault(name, set()).add(value)
    return {name: ", ".join(sorted(values)) for name, values in sorted(seen.items())}


def tables_in_words(tables: Path) -> list[list[str]]:
    """Rows for the terminal: each arm's mean test score a mode and label fraction. Empty where nothing is there yet."""
    import pandas as pd

    rows: list[list[str]] = []
    for name in ("linear", "label_efficiency"):
        path = tables / f"{name}.csv"
        if not path.is_file():
            raise StageError(f"{path} is not there; run `intermoco report` to rebuild it")
        groups: Any = pd.read_csv(path).groupby(["mode", "label_fraction", "metric", "arm"], sort=False)["value"]
        for (mode, fraction, metric, arm), values in groups:
            mean, span = f"{values.mean():.3f}", f"{values.min():.3f}-{values.max():.3f}"
            rows.append([mode, f"{100 * fraction:g}%", metric, arm, mean, span, str(len(values))])
    return rows
