"""A search in a real MLflow store: trials below their search, replayed, repaired, sent while trials run."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import finished_search as finished
import pytest
from mlflow_store import database, shown

from tune_jobs.plan import Plan
from tune_jobs.search import tracking
from tune_jobs.search.config import SamplerConfig
from tune_jobs.search.ledger import Ledger
from tune_jobs.search.promotion import promoted
from tune_jobs.search.tracking import SearchWriter, follow_search, sync_search
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.tracking import TrackingError, default_uri, sync
from tune_jobs.tracking_client import connect
from tune_jobs.tracking_runs import COMPLETE

TOP = "search searched|"
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


@dataclass
class World:
    """A search, and the root of an MLflow store for it."""

    study: Study
    plan: Plan
    store: Store
    ledger: Ledger
    root: Path

    def replay(self, **changes: Any) -> tuple[int, int]:
        """Runs of trials that were written, and that were there."""
        arms = promoted(self.study, self.plan, self.store).arms
        arguments = {"uri": default_uri(self.root), "arms": arms, **changes}
        done = sync_search(self.study, self.plan, self.store, self.ledger, **arguments)
        return done.created, done.already_there

    def searching(self, **settings: Any) -> World:
        """The same trials under other settings of the search."""
        assert self.study.search is not None
        study = replace(self.study, search=replace(self.study.search, **settings))
        return replace(self, study=study, ledger=Ledger(study.search, self.ledger._study))  # type: ignore[arg-type]

    def trial(self, number: int) -> Any:
        return shown(self.root)[f"{TOP}/trial {number}|"]

    def history(self, number: int) -> Any:
        return self.trial(number)[2]

    def tags(self, number: int | None = None) -> dict[str, str]:
        """Of a trial, or of the search."""
        tags: dict[str, str] = shown(self.root)[TOP if number is None else f"{TOP}/trial {number}|"][3]
        return tags


def begun(folder: Path, root: Path, **search: Any) -> World:
    study = finished.study(**search)
    return World(study, *finished.begun(study, folder), root)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("searched")
    world = begun(folder, folder)
    finished.run(world.ledger)
    return world


@pytest.fixture
def root(tmp_path: Path, empty_database: Path) -> Path:
    """Of an MLflow store that holds nothing."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def world(searched: World, root: Path) -> World:
    """The finished search, and an MLflow store of the test's own."""
    return replace(searched, root=root)


def test_each_trial_is_a_run_below_its_search_and_says_what_became_of_it(world: World) -> None:
    assert world.replay() == (8, 0)
    view = shown(world.root)
    assert len(view) == 9
    for record in world.ledger.trials():
        (status, started, ended), params, history, tags, _ = view[f"{TOP}/trial {record.number}|"]
        assert record.started is not None
        assert record.ended is not None
        assert (started, ended) == tuple(round(1000 * t.timestamp()) for t in (record.started, record.ended))
        assert status == STATUS[record.state]
        assert (tags["intermoco.state"], tags[COMPLETE]) == (record.state, "true")
        assert tags.get("mlflow.note.content") == record.error
        assert tags.get("intermoco.start") == record.start
        assert set(params) == set(record.params)  # those that were active
        assert params["loss"] == record.params["loss"]
        assert dict(history.get("evaluated_score", [])) == record.curve
        # what a stopped trial scored last is no result: no column of results holds it
        last = max(record.curve, default=0)
        assert history.get("score", []) == [(last, value) for value in record.values.values()]
        assert ("peak_memory" in history) == (record.state == "complete")
        assert ("seconds" in history) == (record.state != "failed")
    assert {r.state for r in world.ledger.trials()} == set(STATUS)


def test_the_searchs_run_says_what_is_searched_and_what_is_best(world: World) -> None:
    world.replay()
    (status, _, _), params, history, tags, _ = shown(world.root)[TOP]
    (best,) = world.ledger.best(1)
    assert status == "FINISHED"
    assert tags["intermoco.trials"] == "8 of 8"
    assert tags["intermoco.best_trial"] == str(best.number)
    assert params["space.mse.scale.high"] == "1"
    assert params["space.loss"] == '["none", "mse"]'
    assert (params["sampler.kind"], params["scheduler.kind"], params["objectives"]) == ("random", "asha", '["score"]')
    assert not [name for name in params if "storage" in name]  # it may hold a password
    assert history["best_score"] == [(0, max(r.values.get("score", 0.0) for r in world.ledger.trials()))]
    counts = world.ledger.counts
    for state in ("complete", "pruned", "failed", "duplicate", "running"):
        assert history[f"trials_{state}"] == [(0, counts[state])]


def test_replaying_twice_changes_nothing(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.replay()
    before = database(world.root)
    assert world.replay() == (0, 8)
    assert database(world.root) == before
    assert capfd.readouterr() == ("", "")


def test_a_study_and_its_search_share_an_experiment_and_leave_each_other_alone(world: World) -> None:
    def both() -> None:
        sync(world.study, world.plan, world.store, uri=default_uri(world.root), folder=world.root / "none")
        world.replay()

    both()
    before = database(world.root)
    both()
    assert database(world.root) == before
    assert {path.split("|")[0] for path in shown(world.root)} == {"searched", "search searched"}


class Killed(BaseException):
    """As little to be caught as a SIGKILL."""


class Mortal:
    """An MLflow client that dies before one of its writes."""

    def __init__(self, client: Any, writes: int) -> None:
        self._client, self._left = client, writes

    def __getattr__(self, name: str) -> Any:
        if name not in (
            "create_run",
            "log_batch",
            "set_tag",
            "delete_tag",
            "set_terminated",
            "update_run",
            "delete_run",
        ):
            return getattr(self._client, name)
        self._left -= 1
        if self._left < 0:
            raise Killed
        return getattr(self._client, name)


def deaths(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replay, killed before its first write, then before its second one after a fresh start, and so on to the end."""
    empty = (world.root / "mlflow.db").read_bytes()
    for writes in range(100):
        (world.root / "mlflow.db").write_bytes(empty)
        with monkeypatch.context() as patch:
            patch.setattr(tracking, "connect", lambda uri, n=writes: Mortal(connect(uri), n))
            try:
                world.replay()
                return
            except Killed:
                pass
        yield
    raise AssertionError("it never came to its end")


def test_a_replay_killed_before_any_of_its_writes_is_repaired_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [trial for trial in world.ledger.trials() if trial.number == world.ledger.best(1)[0].number]
    monkeypatch.setattr(world.ledger, "trials", lambda: one)
    seen = []
    for _ in deaths(world, monkeypatch):
        world.replay()
        seen.append(shown(world.root))
    whole = shown(world.root)  # of the replay that nothing killed
    assert len(whole) == 2
    assert len(seen) == 9
    assert all(view == whole for view in seen)


def test_changed_settings_begin_the_searchs_run_anew_above_the_same_trials(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.replay()
    assert world.study.search is not None
    changed = world.searching(sampler=SamplerConfig(kind="tpe"))
    assert changed.replay() == (0, 8)
    view = shown(world.root)
    assert view[TOP][1]["sampler.kind"] == "tpe"
    assert len(view) == 9
    before = database(world.root)
    assert changed.replay() == (0, 8)
    assert database(world.root) == before
    changed = world.searching(sampler=SamplerConfig(kind="gp"))
    left = (world.root / "mlflow.db").read_bytes()
    for writes in (1, 4):  # the run is gone; is there again, above some of its trials
        (world.root / "mlflow.db").write_bytes(left)
        with monkeypatch.context() as patch:
            patch.setattr(tracking, "connect", lambda uri, n=writes: Mortal(connect(uri), n))
            with pytest.raises(Killed):
                changed.replay()
        changed.replay()
        assert shown(world.root)[TOP][1]["sampler.kind"] == "gp"
        assert len(shown(world.root)) == 9


def test_trials_move_below_the_searchs_run_that_takes_the_place_of_one_deleted_by_hand(world: World) -> None:
    world.replay()
    whole = shown(world.root)
    client = connect(default_uri(world.root))
    (top,) = client.search_runs(["1"], "tags.`intermoco.kind` = 'search'")
    client.delete_run(top.info.run_id)
    assert world.replay() == (0, 8)
    assert shown(world.root) == whole


def test_a_half_written_run_and_a_second_one_of_a_trial_are_deleted(world: World) -> None:
    world.replay()
    whole = shown(world.root)
    client = connect(default_uri(world.root))
    one, other = client.search_runs(["1"], "tags.`intermoco.kind` = 'trial'")[:2]
    client.delete_tag(one.info.run_id, COMPLETE)
    client.create_run("1", tags=other.data.tags)
    assert world.replay() == (1, 7)
    assert shown(world.root) == whole
    assert client.get_run(one.info.run_id).info.lifecycle_stage == "deleted"


def test_a_trial_is_tagged_with_its_arm_as_long_as_it_is_promoted(world: World) -> None:
    world.replay()
    first, second, *_ = (trial.number for trial in world.ledger.best(3))
    assert world.tags(first)["intermoco.arm"] == f"trial_{first}"
    world.replay(arms={second: "winner"})
    assert world.tags(second)["intermoco.arm"] == "winner"
    assert "intermoco.arm" not in world.tags(first)


def test_a_search_begun_anew_is_not_taken_for_the_one_before(world: World, tmp_path: Path) -> None:
    world.replay()
    old = shown(world.root)
    time.sleep(1.0)  # its first trial tells it from another, to the second
    anew = begun(tmp_path / "anew", world.root)
    finished.run(anew.ledger, trials=2)
    assert anew.replay() == (2, 0)
    client = connect(default_uri(world.root))
    tops = client.search_runs(["1"], "tags.`intermoco.kind` = 'search'")
    assert sorted(t.data.tags["intermoco.trials"] for t in tops) == ["2 of 8", "8 of 8"]
    new = next(t for t in tops if t.data.tags["intermoco.trials"] == "2 of 8")
    for run in client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{new.info.run_id}'"):
        client.delete_run(run.info.run_id)
    client.delete_run(new.info.run_id)
    assert shown(world.root) == old


def test_the_follower_sends_what_ended_and_sync_the_rest(tmp_path: Path, root: Path) -> None:
    world = begun(tmp_path / "live", root)
    assert world.replay() == (0, 0)  # nothing has begun: there is nothing to tell
    assert shown(root) == {}
    finished.run(world.ledger, trials=2)
    running = world.ledger.next()
    assert running is not None
    arguments: Any = (world.study, world.plan, world.store, world.ledger)
    follower = follow_search(*arguments, uri=default_uri(root))  # a run before was killed: two trials had ended
    finished.run(world.ledger, trials=1)
    began = time.monotonic()
    follower.add(running.number + 1)
    assert time.monotonic() - began < 0.1
    assert follower.close(timeout=60) is None
    view = shown(root)
    assert set(view) == {TOP, *(f"{TOP}/trial {n}|" for n in (0, 1, 3))}
    assert view[TOP][0][0] == "RUNNING"
    assert view[TOP][3]["intermoco.trials"] == "3 of 8"

    SearchWriter(*arguments, default_uri(root)).write(running.number)  # has not ended
    assert shown(root) == view
    world.ledger.fail(running.number, "its process died")
    assert world.replay() == (1, 3)
    assert world.trial(running.number)[0][0] == "FAILED"
    assert shown(root)[TOP][0][0] == "KILLED"  # it was left before its trials were out
    finished.run(world.ledger)
    assert world.replay() == (4, 4)
    assert shown(root)[TOP][0][0] == "FINISHED"


def test_of_several_objectives_the_front_is_named(tmp_path: Path, root: Path) -> None:
    world = begun(tmp_path / "several", root, objectives=["score", "seconds"], scheduler={"kind": "none"}, trials=4)
    finished.run(world.ledger)
    world.replay()
    records = world.ledger.trials()
    assert world.tags()["intermoco.pareto"] == " ".join(str(r.number) for r in records if r.pareto) != ""
    assert "intermoco.best_trial" not in world.tags()
    history = shown(root)[TOP][2]
    assert history["best_seconds"] == [(0, 8.0)]
    assert history["best_score"] == [(0, max(r.values["score"] for r in records if r.values))]


def test_a_server_that_is_down_delays_nobody_and_shows_no_password(
    searched: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://ada:hunter2@127.0.0.1:{port}"
    began = time.monotonic()
    follower = follow_search(searched.study, searched.plan, searched.store, searched.ledger, uri=uri)
    follower.add(0)
    assert time.monotonic() - began < 1.0
    late = follower.close(timeout=20)
    assert late is not None
    assert late.startswith(f"MLflow at http://ada:***@127.0.0.1:{port} was not reachable: ")
    with pytest.raises(TrackingError, match="onnection refused") as failure:
        searched.replay(uri=uri)
    assert "hunter2" not in late + str(failure.value)


def test_what_mlflow_lacks_the_follower_tells_in_trials(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "connect", lambda _: time.sleep(2))
    arguments: Any = (world.study, world.plan, world.store, world.ledger)
    late = follow_search(*arguments, uri=default_uri(world.root)).close(timeout=0.2)
    assert late is not None
    assert "was too slow to receive the last 8 trials; run `intermoco sync STUDY`" in late


def test_an_error_of_our_own_is_told_as_it_is(world: World) -> None:
    world.replay()
    client = connect(default_uri(world.root))
    client.delete_experiment("1")
    with pytest.raises(TrackingError, match=r"^experiment searched was deleted in MLflow: restore it"):
        world.replay()
