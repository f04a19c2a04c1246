"""What is tried again and what is not: storage that refuses, a full disk, workers that stop, die or fail."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, TaskCancelledError, WorkerCrashedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from stages_on_ray import OnRay, local, stage_process, train_worker, train_workers
from studies import miniature

from ssl_core.errors import CheckpointError, ConfigError, NonFiniteError, StageError
from ssl_core.resume import position
from tune_jobs import workers
from tune_jobs.attempts import NOTICED, UNKNOWN, Attempt, Attempts, Pulse, recomputed
from tune_jobs.failures import PATIENCE, Kind, explained, kind, patiently, pauses
from tune_jobs.plan import plan, pretrain_stage
from tune_jobs.runner import RayRunner
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import read_manifest
from tune_jobs.train import SNAPSHOT, _remove_half_written, _unknown_to_ray

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parent
GLOO = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
STALE, FULL = OSError(errno.ESTALE, "Stale file handle"), OSError(errno.ENOSPC, "No space left on device")


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "means"),
    [
        (RayActorError(), Kind.LOST),
        (WorkerCrashedError(), Kind.LOST),
        (OutOfMemoryError("killed by the memory monitor"), Kind.LOST),
        (GLOO, Kind.LOST),
        (WorkerGroupError("two", {0: RayActorError(), 1: GLOO}), Kind.LOST),
        (ControllerError(RayActorError()), Kind.LOST),
        (STALE, Kind.PASSING),
        (OSError(errno.EROFS, "Read-only file system"), Kind.PASSING),
        (caused(CheckpointError("truncated or damaged"), STALE), Kind.PASSING),
        (WorkerGroupError("two", {0: STALE, 1: GLOO}), Kind.PASSING),
        (ControllerError(FULL), Kind.FULL),
        (WorkerGroupError("two", {0: STALE, 1: FULL}), Kind.FULL),
        (WorkerGroupError("two", {0: GLOO, 1: NonFiniteError("step 3"), 2: FULL}), Kind.OWN),
        (RayTaskError("f", "", ValueError("no label is left")), Kind.OWN),
        (ControllerError(ValueError("resources")), Kind.OWN),
        (TaskCancelledError(), Kind.OWN),
        (OSError(errno.EACCES, "Permission denied"), Kind.OWN),
        (FileNotFoundError(errno.ENOENT, "No such file"), Kind.OWN),
        (caused(StageError("cannot be read"), FileNotFoundError(errno.ENOENT, "No such file")), Kind.OWN),
        (RuntimeError("shapes differ"), Kind.OWN),
    ],
)
def test_what_an_error_means(error: Exception, means: Kind) -> None:
    assert kind(error) is means


def test_pauses_grow_and_add_up_to_the_patience() -> None:
    found = list(pauses())
    assert found[:6] == [1, 2, 4, 8, 16, 30]
    assert sum(found) == PATIENCE
    assert list(pauses(0)) == []


def test_only_a_refusal_is_met_with_patience() -> None:
    calls: list[Exception] = []

    def refuse(*errors: Exception) -> Callable[[], str]:
        waiting = list(errors)

        def do() -> str:
            if waiting:
                calls.append(waiting[0])
                raise waiting.pop(0)
            return "done"

        return do

    assert patiently(refuse(STALE), patience=0.02) == "done"
    with pytest.raises(OSError, match="No space"):
        patiently(refuse(FULL), patience=10)
    with pytest.raises(OSError, match="Stale"):
        patiently(refuse(*[STALE] * 5), patience=0.02)
    assert calls == [STALE, FULL, STALE, STALE]


def test_an_accelerator_without_memory_names_the_remedy(tmp_path: Path) -> None:
    import torch

    said = explained(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), tmp_path)
    assert isinstance(said, StageError)
    assert "2.00 GiB" in str(said)
    assert "micro_batch" in str(said)
    own = ValueError("shapes differ")
    assert explained(own, tmp_path) is own


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system of its own needs rights that this process has not")
    words = ["unshare", "--mount", sys.executable, str(HERE / "failing_storage.py")]
    done = subprocess.run([*words, str(tmp_path_factory.mktemp("small"))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_work_waits_for_storage_that_refuses_and_is_not_done_twice(storage: dict[str, Any]) -> None:
    assert storage["refused_at_begin"] >= 1.5
    assert storage["refused_at_publishing"] >= 1.5
    assert storage["attempts"] == 1
    assert storage["files"] == [["bytes"], ["bytes"]]


def test_a_full_disk_is_said_at_once_and_left_clean(storage: dict[str, Any]) -> None:
    assert storage["seconds_until_full_was_said"] < 1
    assert "No space left on device" in storage["full"]
    assert "bytes free" in storage["full"]
    assert storage["left"] == []
    assert storage["finished"] == [True, True, False]
    assert storage["bytes_with_room"] == 9 * 2**20


def test_a_node_without_memory_names_the_remedy(tmp_path: Path) -> None:
    said = explained(OutOfMemoryError("task pretrain was killed by the memory monitor"), tmp_path)
    assert isinstance(said, StageError)
    assert "its node had no memory left (task pretrain was killed" in str(said)
    assert "raise resources.cpus" in str(said)


def test_seconds_done_again_are_those_that_no_checkpoint_held() -> None:
    first = Attempt(started=100, alive=160)
    assert recomputed(first, Attempt(started=200, alive=200)) == 60  # from nothing
    assert recomputed(first, Attempt(started=200, alive=200, resumed=150)) == 10
    assert recomputed(Attempt(started=200, alive=230, resumed=150), Attempt(300, 300, resumed=150)) == 30
    assert recomputed(first, Attempt(started=200, alive=200, resumed=161)) == 0


def test_each_attempt_but_the_last_is_told_with_its_reason(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    assert attempts.facts() == {"restarts": [], "recomputed_seconds": 0.0}
    attempts.ended("nothing began yet")
    Pulse(attempts.begin(None)).beat(at_once=True, why=NOTICED)
    attempts.ended("WorkerGroupError")  # follows from it
    attempts.begin(None)
    attempts.ended("RayActorError: killed")
    attempts.begin(None)
    whys = [restart["why"] for restart in attempts.facts()["restarts"]]
    assert whys == [NOTICED, "RayActorError: killed"]


def test_an_attempt_that_ended_for_more_workers_says_so(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    for count in (2, 1, 1, 3, 2):
        attempts.begin(None, count)
    attempts.begin(None)
    whys = [restart["why"] for restart in attempts.facts()["restarts"]]
    assert whys == [UNKNOWN, UNKNOWN, "there was room for 3 workers instead of 1", UNKNOWN, UNKNOWN]


def test_a_list_of_checkpoints_that_was_cut_short_costs_no_checkpoint(tmp_path: Path) -> None:
    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.pt").touch()
    listed = {"checkpoint_results": [{"checkpoint_dir_name": name} for name in ("checkpoint_1", "checkpoint_2")]}
    (tmp_path / SNAPSHOT).write_text(json.dumps(listed))
    assert _unknown_to_ray(tmp_path) == []
    _remove_half_written(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint_?")) == ["checkpoint_1", "checkpoint_2"]

    (tmp_path / SNAPSHOT).write_text(json.dumps(listed)[:20])
    _remove_half_written(tmp_path)
    left = _unknown_to_ray(tmp_path)
    assert [Path(path).parent.name for path in left] == ["checkpoint_2", "checkpoint_1"]
    assert not (tmp_path / SNAPSHOT).exists()


def test_a_worker_fits_whole_on_one_node() -> None:
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 5.0}, {"memory": 1.0}]
    assert workers.fitting(nodes, Demand(cpus=2)) == 3
    assert workers.fitting(nodes, Demand(cpus=4)) == 1
    assert workers.fitting(nodes, Demand(cpus=1, accelerators=0.25)) == 3
    assert workers.fitting(nodes, Demand(cpus=1, accelerators=1)) == 1


@pytest.mark.parametrize("there", [2.0, 8.0])
def test_workers_without_room_are_asked_for_again_then_given_up(
    there: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes that could hold the four workers, if they were idle, are waited for without end."""
    nodes = [{"Alive": True, "Resources": {"CPU": there}}, {"Alive": False, "Resources": {"CPU": 64.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(workers, "ROOM_SECONDS", 0.1)
    ended: list[str] = []
    tries = itertools.count()

    def note(why: str) -> bool:
        ended.append(why)
        return False

    def fit(trainer: Any) -> Any:
        """As Ray Train, where it did not get the workers' resources in time; at the eleventh try it does."""
        time.sleep(0.05)
        if next(tries) < 10:
            raise ControllerError(WorkerGroupStartupTimeoutError(trainer.scaling_config.num_workers))
        return SimpleNamespace(return_value="done")

    job = workers.Job(
        do=print,
        settings=dict,
        folder=tmp_path / "pretrain-0",
        ended=note,
        goes_on="from its last checkpoint",
        with_less="set resources.least_workers",
    )
    if there >= 4:
        assert workers.run(job, Demand(workers=4), tmp_path, fit) == "done"
    else:
        with pytest.raises(StageError, match=r"no room for 4 workers of 1 CPUs; .* set resources\.least_workers"):
            workers.run(job, Demand(workers=4), tmp_path, fit)
        assert next(tries) < 10
    assert ended == [], "no attempt had begun"


def test_an_attempt_that_was_given_notice_does_not_count(tmp_path: Path) -> None:
    attempts, folder, calls = Attempts(tmp_path), tmp_path / "pretrain-0", list[str]()

    def fit(*happens: str) -> Callable[[Any], Any]:
        """As Ray Train: what its attempts do, one after the other."""
        left = list(happens)

        def once(_: Any) -> Any:
            calls.append(happen := left.pop(0))
            if happen == "done":
                return SimpleNamespace(return_value=happen)
            if happen != "no beginning":
                pulse = Pulse(attempts.begin(None))
                pulse.beat(at_once=True, why=NOTICED if happen == "noticed" else None)
            raise ControllerError(RayActorError())

        return once

    job = workers.Job(print, dict, folder, attempts.ended, "from its last checkpoint", "set resources.least_workers")
    demand = Demand(workers=2, restarts=1)
    assert workers.run(job, demand, tmp_path, fit("noticed", "noticed", "lost", "noticed", "done")) == "done"
    assert len(calls) == 5
    with pytest.raises(StageError, match="lost a worker 2 times"):
        workers.run(job, demand, tmp_path, fit("lost", "noticed", "lost"))
    # what fails before it begins was given no notice, though the attempt before it was
    with pytest.raises(StageError, match="lost a worker 2 times"):
        workers.run(job, demand, tmp_path, fit("noticed", "no beginning", "no beginning"))
    assert [r["why"] for r in attempts.facts()["restarts"]].count(NOTICED) == 4


def test_fewer_workers_are_refused_where_the_result_would_depend_on_them() -> None:
    elastic = {"workers": 4, "least_workers": 2}
    with pytest.raises(ConfigError, match="arm moco has batch_norm worker"):
        miniature(resources=elastic)
    found = miniature(resources=elastic, pretrain={"epochs": 1, "moco": {"queue": 256}, "batch_norm": "sync"})
    (demand, *_) = {stage.demand for stage in plan(found, "f").of_kind("pretrain")}
    assert (demand.workers, demand.least_workers) == (4, 2)


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRay]:
    root = tmp_path_factory.mktemp("failures")
    with local(root, miniature()) as found:
        yield found
    shutil.rmtree(root, ignore_errors=True)


def pretraining(on_ray: OnRay, *, restarts: int = 3, **changes: Any) -> Stage:
    study = miniature(resources={"restarts": restarts, "checkpoint_seconds": 0})
    config = study.arms["moco"]
    assert config is not None
    (data,) = (p.name.removeprefix("data-") for p in on_ray.store.stages.glob("data-*"))
    return pretrain_stage(dataclasses.replace(config, **changes), study.resources, data, {"arm": "moco"})


def test_room_that_a_killed_attempt_left_held_is_given_back(on_ray: OnRay, tmp_path: Path) -> None:
    """Ray keeps a placement group whose owner was killed until the driver ends."""
    from ray.util.placement_group import placement_group, placement_group_table

    @ray.remote(num_cpus=0)
    class Killed:
        def hold(self) -> str:
            group = placement_group([{"CPU": 1}, {"CPU": 1}])
            ray.get(group.ready())
            return str(group.id.hex())

    killed = Killed.remote()
    room = ray.get(killed.hold.remote())
    ray.kill(killed)
    attempts, others = Attempts(tmp_path), room[:-8] + "ffffffff"
    attempts.begin(None, room=room)
    attempts.begin(None, room=others)  # of another driver: not ours to give back
    attempts.begin(None)
    assert placement_group_table()[room]["state"] == "CREATED"
    workers.give_back(tmp_path)
    on_ray.until(lambda: placement_group_table()[room]["state"] == "REMOVED", seconds=30)


def test_a_slow_worker_is_waited_for_and_a_dead_one_replaced(on_ray: OnRay) -> None:
    stage = pretraining(on_ray, epochs=3)
    on_ray.runner.submit(stage)
    on_ray.until(lambda: on_ray.checkpoints(stage))
    worker = train_worker()
    os.kill(worker, signal.SIGSTOP)
    stopped_at = read_attempt(on_ray, stage)["alive"]
    time.sleep(3)
    os.kill(worker, signal.SIGCONT)
    on_ray.until(lambda: read_attempt(on_ray, stage)["alive"] > stopped_at + 3)
    assert len(on_ray.attempts(stage)) == 1
    os.kill(worker, signal.SIGKILL)
    assert on_ray.end_of(stage) is None

    manifest = read_manifest(on_ray.store.path(stage))
    (restart,) = manifest["restarts"]
    assert "died" in restart["why"] or "killed" in restart["why"] or "unexpectedly" in restart["why"], restart
    assert manifest["resumed_step"] > 0
    assert 0 <= manifest["recomputed_seconds"] < manifest["wall_seconds"]
    lines = (on_ray.store.path(stage) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert not on_ray.store.train_folder(stage).exists()


def read_attempt(on_ray: OnRay, stage: Stage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(on_ray.attempts(stage)[-1].read_text())
    return found


def test_a_stage_that_pretrains_alone_goes_on_where_its_killed_process_left_off(on_ray: OnRay) -> None:
    stage = pretraining(on_ray, epochs=5)
    checkpoint = on_ray.store.train_folder(stage) / "checkpoint.pt"
    on_ray.alone.submit(stage)
    on_ray.until(checkpoint.exists)
    assert not train_workers(), "nothing but Ray's task"
    os.kill(stage_process(stage), signal.SIGKILL)
    on_ray.until(lambda: len(on_ray.attempts(stage)) == 2)
    time.sleep(1)
    assert len(on_ray.attempts(stage)) == 2
    assert on_ray.end_of(stage) is None
    manifest = read_manifest(on_ray.store.path(stage))
    assert [restart["why"] for restart in manifest["restarts"]] == [UNKNOWN]
    assert manifest["resumed_step"] > 0
    assert 0 <= manifest["recomputed_seconds"] < manifest["wall_seconds"]
    lines = (on_ray.store.path(stage) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert not on_ray.store.train_folder(stage).exists()


def test_what_one_machine_began_a_cluster_goes_on_with_and_the_other_way_round(on_ray: OnRay) -> None:
    stage = pretraining(on_ray, restarts=0, epochs=6)
    checkpoint = on_ray.store.train_folder(stage) / "checkpoint.pt"
    on_ray.alone.submit(stage)
    on_ray.until(checkpoint.exists)
    os.kill(stage_process(stage), signal.SIGKILL)
    error = on_ray.end_of(stage)
    assert isinstance(error, StageError)
    assert "lost its process 1 time, and resources.restarts is 0" in str(error)
    assert "from its last checkpoint" in str(error)
    steps = position(checkpoint)[1]

    del on_ray.ended[stage.key]
    on_ray.runner.submit(stage)
    on_ray.until(lambda: len(on_ray.attempts(stage)) == 2 and on_ray.checkpoints(stage))
    os.kill(train_worker(), signal.SIGKILL)
    assert isinstance(on_ray.end_of(stage), StageError)
    further = max(position(path / "checkpoint.pt")[1] for path in on_ray.checkpoints(stage))
    assert further > steps > 0

    del on_ray.ended[stage.key]
    on_ray.alone.submit(stage)
    assert on_ray.end_of(stage) is None
    manifest = read_manifest(on_ray.store.path(stage))
    assert manifest["resumed_step"] >= further
    assert len(manifest["restarts"]) == 2


def runner_of(on_ray: OnRay, way: str) -> RayRunner:
    found: RayRunner = getattr(on_ray, way)
    return found


@pytest.mark.parametrize("way", ["runner", "alone"])
def test_an_error_of_its_own_is_not_tried_again(on_ray: OnRay, way: str) -> None:
    stage = pretraining(on_ray, learning_rate=1e30 if way == "runner" else 2e30)
    runner_of(on_ray, way).submit(stage)
    assert isinstance(on_ray.end_of(stage), NonFiniteError)
    (attempt,) = on_ray.attempts(stage)
    assert json.loads(attempt.read_text())["why"].startswith("NonFiniteError")
    assert not on_ray.store.finished(stage)
    assert not list((on_ray.store.stages / ".work").glob(f"{stage.folder}-*"))


def test_a_worker_that_dies_again_and_again_is_given_up(on_ray: OnRay) -> None:
    stage = pretraining(on_ray, restarts=1, epochs=4)
    on_ray.runner.submit(stage)
    for turn in (1, 2):
        on_ray.until(lambda turn=turn: len(on_ray.attempts(stage)) == turn)  # type: ignore[misc]
        os.kill(train_worker(), signal.SIGKILL)
    error = on_ray.end_of(stage)
    assert isinstance(error, StageError)
    assert "lost a worker 2 times, and resources.restarts is 1" in str(error)
    assert on_ray.attempts(stage), "a later run goes on from its last checkpoint"
