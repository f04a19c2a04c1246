"""A miniature study through the real command on a real local Ray: interrupted, killed, finished, run again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from studies import few_digits, raw

from tune_jobs.reaper import descendants
from tune_jobs.store import read_manifest

pytestmark = pytest.mark.timeout(600)

EPOCHS = 8
TABLES = ("linear", "label_efficiency", "reuse", "probing", "ks")


def command(*words: str, root: Path) -> list[str]:
    return [sys.executable, "-m", "tune_jobs.cli", *words, "--output", str(root)]


def start(study: Path, root: Path, *words: str) -> subprocess.Popen[str]:
    """The study in a process group of its own, as a terminal would start it: one started by a shell's & ignores Ctrl-C
    and hands that on to its children."""
    return subprocess.Popen(
        command("ablate", str(study), *words, root=root),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def until(process: subprocess.Popen[str], holds: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the study did not come this far"
        time.sleep(0.05)


def left_over(session: int) -> list[str]:
    """Commands of processes that descend from the run's session or name its Ray files."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state, _, _, owner = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if state != "Z" and (int(owner) == session or f"intermoco-ray-{session}-" in line):
            found.append(line)
    return found


def listening(root: int) -> dict[str, str]:
    """Local address of every socket that a process below `root` listens on, with the process's command."""
    addresses: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                addresses[f"socket:[{fields[9]}]"] = fields[1].split(":")[0]
    found = {}
    for pid in descendants(root):
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                if (socket := str(handle.readlink())) in addresses:
                    found[addresses[socket]] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:60]
    return found


def wait_until_gone(session: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while rest := left_over(session):
        assert time.monotonic() < deadline, rest
        time.sleep(0.2)


def last_json(output: str) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return line


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return {"output": output, **last_json(output)}


def small(folder: Path, **changes: Any) -> dict[str, Any]:
    """The miniature study on few digits, of which an epoch has two steps."""
    values = raw(dataset=few_digits(folder), **changes)
    values["pretrain"] |= {"batch_size": 60, "moco": {"queue": 60}}
    return values


@dataclass
class Scenario:
    root: Path
    study: Path
    interrupted: subprocess.Popen[str]
    interrupted_output: str
    sockets: dict[str, str]
    finished_when_killed: set[str]
    mtimes: dict[str, int]
    final: dict[str, Any]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    """Ctrl-C during the first pretrainings, then SIGKILL of the driver during the next try, then to the end."""
    folder = tmp_path_factory.mktemp("study")
    study, root = folder / "study.yaml", folder / "runs"
    values = small(folder, resources={"checkpoint_seconds": 0}, arms={"moco": {}, "supervised": "scratch"})
    values["pretrain"] |= {"epochs": EPOCHS, "precision": "float32"}
    study.write_text(yaml.safe_dump(values))
    stages = root / "stages"

    first = start(study, root)
    until(first, lambda: list(stages.glob(".train/*/attempts/*.json")))
    sockets = listening(first.pid)
    until(first, lambda: list(stages.glob(".train/*/checkpoint.pt")))
    os.killpg(first.pid, signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    wait_until_gone(first.pid)

    second = start(study, root)
    until(second, lambda: list(stages.glob("pretrain-*/manifest.json")))
    until(second, lambda: list(stages.glob("finetune-*/manifest.json")))
    os.kill(second.pid, signal.SIGKILL)
    second.communicate()
    wait_until_gone(second.pid)
    kept = {p.parent.name for p in stages.glob("*/manifest.json")}
    mtimes = {name: (stages / name / "manifest.json").stat().st_mtime_ns for name in kept}

    final = finish(start(study, root, "--json"))
    yield Scenario(root, study, first, output, sockets, kept, mtimes, final)
    shutil.rmtree(folder, ignore_errors=True)


def stages_of(scenario: Scenario, kind: str) -> list[Path]:
    return sorted((scenario.root / "stages").glob(f"{kind}-*"))


def test_ctrl_c_exits_130_and_says_how_to_resume(scenario: Scenario) -> None:
    assert scenario.interrupted.returncode == 130, scenario.interrupted_output
    assert f"intermoco ablate {scenario.study}" in scenario.interrupted_output
    assert "Traceback" not in scenario.interrupted_output


def test_a_local_run_listens_on_this_machine_alone(scenario: Scenario) -> None:
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert scenario.sockets
    assert set(scenario.sockets) <= loopback, scenario.sockets


def test_what_was_finished_when_killed_is_kept_untouched(scenario: Scenario) -> None:
    assert scenario.finished_when_killed
    for name, mtime in scenario.mtimes.items():
        assert (scenario.root / "stages" / name / "manifest.json").stat().st_mtime_ns == mtime
    assert scenario.final["cached"] == len(scenario.finished_when_killed)
    assert scenario.final["executed"] + scenario.final["cached"] == len(
        list((scenario.root / "stages").glob("*/manifest.json"))
    )
    assert scenario.final["failed"] == scenario.final["skipped"] == 0


def test_an_interrupted_pretraining_resumes_and_ends_as_if_it_had_not_been(scenario: Scenario) -> None:
    from ssl_core.config import PretrainConfig
    from ssl_core.data.dataset import Dataset
    from ssl_core.pretraining import pretrain
    from tune_jobs.work import Forward, typed

    folders = stages_of(scenario, "pretrain")
    manifests = {f: read_manifest(f) for f in folders}
    resumed = next(f for f in folders if manifests[f]["resumed_step"] > 0)
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))

    straight = scenario.root / "straight"
    straight.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = typed(PretrainConfig, manifests[resumed]["config"])
    data = scenario.root / "stages" / f"data-{manifests[resumed]['inputs']['data']}"
    pretrain(config, Dataset.open(data), straight, Forward(lambda values: None))
    torch.set_num_threads(threads)
    ours, theirs = (torch.load(f / "encoder.pt", weights_only=True)["state"] for f in (resumed, straight))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_tables_hold_every_arm_and_seed(scenario: Scenario) -> None:
    for name in TABLES:
        table = pd.read_csv(scenario.root / "miniature" / "tables" / f"{name}.csv")
        arms = {"moco", "supervised"} if name in ("linear", "label_efficiency", "ks") else {"moco"}
        assert set(table["arm"]) == arms, name
        for arm in arms:
            assert set(table.loc[table["arm"] == arm, "seed"]) == {0, 1}, name
        assert list(table.columns[:12]) == [
            "dataset", "arm", "seed", "mode", "label_fraction", "block", "metric", "value", "low", "high", "n", "stage"
        ]  # fmt: skip
        assert table["value"].notna().all(), name
        assert all((scenario.root / "stages" / stage).is_dir() for stage in table["stage"])


def test_the_report_is_written_where_the_command_says(scenario: Scenario) -> None:
    page = Path(scenario.final["report"])
    assert page == scenario.root / "miniature" / "report" / "index.html"
    text = page.read_text()
    assert "moco" in text
    assert "supervised" in text
    assert str(page) in scenario.final["output"]
    assert "(raylet)" not in scenario.final["output"]


def test_a_second_run_executes_nothing_and_starts_no_ray(scenario: Scenario) -> None:
    process = start(scenario.study, scenario.root, "--json")
    again = finish(process)
    assert (again["executed"], again["failed"], again["skipped"]) == (0, 0, 0)
    assert again["cached"] == scenario.final["executed"] + scenario.final["cached"]
    assert again["tracking_late"] is None
    assert "started" not in again["output"]


def test_another_probe_rate_plans_new_probes_alone(scenario: Scenario) -> None:
    words = command("ablate", str(scenario.study), "--set", "probe.learning_rate=0.5", root=scenario.root)
    done = subprocess.run([*words, "--dry-run", "--json"], capture_output=True, text=True, check=True)
    waiting = re.findall(r"to run\s+(\w+)-", done.stdout)
    assert waiting == ["probe"] * 2
    assert last_json(done.stdout)["to_run"] == 2


def test_mlflow_holds_study_arms_and_stages_below_each_other(scenario: Scenario) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{scenario.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("miniature")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parent = {r.info.run_id: r.data.tags.get("mlflow.parentRunId") for r in runs}
    roots = [r for r in runs if parent[r.info.run_id] is None]
    assert len(roots) == 1
    below = [r for r in runs if parent[r.info.run_id] == roots[0].info.run_id]
    arms = {r.data.tags["intermoco.arm"] for r in below if r.data.tags["intermoco.kind"] == "arm"}
    assert arms == {"moco", "supervised"}
    stages = {r.data.tags["intermoco.stage"] for r in runs if "intermoco.stage" in r.data.tags}
    assert stages == {p.parent.name for p in (scenario.root / "stages").glob("*/manifest.json")}


def test_nothing_of_ray_stays_behind(scenario: Scenario) -> None:
    assert not list((scenario.root / "stages" / ".train").iterdir())
    assert not list((scenario.root / "stages").glob(".work/*"))


def test_a_failing_arm_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    values = small(
        tmp_path, seeds=[0], arms={"broken": {"learning_rate": 1e30}, "supervised": "scratch"}, reuse=None, probe=None
    )  # fmt: skip
    values["downstream"] |= {"fractions": [1.0]}
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(values | {"ks": None}))
    process = start(study, tmp_path / "runs", "--json")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 1, output
    result = last_json(output)
    assert (result["failed"], result["skipped"]) == (1, 2)
    ((name, error),) = result["failures"].items()
    assert name == "pretrain broken seed 0"
    assert error.startswith("NonFiniteError")
    assert "step" in error
    assert result["executed"] == 3  # the dataset, its audit and the supervised baseline
    traceback = next((tmp_path / "runs" / "miniature" / "failures").glob("pretrain-*.txt")).read_text()
    assert "ssl_core/pretraining.py" in traceback or "NonFiniteError" in traceback
    assert "broken" in Path(result["report"]).read_text()
