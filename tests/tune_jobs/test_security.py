"""Attacks through the real code: pickles in shared files, paths that lead outside, passwords, markup in names."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ledgers import opened, search, train
from studies import few_digits, raw

from analysis import ks
from analysis.config import KsConfig
from analysis.features import Features
from ssl_core import resume
from ssl_core.data.dataset import Dataset
from ssl_core.data.evidence import Packed
from ssl_core.data.npz import listing
from ssl_core.data.sharding import ShardFacts
from ssl_core.errors import CheckpointError, ConfigError, DataError
from tune_jobs import cli
from tune_jobs.loading import load
from tune_jobs.prepare import packed, planned
from tune_jobs.resolution import resolve
from tune_jobs.search.run import _empty
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.tracking_client import mask, require_own
from tune_jobs.train import SNAPSHOT, _unknown_to_ray
from tune_jobs.work import perform

pytestmark = pytest.mark.timeout(120)

MARKUP = "<img src=x onerror=alert(1)>"
NAMES = (MARKUP, "=cmd|' /C calc'!A0", "$x_{ [link](javascript:alert(1))")


@dataclass(frozen=True)
class Evil:
    """Unpickling it makes a folder."""

    marker: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@dataclass(frozen=True)
class Made:
    """A study on 180 digits with classes and ids as an attacker would name them: its stages are finished."""

    root: Path
    yaml: Path
    data: Path
    tuned: Path
    store: Store
    finetune: Stage


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("security")
    section = few_digits(folder)
    with np.load(section["path"]) as file:
        arrays = dict(file)
    ids = [f"../../{MARKUP}/{i}" for i in range(len(arrays["labels"]))]
    np.savez(section["path"], **arrays, ids=np.array(ids), class_names=np.array(NAMES))
    values = raw(
        seeds=[0], dataset={**section, "name": f"../{MARKUP}"}, arms={"plain": "scratch"}, question=MARKUP,
        probe=None, reuse=None, ks=None,
    )  # fmt: skip
    values["downstream"]["fractions"] = [1.0]
    path, store = folder / "study.yaml", Store(folder / "runs")
    path.write_text(yaml.safe_dump(values))
    study = load(str(path))
    full = planned(study, store)
    (data,), (finetune,) = full.of_kind("data"), full.of_kind("finetune")
    packed(study.dataset, store, data, {})
    threads = torch.get_num_threads()
    perform(finetune, store, Demand(), {}, lambda values: None)
    torch.set_num_threads(threads)
    return Made(store.root, path, store.path(data), store.path(finetune), store, finetune)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Callable[[Path], Path]:
    """A finished stage's folder, copied into this test's own."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copied"))


# pickles


def as_array(evil: Evil) -> np.ndarray[Any, Any]:
    return np.array([evil], dtype=object)


def plant(path: Path, evil: Evil) -> Path:
    """The file with a pickle in it that runs code: in the format that whoever reads it expects."""
    match path.suffix:
        case ".npy":
            path.unlink(missing_ok=True)  # packed files are read-only maps of others
            np.save(path, as_array(evil), allow_pickle=True)
        case ".npz":
            with np.load(path) as file:
                arrays = dict.fromkeys(file.files, as_array(evil))
            np.savez(path, **arrays)
        case ".pt":
            torch.save({"state": evil, "step": 1, "epoch": 1}, path)
    return path


def went_off(path: Path, marker: Path) -> bool:
    """Whether what lies there does run code where it is unpickled without care."""
    if path.suffix == ".pt":
        torch.load(path, weights_only=False)
    else:
        found = np.load(path, allow_pickle=True)
        _ = found[found.files[0]] if path.suffix == ".npz" else found
    return marker.is_dir()


def first_image(folder: Path) -> Any:
    """The attacker mends the list of the files' sizes too."""
    listed = json.loads((folder / "shards.json").read_text())
    listed["files"][0]["bytes"] = (folder / listed["files"][0]["file"]).stat().st_size
    (folder / "shards.json").write_text(json.dumps(listed))
    return Dataset.open(folder).images[0]


def compared(folder: Path) -> Any:
    return ks.compare(KsConfig(), [ks.KsModel("a", 0, "full", 1.0, folder)], folder)


READERS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "labels of a dataset": ("data", "labels.npy", Dataset.open),
    "ids of a dataset": ("data", "ids.npy", Dataset.open),
    "images of a dataset": ("data", "images/00000.npy", first_image),
    "likeness": ("data", "likeness.npz", lambda folder: Packed.open(Dataset.open(folder), folder)),
    "inventory": ("data", "inventory.npz", lambda folder: Packed.open(Dataset.open(folder), folder)),
    "predictions": ("tuned", "predictions.npz", compared),
}


@pytest.mark.parametrize("what", READERS)
def test_arrays_in_the_store_are_not_unpickled(
    what: str, made: Made, copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    of, name, read = READERS[what]
    folder, marker = copy(getattr(made, of)), tmp_path / "marker"
    plant(folder / name, Evil(marker))
    with pytest.raises(DataError, match=re.escape(str(folder))):
        read(folder)
    assert not marker.exists()
    assert went_off(folder / name, marker)


def test_weights_are_not_unpickled(made: Made, copy: Callable[[Path], Path], tmp_path: Path) -> None:
    """Those of another stage, and a checkpoint that a pretraining would go on from."""
    store, marker = Store(tmp_path / "runs"), tmp_path / "marker"
    store.stages.mkdir(parents=True)
    (store.stages / made.data.name).symlink_to(made.data)
    path = plant(copy(made.tuned) / "model.pt", Evil(marker))
    path.parent.rename(store.stages / made.tuned.name)
    path = store.stages / made.tuned.name / path.name
    config = {"splits": [2], "norm": "moving", "norm_batch": 64, "seed": 0}
    features = Stage(kind="features", config=config, inputs={**made.finetune.inputs, "finetune": made.finetune.key})
    threads = torch.get_num_threads()
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        perform(features, store, Demand(), {}, lambda values: None)
    torch.set_num_threads(threads)
    checkpoint = plant(tmp_path / "checkpoint.pt", Evil(marker))
    with pytest.raises(CheckpointError, match=re.escape(str(checkpoint))):
        resume.position(checkpoint)
    assert not marker.exists()
    assert went_off(path, marker)


def test_features_and_half_packed_shards_are_not_unpickled(tmp_path: Path) -> None:
    marker, array = tmp_path / "marker", np.zeros((1, 2), np.float32)
    for name in ("ids", "labels", "splits", "groups", "block1", "block2", "block3", "block4"):
        np.save(tmp_path / f"{name}.npy", array)
    about = {"task": "binary", "class_names": ["a", "b"], "fingerprint": "f", "encoder": "e"}
    (tmp_path / "features.json").write_text(json.dumps(about))
    assert Features.open(tmp_path).task == "binary"
    plant(tmp_path / "block3.npy", Evil(marker))
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        Features.open(tmp_path)
    np.savez(tmp_path / "00000.npz", rest=array)
    with pytest.raises(ValueError, match="allow_pickle=False"):  # so the shard counts as not packed
        ShardFacts.open(plant(tmp_path / "00000.npz", Evil(marker)))
    assert not marker.exists()
    assert went_off(tmp_path / "block3.npy", marker)


def test_a_users_npz_and_yaml_run_nothing(made: Made, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    np.savez(tmp_path / "set.npz", images=np.zeros((4, 8, 8), np.uint8), labels=as_array(Evil(marker)))
    study = resolve(raw(dataset={"source": "npz", "path": str(tmp_path / "set.npz")}))
    with pytest.raises(DataError, match=r"set\.npz.*'labels'"):
        listing(study.dataset)
    for tag in ("python/object/apply:os.mkdir", "python/name:os.mkdir"):
        (tmp_path / "evil.yaml").write_text(f"study: !!{tag} ['{marker}']\n")
        with pytest.raises(ConfigError, match="not valid YAML"):
            load(str(tmp_path / "evil.yaml"))
        with pytest.raises(ConfigError, match="not valid YAML"):
            load("quickstart", [f"question=!!{tag} ['{marker}']"])
    assert not marker.exists()


def test_optunas_storage_is_not_unpickled(tmp_path: Path) -> None:
    """CMA-ES keeps its state there as a pickle. Optuna's own sampler runs whatever somebody else wrote."""
    marker, config = tmp_path / "marker", search(sampler="cmaes", scheduler="none", trials=30)
    train(opened(config, tmp_path), trials=20)
    with sqlite3.connect(tmp_path / "optuna.db") as database:
        keys = "FROM trial_system_attributes WHERE key LIKE 'cma:optimizer:%'"
        assert database.execute(f"SELECT COUNT(*) {keys}").fetchone()[0] > 0, "the search got as far as that"
        database.execute(f"DELETE {keys} AND key NOT LIKE '%:0'")
        evil = json.dumps(pickle.dumps(Evil(marker)).hex())
        database.execute("UPDATE trial_system_attributes SET value_json = ? WHERE key LIKE 'cma:optimizer:%'", [evil])
    database.close()
    with pytest.raises(ConfigError, match=r"search\.storage: trial \d+ holds no optimizer .*posix\.mkdir"):
        opened(config, tmp_path).next()
    assert not marker.exists()
    pickle.loads(bytes.fromhex(json.loads(evil)))
    assert marker.is_dir()


# paths


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b", ".", "a\nb", "a\0b", "a b", "ä", "-rf", "x" * 101, "", "stages", "mlartifacts"]
)
def test_a_studys_or_an_arms_name_is_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match="study: "):
        resolve(raw(study=name))
    if name not in ("stages", "mlartifacts"):
        with pytest.raises(ConfigError, match=r"arms\."):
            resolve(raw(arms={name: {}}))
    with pytest.raises(ConfigError, match="study: "):
        load("quickstart", [f"study={json.dumps(name)}"])


def test_a_study_makes_no_database_outside_the_root(tmp_path: Path) -> None:
    """What it would hold are the study's own words, such as a line that a shell runs."""
    root, profile = tmp_path / "runs", tmp_path / "home" / ".profile"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE cookies (name)")
    database.close()
    (tmp_path / "empty").touch()
    places = (
        f"sqlite:///{profile}", f"sqlite+pysqlite:///{profile}", f"sqlite:///{profile}?timeout=3",
        f"sqlite:///file:{profile}?mode=rwc&uri=true", f"sqlite:///{root}/../home/.profile",
        f"sqlite:///{root}/link/x.db", f"sqlite:///{other}", f"sqlite:///{tmp_path}/empty", "sqlite:///file:x",
    )  # fmt: skip
    for key in ("tracking.uri", "search.storage"):
        for place in places:
            with pytest.raises(ConfigError, match=rf"{re.escape(key)}: .* a study makes no file outside {root}"):
                require_own(key, place, root, "experiments", "use another")
        for place in (f"sqlite:///{root}/a/b.db", "postgresql://db/x", "https://mlflow", "databricks"):
            require_own(key, place, root, "experiments", "use another")
    require_own("tracking.uri", f"sqlite:///{other}", root, "cookies", "it is what was asked for")


def test_links_and_lists_that_lead_outside_cost_nothing_there(tmp_path: Path) -> None:
    """Tune's folder is emptied before a search, and Ray Train removes the checkpoints that its list names."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "checkpoint.pt").touch()
    (tmp_path / ".tune").symlink_to(victim)
    _empty(tmp_path / ".tune")
    assert (tmp_path / ".tune").is_dir()
    assert (tmp_path / ".tune").stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.joinpath(".tune").iterdir()) == []
    folder = tmp_path / "pretrain-0"
    folder.mkdir()
    for name in ("../victim", str(victim), "checkpoint_1/../../victim", "."):
        (folder / SNAPSHOT).write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name}]}))
        assert _unknown_to_ray(folder) == []
        assert not (folder / SNAPSHOT).exists(), "Ray Train must not find it"
    good = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2026-11-23_08-00-00.123456"}]})
    (folder / SNAPSHOT).write_text(good)
    assert _unknown_to_ray(folder) == []
    assert (folder / SNAPSHOT).read_text() == good
    assert list(victim.iterdir()) == [victim / "checkpoint.pt"]


# passwords, and what people see


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["intermoco", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def seen(made: Made, empty_database: Path) -> str:
    """All that runs printed whose MLflow, which is down, and storage have passwords; then what a replay did."""
    monkeypatch = pytest.MonkeyPatch()
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "CANARY-environment")
    for name in ("MAX_RETRIES", "BACKOFF_FACTOR"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "0")
    study, place = str(made.yaml), ["--output", str(made.root)]
    uri = "tracking.uri=http://joe:CANARY-p@ss@127.0.0.1:9/?token=CANARY-token"
    assert command(monkeypatch, "ablate", study, *place, "--set", uri, "--json") == 0
    assert command(monkeypatch, "sync", study, *place, "--set", uri) == 1
    assert command(monkeypatch, "ui", study, *place, "--set", uri) == 0
    again = str(made.root / "miniature" / "study.yaml")
    assert command(monkeypatch, "ablate", again, *place) == 2
    (made.root / "mlflow.db").write_bytes(empty_database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made.root}/mlflow.db")
    assert command(monkeypatch, "sync", again, *place, "--set", "tracking.uri=null") == 0
    assert command(monkeypatch, "sync", study, *place, "--set", "tracking.uri=joe:CANARY-a@h/x") == 2
    for wrong in ("tracking=http://joe:CANARY-b@h", "tracking.url=http://joe:CANARY-c@h"):
        assert command(monkeypatch, "ablate", study, *place, "--set", wrong) == 2
    storage = "search.storage=postgresql://joe:CANARY-d e@127.0.0.1:9/db?sslpassword=CANARY-f"
    for verb in ("search", "report"):
        assert command(monkeypatch, verb, "digits_search", *place, "--set", storage) in (1, 2)
    assert command(monkeypatch, "search", "digits_search", *place, "--set", storage, "--dry-run") == 0
    monkeypatch.undo()
    return out.getvalue() + err.getvalue()


def test_no_password_is_printed_or_kept(made: Made, seen: str) -> None:
    assert "http://joe:***@127.0.0.1:9/?token=***" in seen
    assert "postgresql://joe:***@127.0.0.1:9/db?sslpassword=***" in seen
    assert "CANARY" not in seen
    files = [path for path in made.root.rglob("*") if path.is_file()]
    assert [path for path in files if b"CANARY" in path.read_bytes()] == []
    masked = {path.name for path in files if b"joe:***@127.0.0.1" in path.read_bytes()}
    assert masked == {"study.yaml", "index.html", "report.md"}, "the study's and MLflow's copies"


def test_a_run_from_a_file_without_its_password_says_what_to_do(seen: str) -> None:
    assert (
        "intermoco: tracking.uri: http://joe:***@127.0.0.1:9/?token=*** lacks its password, which no run writes to a "
        "file; give it whole by --set, or leave it out and set MLFLOW_TRACKING_URI" in seen
    )
    values = raw(search={"space": {"loss": ["none", "mse"]}, "objectives": ["score"], "score": {"fraction": 0.06}})
    values["search"]["storage"] = "postgresql://joe:secret@db/x"
    study = resolve(values)
    assert study.search is not None
    assert study.search.storage == "postgresql://joe:secret@db/x"
    assert "joe:***@db" in study.to_yaml()
    with pytest.raises(ConfigError, match=r"search\.storage: .* lacks its password, .* PGPASSFILE"):
        resolve(yaml.safe_load(study.to_yaml()))


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://joe:SECRET word@h/db", "joe:SECRET@h/db", "--set tracking.uri=joe:SECRET@h", "x://h?pwd=SECRET;a=1",
        "mssql+pyodbc:///?odbc_connect=PWD%3DSECRET", "s3://b/k?X-Amz-Signature=SECRET&v=2", "https://h/?api_key=SECRET",
    ],
)  # fmt: skip
def test_passwords_of_many_forms_are_hidden(text: str) -> None:
    assert "SECRET" not in mask(text)
    assert mask(text) != text.replace("SECRET", ""), "something stands in its place"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_names_are_no_markup(made: Made, seen: str) -> None:
    """Of the dataset, its classes and images, and the question: on the page, in report.md and in LaTeX."""
    report = made.root / "miniature" / "report"
    page = Tags()
    page.feed((report / "index.html").read_text())
    words = " ".join(page.words)
    assert all(name in words for name in NAMES)
    assert MARKUP in words
    tags = {tag for tag, _ in page.found}
    assert "img" not in tags
    assert "script" not in tags
    assert not any(name.startswith("on") for _, attrs in page.found for name in attrs)
    assert not any("javascript:" in (attrs.get("href") or "") for _, attrs in page.found)
    assert "<img" not in (report / "report.md").read_text()
    assert not list(made.root.parent.parent.glob("*img*")), "an id that is a path is no path"
    outside = {path.name for path in made.root.parent.iterdir()}
    assert outside == {"digits.npz", "study.yaml", "runs"}
