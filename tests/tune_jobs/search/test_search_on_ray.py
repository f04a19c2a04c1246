"""A small search through the real command on a real local Ray: trials, the best of them as arms, all of it again."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from studies import few_digits

from ssl_core.errors import InputError
from tune_jobs.loading import load
from tune_jobs.search.search import search

pytestmark = pytest.mark.timeout(400)

STUDY: dict[str, Any] = {
    "study": "small",
    "seeds": [0],
    "encoder": {"arch": "resnet18", "stem": "small"},
    "augment": {"crop": [0.6, 1.0], "blur": 0.0},
    "pretrain": {"epochs": 1, "batch_size": 60, "moco": {"queue": 60}},
    "arms": {"moco": {}},
    "search": {
        "objectives": ["score"],
        "score": {"fraction": 0.06, "epochs": 5},
        "trials": 3,
        "promote": 1,
        "space": {"loss": ["none", "mse"], "mse.scale": {"low": 0.1, "high": 1, "log": True}, "blocks": [4]},
        "warm_starts": [{"loss": "mse", "mse.scale": 0.9}],
    },
    "downstream": {
        "bootstrap": 20,
        "fractions": [0.06],
        "linear_fractions": [0.06],
        "linear": {"epochs": 1, "min_steps": 2, "evaluations": 1},
        "full": {"epochs": 1, "min_steps": 2, "evaluations": 1},
    },
    "probe": None,
    "reuse": None,
    "ks": None,
}


def run(verb: str, *words: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tune_jobs.cli", verb, *map(str, words)], capture_output=True, text=True
    )


@dataclass
class Done:
    folder: Path
    study: Path
    output: str
    errors: str
    facts: dict[str, Any]

    @property
    def place(self) -> tuple[Any, ...]:
        return (self.study, "--output", self.folder / "runs", "--json")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("search")
    (folder / "small.yaml").write_text(yaml.safe_dump({**STUDY, "dataset": few_digits(folder)}))
    found = run("search", folder / "small.yaml", "--output", folder / "runs", "--json")
    assert found.returncode == 0, found.stdout + found.stderr
    return Done(folder, folder / "small.yaml", found.stdout, found.stderr, json.loads(found.stdout.splitlines()[-1]))


def trials(done: Done) -> pd.DataFrame:
    return pd.read_csv(done.folder / "runs" / "small" / "tables" / "search.csv", dtype={"stages": str})


def test_each_trial_is_a_stage_and_a_row(done: Done) -> None:
    assert done.facts["trials"] | {"seconds": 0} == {
        "complete": 3, "pruned": 0, "failed": 0, "duplicate": 0, "running": 0, "waiting": 0, "run": 3, "seconds": 0,
    }  # fmt: skip
    table = trials(done)
    assert list(table["start"]) == ["paper_moco", "paper_mse", "start_1"]
    stages = done.folder / "runs" / "stages"
    for row in table.to_dict("records"):
        config = json.loads((stages / row["stages"] / "manifest.json").read_text())["config"]
        assert config["seed"] == 1
        assert (config["mse"] or {}).get("scale") == {"none": None, "mse": row["params_mse.scale"]}[row["params_loss"]]
        assert 0 < row["score"] <= 1
        assert row["peak_memory"] > 2**20
    assert "3 trials run in" in done.output
    assert not list((stages / ".train").glob("*"))


def test_the_best_trial_is_an_arm_with_the_studys_seed_beside_the_papers_settings(done: Done) -> None:
    table = trials(done)
    best = table.loc[table["score"].idxmax()]
    # without their losses all of them are the arm moco
    arms = {"moco", "paper_mse"} | ({f"trial_{best['trial']}"} if best["trial"] == 2 else set())
    scores = pd.read_csv(done.folder / "runs" / "small" / "tables" / "label_efficiency.csv")
    assert set(scores["arm"]) == arms
    assert set(scores["seed"]) == {0}
    assert best["arm"] in arms
    page = (done.folder / "runs" / "small" / "report" / "index.html").read_text()
    assert "On fresh seeds" in page


def test_an_ablation_of_a_trials_arm_and_seed_pretrains_nothing(done: Done) -> None:
    again = {k: v for k, v in yaml.safe_load(done.study.read_text()).items() if k != "search"} | {"seeds": [1]}
    path = done.folder / "again.yaml"
    path.write_text(yaml.safe_dump(again))
    found = run("ablate", path, "--output", done.folder / "runs", "--dry-run")
    (line,) = [line for line in found.stdout.splitlines() if "pretrain-" in line]
    assert line.strip().startswith("cached")


def test_mlflow_holds_the_search_its_trials_and_the_study(done: Done) -> None:
    with sqlite3.connect(done.folder / "runs" / "mlflow.db") as database:
        kinds = [kind for (kind,) in database.execute("SELECT value FROM tags WHERE key = 'intermoco.kind'")]
    database.close()
    assert (kinds.count("search"), kinds.count("trial"), kinds.count("study")) == (1, 3, 1)


def test_a_second_run_trains_nothing_and_an_ablation_keeps_the_winner(done: Done) -> None:
    for verb in ("search", "ablate"):
        began = time.monotonic()
        again = run(verb, *done.place)
        assert again.returncode == 0, again.stderr
        facts = json.loads(again.stdout.splitlines()[-1])
        assert (facts["executed"], facts["failed"]) == (0, 0)
        assert facts["cached"] == done.facts["executed"]
        assert time.monotonic() - began < 60
    assert facts.get("trials") is None


def test_bad_input_is_one_line_and_exit_2(done: Done) -> None:
    found = run("search", *done.place, "--set", "search.space.learning_rate={low: 1, high: 0.1}")
    assert found.returncode == 2
    assert found.stderr == "intermoco: search.space.learning_rate: low 1 is above high 0.1; exchange the two\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.score.fraction=0.5", r"holds another search called small: it differs in search\.score"),
        ("search.storage=sqlite:////dev/null/optuna.db", r"search\.storage: sqlite:////dev/null.*cannot be used"),
        ("search.objectives=[accelerator_seconds]", r"accelerator_seconds are 0 for every trial.*use seconds"),
        ("search.space.batch_size=[60, 4096]", r"batch_size 4096 cannot be: batch_size 4096 exceeds the 126 "),
        ("search.score.fraction=0.0001", r"fraction 0\.0001"),
        ("search=null", r"study small has no section `search`"),
    ],
)
def test_what_cannot_be_is_said_before_any_trial(done: Done, change: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(load(str(done.study), [change]), root=done.folder / "runs", address=None, command="")
