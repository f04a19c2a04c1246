from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_core.errors import ConfigError, InputError, StageError
from tune_jobs.locks import running
from tune_jobs.stage import Stage
from tune_jobs.store import MANIFEST, Store, file_digest, read_manifest

STAGE = Stage(kind="probe", config={"rate": 0.1}, inputs={"features": "0" * 16})


def made(store: Store, stage: Stage = STAGE, text: str = "value") -> Path:
    work = store.begin(stage)
    (work / "rows.json").write_text(text)
    (work / "deep").mkdir()
    (work / "deep" / "x.bin").write_bytes(b"\0" * 10)
    return store.publish(stage, work, {"wall_seconds": 1.5})


def test_a_published_stage_is_found_with_its_manifest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.finished(STAGE)
    folder = made(store)
    assert store.finished(STAGE)
    assert folder == tmp_path / "stages" / f"probe-{STAGE.key}" == store.find("probe", STAGE.key)
    manifest = store.manifest(STAGE)
    assert manifest["config"] == {"rate": 0.1}
    assert manifest["inputs"] == {"features": "0" * 16}
    assert manifest["wall_seconds"] == 1.5
    assert manifest["files"]["rows.json"] == {"bytes": 5, "sha256": file_digest(folder / "rows.json")}
    assert set(manifest["files"]) == {"rows.json", "deep/x.bin"}


def test_a_working_folder_is_never_a_finished_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    work = store.begin(STAGE)
    (work / MANIFEST).write_text("{}")
    assert not store.finished(STAGE)
    with pytest.raises(StageError, match="not finished"):
        store.find("probe", STAGE.key)


def test_the_second_of_two_equal_stages_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made(store, text="first")
    made(store, text="second")
    assert (store.path(STAGE) / "rows.json").read_text() == "first"
    assert not list((tmp_path / "stages" / ".work").iterdir())


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = made(store)
    (folder / "rows.json").write_text("val")
    with pytest.raises(StageError, match=r"rows\.json is 3 bytes, its manifest says 5"):
        read_manifest(folder)
    (folder / "rows.json").unlink()
    with pytest.raises(StageError, match=r"rows\.json is missing"):
        store.manifest(STAGE)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(StageError, match="cannot be read"):
        store.manifest(STAGE)


def test_moving_the_root_moves_the_stages(tmp_path: Path) -> None:
    made(Store(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert Store(tmp_path / "b").finished(STAGE)


def test_a_uri_is_refused_with_what_to_give_instead() -> None:
    with pytest.raises(ConfigError, match="needs a folder"):
        Store("s3://bucket/runs")


def test_killed_while_publishing_leaves_all_or_nothing(tmp_path: Path) -> None:
    """A process that publishes without end is killed at many moments; what is there is always whole."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom tune_jobs.store import Store\nfrom tune_jobs.stage import Stage\n"
        "store = Store(sys.argv[1])\nprint('up', flush=True)\n"
        "for i in range(10**6):\n"
        "    stage = Stage(kind='probe', config={'i': i, 'run': sys.argv[2]})\n"
        "    work = store.begin(stage)\n"
        "    for n in range(3):\n        (work / f'{n}.txt').write_text('x' * 1000)\n"
        "    store.publish(stage, work, {})\n"
    )
    for run in range(4):
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(run)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(timeout=0.05 + 0.037 * run)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
    folders = [f for f in (tmp_path / "stages").iterdir() if not f.name.startswith(".")]
    assert folders
    for folder in folders:
        assert len(read_manifest(folder)["files"]) == 3


def test_one_run_a_study_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with running("one", store):
        with pytest.raises(InputError, match=f"already running .*process {os.getpid()}"), running("one", store):
            pass
        with running("two", store):
            pass
    with running("one", store):
        pass


def test_leftovers_are_swept_only_while_nobody_else_runs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with running("one", store):
        work = store.begin(STAGE)
        with running("two", store):
            assert work.is_dir()
    with running("two", store):
        assert not work.exists()


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    folder = made(Store(tmp_path))
    assert json.loads((folder / MANIFEST).read_text())["kind"] == "probe"
