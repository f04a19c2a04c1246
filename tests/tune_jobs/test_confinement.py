"""Whoever can write to a study's storage plants links, names and nests there: nothing is written, removed or sent
beyond it, and what cannot be read is said in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_stages import finish_all, study_folder, tiny
from mlflow.tracking import MlflowClient

from ssl_core.errors import ConfigError, InputError, StageError
from tune_jobs.loading import MOST_VALUES, load
from tune_jobs.locks import require_no_links, running
from tune_jobs.stage import Stage
from tune_jobs.store import Store, read_manifest
from tune_jobs.tracking import default_uri, sync

pytestmark = pytest.mark.timeout(120)

REPOSITORY = Path(__file__).parents[2]
SECRET = "of another folder"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    (folder / "checkpoint_1").mkdir(parents=True)
    (folder / "key").write_text(SECRET)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store(tmp_path / "runs")
    (found.root / "toy").mkdir(parents=True)
    found.stages.mkdir()
    return found


# links


@pytest.mark.parametrize(
    ("place", "to"),
    [
        ("toy/.lock", "key"), ("toy/study.yaml", "key"), ("toy/tables", "."), ("toy/tables/linear.csv", "key"),
        ("toy/report/index.html", "nowhere"), ("toy/search/.tune", "."), ("toy/failures", "."), ("stages/.work", "."),
        ("stages/.train", "."), ("stages/.train/pretrain-0", "."), ("stages/.train/pretrain-0/attempts", "."),
        ("stages/.lock", "nowhere"), ("stages/.pack/data-0", "."),
    ],
)  # fmt: skip
def test_a_study_does_not_write_where_a_link_leads(place: str, to: str, store: Store, victim: Path) -> None:
    link = store.root / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim / to)
    with pytest.raises(InputError, match=f"{re.escape(str(link))} is a link"), running("toy", store):
        pass
    assert sorted(path.name for path in victim.iterdir()) == ["checkpoint_1", "key"]
    assert (victim / "key").read_text() == SECRET


def test_the_output_folder_itself_may_be_a_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.root)
    require_no_links("toy", Store(tmp_path / "link"))
    (tmp_path / "stages").symlink_to(store.stages)
    store.stages.rename(tmp_path / "moved")
    store.stages.symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match="stages is a link"):
        require_no_links("toy", store)


# manifests


def listed(name: str) -> Callable[[Path, Path], None]:
    """A manifest that lists a file by a name, of the size that it has there."""

    def write(folder: Path, victim: Path) -> None:
        del victim
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = {"bytes": len(SECRET), "sha256": ""}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return write


def linked(folder: Path, victim: Path) -> None:
    """A file that the manifest lists is a link to one of its size."""
    (folder / "rows.json").unlink()
    (folder / "rows.json").symlink_to(victim / "key")


def manifest_linked(folder: Path, victim: Path) -> None:
    (folder / "manifest.json").rename(victim / "manifest.json")
    (folder / "manifest.json").symlink_to(victim / "manifest.json")


@pytest.mark.parametrize("plant", [listed("../../../victim/key"), listed("{victim}/key"), linked, manifest_linked])
def test_a_stage_holds_what_lies_in_its_folder_alone(
    plant: Callable[[Path, Path], None], store: Store, victim: Path
) -> None:
    stage = Stage(kind="probe", config={})
    work = store.begin(stage)
    (work / "rows.json").write_text("x" * len(SECRET))
    folder = store.publish(stage, work, {})
    assert list(read_manifest(folder)["files"]) == ["rows.json"]
    plant(folder, victim)
    text = (folder / "manifest.json").read_text().replace("{victim}", str(victim))
    if plant is not manifest_linked:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(StageError, match=r"is a link or leads out of .*remove it"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", "[1]", '{"files": 3}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "\xff", ""]
)
def test_a_manifest_that_is_none_is_said_in_one_line(text: str, store: Store) -> None:
    folder = store.stages / "probe-0"
    folder.mkdir()
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StageError, match=r"manifest\.json cannot be read .*; remove .*probe-0 and run again"):
        read_manifest(folder)


# what MLflow is sent


def artifacts(client: Any, run: str, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for file in client.list_artifacts(run, folder):
        found |= artifacts(client, run, file.path) if file.is_dir else {file.path}
    return found


def test_mlflow_is_not_sent_what_links_lead_to(store: Store, victim: Path, empty_database: Path) -> None:
    study, planned = tiny(seeds=[0])
    (store.root / "toy").rmdir()
    folder = study_folder(study, store)
    finish_all(planned, store)
    data = store.path(next(planned.of_kind("data")))
    (folder / "report" / "stolen.html").symlink_to(victim / "key")
    (folder / "report" / "all").symlink_to(victim)
    (folder / "tables" / "stolen.csv").symlink_to(victim / "key")
    (data / "unreadable.json").symlink_to(victim / "key")  # a name that MLflow would get, and no manifest lists
    (store.root / "mlflow.db").write_bytes(empty_database.read_bytes())
    uri = default_uri(store.root)
    sync(study, planned, store, uri=uri, folder=folder)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("toy")
    sent = {
        run.info.run_name: artifacts(client, run.info.run_id) for run in client.search_runs([experiment.experiment_id])
    }
    assert sent["toy"] == {"study.yaml", "tables/linear.csv", "report/index.html", "report/figures/linear.svg"}
    assert sent["data"] == {"manifest.json", "dataset.json"}
    assert not [p for p in store.root.glob("mlartifacts/**/*") if p.is_file() and SECRET in p.read_text()]


# what the documents promise


@pytest.mark.parametrize("page", ["security.md", "failures.md"])
def test_what_a_page_says_is_shown_is_there(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (REPOSITORY / "docs" / page).read_text()))
    defined = {
        n for p in REPOSITORY.glob("tests/**/test_*.py") for n in re.findall(r"^def (test_\w+)", p.read_text(), re.M)
    }
    assert named
    assert named <= defined


# a study


def aliases(depth: int) -> str:
    """Ten of what ten of what ... ten words are."""
    lines = ["    - &l0 [" + ", ".join(["word"] * 10) + "]"]
    lines += [f"    - &l{i} [" + ", ".join([f"*l{i - 1}"] * 10) + "]" for i in range(1, depth)]
    return "\n".join(lines)


def test_a_study_that_grows_or_nests_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"study: x\ndataset:\n  source: digits\n  path:\n{aliases(9)}\n")
    with pytest.raises(ConfigError, match=f"more than {MOST_VALUES:,} values; look at its aliases"):
        load(str(path))
    path.write_text("study: x\narms: &a {moco: *a}\n")
    with pytest.raises(ConfigError, match=f"more than {MOST_VALUES:,} values; look at its aliases"):
        load(str(path))
    path.write_text("study: " + "[" * 5000)
    with pytest.raises(ConfigError, match="not valid YAML: maximum recursion depth"):
        load(str(path))
    with pytest.raises(ConfigError, match="not valid YAML"):
        load("quickstart", ["seeds=" + "[" * 5000])
    with pytest.raises(ConfigError, match=r"--set seeds: .* look at its aliases"):
        load("quickstart", ["seeds=&a [*a]"])
