"""MLflow as a projection of the finished stages. Real MLflow, real SQLite, real store folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from finished_stages import STARTED, auroc, finish, finish_all, small, study_folder, tiny
from mlflow_store import database, mlflow_client, shown

from ssl_core.errors import ConfigError, StageError
from tune_jobs.plan import Plan, plan
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.tracking import TrackingError, default_uri, follow, mask, sync, ui_command
from tune_jobs.tracking_client import IMPATIENCE, reason
from tune_jobs.tracking_facts import Record, allowed, finite, flatten, summary
from tune_jobs.tracking_writer import study_key


def replay(study: Study, planned: Plan, store: Store) -> Any:
    return sync(study, planned, store, uri=default_uri(store.root), folder=store.root / study.study)


def artifacts(root: Path) -> dict[str, tuple[str, int]]:
    """Content of every artifact, and when it was written: MLflow copies the modification time."""
    files = sorted(p for p in (root / "mlartifacts").rglob("*") if p.is_file())
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_ctime_ns) for p in files}


def a_store(root: Path, empty_database: Path) -> Store:
    root.mkdir()
    shutil.copy(empty_database, root / "mlflow.db")
    return Store(root)


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> Store:
    return a_store(tmp_path / "my runs", empty_database)


@dataclass
class World:
    study: Study
    plan: Plan
    store: Store
    view: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> World:
    """A finished study, replayed once. Tests leave it as it is."""
    store = a_store(tmp_path_factory.mktemp("world") / "runs", empty_database)
    study, planned = small()
    finish_all(planned, store)
    study_folder(study, store)
    done = replay(study, planned, store)
    assert (done.created, done.already_there) == (len(planned.stages), 0)
    return World(study, planned, store, shown(store.root))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_replaying_twice_changes_nothing(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    before = database(world.store.root), artifacts(world.store.root)
    again = replay(world.study, world.plan, world.store)
    assert (again.created, again.already_there) == (0, len(world.plan.stages))
    assert (database(world.store.root), artifacts(world.store.root)) == before
    assert capfd.readouterr() == ("", "")


def test_every_finished_stage_is_shown_below_its_arm(world: World) -> None:
    assert len(world.view) == 1 + len(world.study.arms) + len(world.plan.stages)
    for stage in world.plan.stages:
        arm = stage.labels.get("arm")
        parents = ["toy|", *([f"{arm}|"] if arm else [])]
        assert "/".join([*parents, f"{stage.name}|{stage.folder}"]) in world.view  # a twin's stages are under both arms
    for (status, _, _), _, _, tags, _ in world.view.values():
        assert status == "FINISHED"
        assert tags["intermoco.complete"] == "true"


def test_a_stage_run_holds_what_the_stage_left(world: World) -> None:
    found = [s for s in world.plan.of_kind("finetune") if s.labels["arm"] == "mse" and s.labels["mode"] == "full"]
    stage = found[0]
    (status, start, end), params, history, tags, files = world.view[f"toy|/mse|/{stage.name}|{stage.folder}"]
    started = round(1000 * (STARTED + 100 * list(world.plan.by_key).index(stage.key)))
    assert (status, start, end) == ("FINISHED", started, started + 60_000)
    assert params["mode"] == "full"
    assert params["augment.blur_sigma"] == "[0.1, 2.0]"
    assert params["augment.crop"] == "null"
    assert params["learning_rate"] == "0.001"
    assert history["loss"] == [(10, 1.0), (20, 0.5), (30, 1 / 3)]
    assert history["epoch"] == [(10, 1.0), (20, 2.0), (30, 3.0)]
    assert history["test_auroc"] == [(30, auroc(stage))]
    assert history["test_auroc_low"] == [(30, auroc(stage) - 0.1)]
    assert history["test_f1_macro"] == [(30, 0.25)]
    assert history["wall_seconds"] == [(30, 60.0)]
    assert {k: v for k, v in tags.items() if not k.startswith("mlflow.")} == {
        "intermoco.study": "toy",
        "intermoco.study_key": study_key(world.study, world.plan),
        "intermoco.arm": "mse",
        "intermoco.seed": "0",
        "intermoco.mode": "full",
        "intermoco.label_fraction": "0.1",
        "intermoco.kind": "finetune",
        "intermoco.stage": stage.folder,
        "intermoco.folder": f"stages/{stage.folder}",
        "intermoco.environment.python": "3.11.9",
        "intermoco.environment.cpus": "2",
        "intermoco.git_commit": "a" * 40,
        "intermoco.complete": "true",
    }
    assert files == ["manifest.json", "metrics.jsonl", "rows.json"]  # model.pt stays in the store


def test_an_arm_holds_its_settings_and_mean_test_scores_over_seeds(world: World) -> None:
    _, params, history, _, _ = world.view["toy|/mse|"]
    assert params["moco.queue"] == "512"
    assert params["mse.blocks"] == "[1, 2]"
    assert params["barlow"] == "null"
    assert "seed" not in params
    tuned = [s for s in world.plan.of_kind("finetune") if s.labels["arm"] == "mse" and s.labels["mode"] == "full"]
    for fraction in (0.1, 1.0):
        a, b = (auroc(s) for s in tuned if s.labels["label_fraction"] == fraction)
        name = f"test_auroc_full_{fraction:g}"
        assert history[name] == [(0, pytest.approx((a + b) / 2, abs=1e-12))]
        assert history[f"{name}_sd"] == [(0, pytest.approx(abs(a - b) / 2**0.5, abs=1e-12))]
        assert history[f"{name}_seeds"] == [(0, 2.0)]
    assert "test_auroc_linear_1" in history
    assert not [name for name in history if "low" in name or "block" in name]
    assert history["wall_seconds"] == [(0, 60.0 * sum(s.labels.get("arm") == "mse" for s in world.plan.stages))]
    assert world.view["toy|/supervised|"][1]["pretrain"] == "scratch"


def test_the_study_run_holds_the_dataset_and_the_studys_files(world: World) -> None:
    _, params, history, tags, files = world.view["toy|"]
    assert params["dataset.fingerprint"] == "f" * 64
    assert params["dataset.train.images"] == "1257"
    assert history["wall_seconds"] == [(0, 60.0 * len(world.plan.by_key))]  # a stage of two arms cost its time once
    assert tags["mlflow.note.content"] == "Do block losses help?"
    assert tags["intermoco.stages"] == f"{len(world.plan.by_key)} of {len(world.plan.by_key)}"
    assert tags["mlflow.source.git.commit"] == "a" * 40
    client = mlflow_client(world.store.root)
    for run in client.search_runs(["1"], "dataset.name = 'digits'"):
        assert run.data.tags["intermoco.kind"] in ("study", "arm")
        assert [d.dataset.digest for d in run.inputs.dataset_inputs] == ["f" * 36]
    assert len(client.search_runs(["1"], "dataset.name = 'digits'")) == 1 + len(world.study.arms)
    assert files == ["report/figures/linear.svg", "report/index.html", "study.yaml", "tables/linear.csv"]


def test_summaries_and_files_follow_what_is_finished(store: Store) -> None:
    study, planned = tiny()
    folder = study_folder(study, store)
    first = [s for s in planned.stages if s.labels.get("seed", 0) == 0 and s.kind != "ks"]
    for stage in first:
        finish(stage, planned, store)
    replay(study, planned, store)
    view = shown(store.root)
    (status, _, _), _, _, tags, _ = view["toy|"]
    assert (status, tags["intermoco.complete"]) == ("KILLED", "false")
    assert tags["intermoco.stages"] == f"{len(first)} of {len(planned.by_key)}"
    assert "test_auroc_full_1_sd" not in view["toy|/moco|"][2]

    finish_all(planned, store)
    (folder / "tables" / "linear.csv").write_text("arm,value\nmoco,0.8\n")
    (folder / "tables" / "ks.csv").write_text("arm,value\n")
    assert replay(study, planned, store).created == len(planned.stages) - len(first)
    view = shown(store.root)
    (status, _, _), _, _, tags, files = view["toy|"]
    assert (status, tags["intermoco.complete"]) == ("FINISHED", "true")
    assert "tables/ks.csv" in files
    a, b = (auroc(s) for s in planned.of_kind("finetune") if s.labels["mode"] == "full")
    history = view["toy|/moco|"][2]["test_auroc_full_1"]
    assert [step for step, _ in history] == [0, 0]
    assert mlflow_client(store.root).search_runs(
        ["1"], "tags.`intermoco.kind` = 'arm' and tags.`intermoco.arm` = 'moco'"
    )[0].data.metrics["test_auroc_full_1"] == pytest.approx((a + b) / 2, abs=1e-12)
    changed = [p for p in (store.root / "mlartifacts").rglob("linear.csv") if "0.8" in p.read_text()]
    assert len(changed) == 1
    before = database(store.root)
    replay(study, planned, store)
    assert database(store.root) == before


def test_a_half_written_run_is_deleted_and_written_anew(store: Store) -> None:
    study, planned = tiny()
    finish_all(planned, store)
    study_folder(study, store)
    replay(study, planned, store)
    whole = shown(store.root)
    client = mlflow_client(store.root)
    runs = client.search_runs(["1"], "tags.`intermoco.kind` = 'finetune'")
    client.delete_tag(runs[0].info.run_id, "intermoco.complete")
    copied = client.create_run("1", tags=runs[1].data.tags)  # another process wrote the same stage at the same time

    assert replay(study, planned, store).created == 1

    assert shown(store.root) == whole
    assert {client.get_run(r).info.lifecycle_stage for r in (runs[0].info.run_id, copied.info.run_id)} == {"deleted"}


def test_a_replay_killed_in_the_middle_is_repaired(store: Store, tmp_path: Path) -> None:
    study, planned = tiny()
    for stage in planned.by_key.values():
        finish(stage, planned, store, lines=600)  # long enough to be hit while its metrics are written
    study_folder(study, store)
    shutil.copytree(store.root, tmp_path / "other")
    (tmp_path / "study.yaml").write_text(study.to_yaml())
    script = (
        "import sys; from pathlib import Path; from tune_jobs.loading import load; from tune_jobs.plan import plan;"
        "from tune_jobs.store import Store; from tune_jobs.tracking import sync, default_uri;"
        "study = load(sys.argv[1]); store = Store(sys.argv[2]);"
        "sync(study, plan(study, 'f' * 64), store, uri=default_uri(store.root), folder=store.root / 'toy')"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "study.yaml"), str(store.root)])
    while len(database(store.root)["runs"]) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = sum(row[1] == "true" for row in database(store.root)["tags"] if row[0] == "intermoco.complete")
    assert done < len(planned.stages)

    repaired = replay(study, planned, store)

    assert repaired.created == len(planned.stages) - repaired.already_there > 0
    other = Store(tmp_path / "other")
    replay(study, planned, other)
    assert shown(store.root) == shown(other.root)


def test_a_stage_whose_parent_was_deleted_by_hand_moves_below_the_new_one(store: Store) -> None:
    study, planned = tiny()
    finish_all(planned, store)
    study_folder(study, store)
    replay(study, planned, store)
    whole = shown(store.root)
    client = mlflow_client(store.root)
    for run in client.search_runs(["1"], "tags.`intermoco.kind` = 'study'"):
        client.delete_run(run.info.run_id)
    for run in client.search_runs(["1"], "tags.`intermoco.arm` = 'moco' and tags.`intermoco.kind` = 'arm'"):
        client.delete_run(run.info.run_id)
    assert replay(study, planned, store).created == 0
    assert shown(store.root) == whole


def test_other_data_or_settings_are_another_study_run_but_another_place_is_not() -> None:
    study, planned = tiny()
    key = study_key(study, planned)
    assert study_key(*tiny(resources={"cpus": 2}, tracking={"experiment": "elsewhere"})) == key
    search = {"space": {"learning_rate": [0.01, 0.1]}, "objectives": ["score"], "score": {"fraction": 1.0}}
    assert study_key(*tiny(search=search)) == key
    assert study_key(*tiny(promotion={"ece": 0.2})) == key
    here, there = ({"source": "npz", "path": path, "name": "x"} for path in ("/here/x.npz", "/there/x.npz"))
    assert study_key(*tiny(dataset=here)) == study_key(*tiny(dataset=there)) != key
    assert study_key(study, plan(study, "e" * 64)) != key
    assert study_key(*tiny(seeds=[0])) != key
    assert study_key(*tiny(baseline="supervised")) != key


def test_the_follower_shows_stages_while_the_study_runs(store: Store) -> None:
    study, planned = small(arms={"moco": {}, "twin": {}}, probe=None, reuse=None)
    follower = follow(study, planned, store, uri=default_uri(store.root))
    for stage in list(planned.by_key.values())[:4]:  # data, audit, pretraining, linear
        finish(stage, planned, store)
        began = time.monotonic()
        follower.add(stage.key)
        assert time.monotonic() - began < 0.1
    assert follower.close(timeout=30) is None
    view = shown(store.root)
    assert len([path for path in view if "|/moco|/" in path]) == 2
    assert len([path for path in view if "|/twin|/" in path]) == 2  # stages that both arms share
    assert view["toy|"][0][0] == "RUNNING"
    assert view["toy|"][3]["intermoco.stages"] == f"4 of {len(planned.by_key)}"

    finish_all(planned, store)
    done = replay(study, planned, store)
    assert (done.created, done.already_there) == (len(planned.stages) - 6, 6)


def test_a_server_that_is_down_costs_nothing_but_lateness(
    store: Store, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in IMPATIENCE:
        monkeypatch.setenv(name, "")  # put back as it was when the test is over
        monkeypatch.delenv(name)
    study, planned = tiny()
    finish_all(planned, store)
    uri = f"http://ada:hunter2@127.0.0.1:{closed_port}"
    follower = follow(study, planned, store, uri=uri)
    began = time.monotonic()
    for stage in planned.by_key.values():
        follower.add(stage.key)
    assert time.monotonic() - began < 0.1
    late = follower.close(timeout=20)
    assert time.monotonic() - began < 15
    assert late is not None
    assert late.startswith(f"MLflow at http://ada:***@127.0.0.1:{closed_port} was not reachable: ")
    assert late.endswith("onnection refused; run `intermoco sync STUDY` later")
    assert {name: os.environ[name] for name in IMPATIENCE} == IMPATIENCE
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # who sets it himself keeps it
    began = time.monotonic()
    with pytest.raises(TrackingError, match="onnection refused") as failure:
        sync(study, planned, store, uri=uri, folder=store.root)
    assert time.monotonic() - began < 1.5
    assert "hunter2" not in late + str(failure.value)


def test_the_follower_keeps_an_error_to_itself_and_tells_it_at_the_end(store: Store) -> None:
    study, planned = tiny()
    follower = follow(study, planned, store, uri=default_uri(store.root))
    follower.add(planned.stages[0].key)  # not finished: cannot be read
    late = follower.close(timeout=20)
    assert late is not None
    assert "is behind: StageError: stage data-" in late


def test_a_follower_without_stages_says_nothing(store: Store, closed_port: int) -> None:
    study, planned = tiny()
    assert follow(study, planned, store, uri=f"http://127.0.0.1:{closed_port}").close(timeout=5) is None


def test_mlflows_own_server_shows_the_store_and_takes_a_replay(store: Store, closed_port: int) -> None:
    few = {"seeds": [0], "ks": None}
    study, planned = tiny(**few)
    finish_all(planned, store)
    study_folder(study, store)
    replay(study, planned, store)
    command, environment = ui_command(default_uri(store.root), store.root, closed_port)
    assert not any("mlflow.db" in word for word in command)
    base = f"http://127.0.0.1:{closed_port}"
    log = (store.root / "server.log").open("w")
    server = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
    )
    try:
        wait_for(base, server)
        runs = post(f"{base}/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"], "max_results": 100})["runs"]
        by_id = {run["info"]["run_id"]: run for run in runs}
        depth = [len(list(ancestors(run, by_id))) for run in runs]
        assert sorted(depth) == sorted([0, *[1] * (2 + 2), *[2] * (len(planned.stages) - 2)])
        stage = next(r for r in runs if tag(r, "intermoco.kind") == "finetune")["info"]["run_id"]
        with urllib.request.urlopen(f"{base}/get-artifact?path=rows.json&run_uuid={stage}", timeout=10) as answer:
            assert json.load(answer)[0]["metric"] == "auroc"

        elsewhere, moved = tiny(**few, tracking={"experiment": "remote"})  # a server keeps artifacts where it likes
        folder = store.root / "toy"
        assert sync(elsewhere, moved, store, uri=base, folder=folder).created == len(planned.stages)
        assert sync(elsewhere, moved, store, uri=base, folder=folder).created == 0
        client = mlflow_client(store.root)
        there = client.get_experiment_by_name("remote").experiment_id
        assert len(client.search_runs([there])) == len(runs)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)
        log.close()


def wait_for(base: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("MLflow's server did not start within a minute")


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def tag(run: Any, name: str) -> str | None:
    return next((t["value"] for t in run["data"]["tags"] if t["key"] == name), None)


def ancestors(run: Any, by_id: dict[str, Any]) -> Iterator[Any]:
    while parent := tag(run, "mlflow.parentRunId"):
        run = by_id[parent]
        yield run


def test_a_deleted_experiment_and_a_moved_root_say_what_to_do(store: Store) -> None:
    study, planned = tiny()
    replay(study, planned, store)
    client = mlflow_client(store.root)
    with sqlite3.connect(store.root / "mlflow.db") as connection:
        connection.execute("UPDATE experiments SET artifact_location = 'file:///gone/mlartifacts' WHERE name = 'toy'")
    connection.close()
    with pytest.raises(TrackingError, match="keeps its artifacts in /gone/mlartifacts"):
        replay(study, planned, store)
    client.delete_experiment(client.get_experiment_by_name("toy").experiment_id)
    with pytest.raises(TrackingError, match="toy was deleted in MLflow: restore it"):
        replay(study, planned, store)


def test_mlflows_file_store_is_refused(store: Store) -> None:
    study, planned = tiny()
    for uri in ("mlruns", "/shared/mlruns", "file:///shared/mlruns"):
        with pytest.raises(ConfigError, match=r"tracking\.uri: .* sqlite:////shared/mlflow\.db"):
            sync(study, planned, store, uri=uri, folder=store.root)


@pytest.mark.parametrize(
    ("uri", "masked"),
    [
        ("http://ada:hunter2@host:5000/x", "http://ada:***@host:5000/x"),
        ("postgresql+psycopg://u:p/w@h@db/mlflow", "postgresql+psycopg://u:***@db/mlflow"),
        ("postgresql://db/mlflow?user=u&password=p&x=1", "postgresql://db/mlflow?user=u&password=***&x=1"),
        ("sqlite:////runs/a@b/mlflow.db", "sqlite:////runs/a@b/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("API to http://:key@h/p failed", "API to http://:***@h/p failed"),
    ],
)
def test_passwords_are_hidden(uri: str, masked: str) -> None:
    assert mask(uri) == masked


def test_an_error_in_words_hides_the_password_and_names_the_networks_own_reason() -> None:
    outer = RuntimeError("API request to http://ada:hunter2@host:5000/api failed:\n401")
    assert reason(outer) == "RuntimeError: API request to http://ada:***@host:5000/api failed: 401"
    outer.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert reason(outer) == "ConnectionRefusedError: [Errno 111] Connection refused"
    assert len(reason(RuntimeError("x" * 1000))) == 300


def test_names_and_values_that_mlflow_refuses_are_mended() -> None:
    assert flatten({"a": {"b": (1, 2), "c": None, "d": {}}, "e": "x"}) == {
        "a.b": "[1, 2]",
        "a.c": "null",
        "a.d": "{}",
        "e": "x",
    }
    assert allowed("val/f1 @0.5: ä") == "val_f1 _0.5_ _"
    assert len(allowed("x" * 300)) == 250
    assert len(flatten({"models": ["m" * 90] * 100})["models"]) == 6000
    assert finite(float("inf")) == sys.float_info.max
    assert finite(float("-inf")) == -sys.float_info.max
    assert finite(0.5) == 0.5
    assert finite(float("nan")) != finite(float("nan"))


def test_metrics_that_are_not_numbers_reach_mlflow_as_it_keeps_them(store: Store) -> None:
    study, planned = tiny()
    stage = next(planned.of_kind("pretrain"))
    work = store.begin(stage)
    log = [
        {"step": 1, "loss": float("nan"), "worst": float("inf"), "note": "text", "late": None, "on": True},
        {"step": 2, "loss": 0.5},
        {"step": 2, "loss": 0.25},  # the same step again: the later line counts
    ]
    (work / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    store.publish(stage, work, {"started": STARTED, "wall_seconds": 30.0})
    replay(study, planned, store)
    before = database(store.root)
    replay(study, planned, store)
    assert database(store.root) == before
    (history,) = (h for path, (_, _, h, _, _) in shown(store.root).items() if stage.folder in path)
    assert repr(history["loss"]) == "[(1, nan), (2, 0.25)]"
    assert history["worst"] == [(1, sys.float_info.max)]
    assert set(history) == {"loss", "worst", "wall_seconds"}
    points = Record.read(stage, store).points
    assert [p.time for p in points if p.name == "loss"] == [1000 * 1_700_000_010, 1000 * 1_700_000_030]


def test_a_stage_without_times_takes_those_of_its_manifest(store: Store) -> None:
    _, planned = tiny()
    stage = next(planned.of_kind("data"))
    store.publish(stage, store.begin(stage), {"wall_seconds": 5.0})
    os.utime(store.path(stage) / "manifest.json", (2000.0, 2000.0))
    record = Record.read(stage, store)
    assert (record.started, record.ended) == (1_995_000, 2_000_000)


def test_rows_of_each_kind_have_names_of_their_own(store: Store) -> None:
    _, planned = small()
    finish_all(planned, store)
    kinds = {s.kind: Record.read(s, store).measures for s in reversed(planned.stages)}
    assert set(kinds["probe"]) == {f"block{b}_auroc{x}" for b in (1, 2) for x in ("", "_low", "_high")}
    assert kinds["reuse"] == {"cka_linear_block1": 0.9, "cka_linear_block1_null": 0.1}
    assert kinds["ks"]["ks_mse_seed1_full_0.1"] == 0.3
    assert kinds["ks"]["ks_supervised_seed0_scratch_1_floor"] == 0.05
    assert kinds["pretrain"] == {}


def test_two_rows_of_one_name_are_an_error_not_a_choice(store: Store) -> None:
    _, planned = tiny()
    stage = next(planned.of_kind("finetune"))
    work = store.begin(stage)
    (work / "rows.json").write_text(json.dumps([{"metric": "auroc", "value": v} for v in (0.1, 0.9)]))
    store.publish(stage, work, {})
    with pytest.raises(StageError, match="two rows for test_auroc"):
        _ = Record.read(stage, store).measures


def test_a_score_that_is_undefined_in_one_seed_does_not_spoil_the_mean(store: Store) -> None:
    _, planned = tiny()
    found = []
    for stage, value in zip(
        (s for s in planned.of_kind("finetune") if s.labels["mode"] == "full"), (None, 0.75), strict=True
    ):
        work = store.begin(stage)
        (work / "rows.json").write_text(json.dumps([{"metric": "auroc", "value": value}]))
        store.publish(stage, work, {})
        found.append((stage, Record.read(stage, store)))
    assert summary(found) == {"test_auroc_full_1": 0.75, "test_auroc_full_1_seeds": 1.0}


def test_the_command_line_does_not_import_mlflow() -> None:
    code = "import sys, tune_jobs.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
