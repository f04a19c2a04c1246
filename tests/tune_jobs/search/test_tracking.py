"""A search in a real MLflow store: trials below their search, replayed, repaired, sent while trials run."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import finished_search as finished
import pytest

from tune_jobs.search.promotion import promoted
from tune_jobs.search.tracking import SearchWriter, follow_search, sync_search
from tune_jobs.store import Store
from tune_jobs.tracking import default_uri
from tune_jobs.tracking_client import connect
from tune_jobs.tracking_runs import COMPLETE, PARENT


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    asked = finished.study()
    planned, store, ledger = finished.begun(asked, tmp_path_factory.mktemp("searched"))
    finished.run(ledger)
    replay(asked, planned, store, ledger)
    return asked, planned, store, ledger


def replay(asked: Any, planned: Any, store: Store, ledger: Any) -> Any:
    arms = promoted(asked, planned, store).arms
    return sync_search(asked, planned, store, ledger, uri=default_uri(store.root), arms=arms)


def runs(store: Store) -> list[Any]:
    client = connect(default_uri(store.root))
    experiment = client.get_experiment_by_name("searched")
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def rows(root: Path) -> dict[str, list[Any]]:
    with sqlite3.connect(root / "mlflow.db") as connection:
        tables = ("runs", "tags", "params", "metrics", "latest_metrics")
        found = {t: sorted(connection.execute(f"SELECT * FROM {t}").fetchall(), key=repr) for t in tables}
    connection.close()
    return found


def test_each_trial_is_a_run_below_its_search_and_says_what_became_of_it(world: Any) -> None:
    asked, _, store, ledger = world
    found = runs(store)
    (top,) = [run for run in found if run.data.tags["intermoco.kind"] == "search"]
    below = {int(r.data.tags["intermoco.trial"]): r for r in found if r.data.tags.get(PARENT) == top.info.run_id}
    assert len(below) == len(found) - 1 == 8
    status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    for record in ledger.trials():
        run = below[record.number]
        assert run.info.status == status[record.state]
        assert run.data.params["loss"] == record.params["loss"]
        assert ("mse.scale" in run.data.params) == ("mse.scale" in record.params)
        # what a stopped trial scored last is no result, so that no column of results holds it
        assert run.data.metrics.get("score") == (record.values.get("score"))
        client = connect(default_uri(store.root))
        curve = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "evaluated_score")}
        assert curve == record.curve
    assert top.info.status == "FINISHED"
    best = ledger.best(1)[0].number
    assert top.data.tags["intermoco.best_trial"] == str(best)
    assert below[best].data.tags["intermoco.arm"] == f"trial_{best}"
    assert top.data.params["space.mse.scale.high"] == "1"
    assert top.data.metrics["trials_complete"] == ledger.counts["complete"]
    assert asked.search.trials == 8


def test_replaying_twice_changes_nothing(world: Any) -> None:
    asked, planned, store, ledger = world
    before = rows(store.root)
    done = replay(asked, planned, store, ledger)
    assert (done.created, done.already_there) == (0, 8)
    assert rows(store.root) == before


def test_a_half_written_run_is_deleted_and_written_anew(world: Any) -> None:
    asked, planned, store, ledger = world
    client = connect(default_uri(store.root))
    victim = next(r for r in runs(store) if r.data.tags.get("intermoco.trial") == "1")
    client.delete_tag(victim.info.run_id, COMPLETE)
    done = replay(asked, planned, store, ledger)
    assert (done.created, done.already_there) == (1, 7)
    again = [r for r in runs(store) if r.data.tags.get("intermoco.trial") == "1"]
    assert len(again) == 1
    assert again[0].info.run_id != victim.info.run_id
    assert again[0].data.metrics == victim.data.metrics


def test_the_follower_sends_trials_while_the_search_runs_and_sync_the_rest(tmp_path: Path) -> None:
    asked = finished.study()
    planned, store, ledger = finished.begun(asked, tmp_path)
    finished.run(ledger, trials=3)
    follower = follow_search(asked, planned, store, ledger, uri=default_uri(store.root))
    for number in (0, 1):
        follower.add(number)
    assert follower.close(timeout=60) is None
    top = next(run for run in runs(store) if run.data.tags["intermoco.kind"] == "search")
    assert top.info.status == "RUNNING"
    assert {r.data.tags.get("intermoco.trial") for r in runs(store)} == {None, "0", "1"}
    trial = ledger.next()  # under way: has no run yet
    assert trial is not None
    writer = SearchWriter(asked, planned, store, ledger, default_uri(store.root))
    writer.write(trial.number)
    assert writer.created == 0
    finished.run(ledger)
    ledger.fail(trial.number, "stopped by hand")
    replay(asked, planned, store, ledger)
    found = runs(store)
    assert len([r for r in found if r.data.tags["intermoco.kind"] == "search"]) == 1
    assert len([r for r in found if r.data.tags["intermoco.kind"] == "trial"]) == 8
