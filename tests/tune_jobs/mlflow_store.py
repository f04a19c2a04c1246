"""What an MLflow store on SQLite holds: every row, and what a person sees."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tune_jobs.tracking import default_uri


def database(root: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, deleted runs and metric histories included."""
    with sqlite3.connect(root / "mlflow.db") as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {t: sorted(connection.execute(f"SELECT * FROM {t}").fetchall(), key=repr) for t in tables}
    connection.close()
    return found


def shown(root: Path) -> dict[str, Any]:
    """What a person sees: each run that is not deleted, under the path of its parents' names, without ids.

    A run is (status, start, end), parameters, {metric: [(step, value), ...]}, tags, names of artifacts.
    """
    client = mlflow_client(root)
    runs = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
    by_id = {r.info.run_id: r for r in runs}
    histories: dict[str, dict[str, list[tuple[int, float]]]] = {run: {} for run in by_id}
    for key, value, when, run, step, is_nan in database(root)["metrics"]:
        if run in histories:
            histories[run].setdefault(key, []).append((step, when, float("nan") if is_nan else value))

    def path(run: Any) -> str:
        parent = run.data.tags.get("mlflow.parentRunId")
        stage = run.data.tags.get("intermoco.stage", "")
        return (path(by_id[parent]) + "/" if parent else "") + f"{run.info.run_name}|{stage}"

    view: dict[str, Any] = {}
    for run in runs:
        assert path(run) not in view
        history = {k: [(s, v) for s, _, v in sorted(points)] for k, points in histories[run.info.run_id].items()}
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        info = (run.info.status, run.info.start_time, run.info.end_time)
        view[path(run)] = (info, run.data.params, history, tags, stored(run.info.artifact_uri))
    return view


def stored(uri: str) -> list[str]:
    folder = Path(unquote(urlsplit(uri).path))
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def mlflow_client(root: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(default_uri(root))
