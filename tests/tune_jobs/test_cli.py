from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import raw

from ssl_core.errors import InputError
from tune_jobs.ui import serve


def run(*words: str, root: Path) -> tuple[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tune_jobs.cli", *words, "--output", str(root), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def test_data_counts_what_each_split_and_fraction_holds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(50), 4).astype(str)
    np.savez(
        tmp_path / "x.npz",
        images=rng.integers(0, 255, (200, 8, 8), dtype=np.uint8),
        labels=np.repeat(np.arange(50) % 2, 4),
        patient=patients,
    )
    study = raw(dataset={"source": "npz", "path": str(tmp_path / "x.npz"), "group_key": "patient"})
    study["pretrain"] |= {"batch_size": 16, "moco": {"queue": 16}}
    (tmp_path / "study.yaml").write_text(json.dumps(study))  # JSON is YAML
    text, facts = run("data", str(tmp_path / "study.yaml"), root=tmp_path / "runs")
    assert sum(facts["n"].values()) == 200
    assert sum(facts["groups"].values()) == 50, "a patient straddles two splits"
    assert {f["fraction"]: f["n"] for f in facts["fractions"]} == {
        0.06: round(0.06 * facts["n"]["train"]),
        1.0: facts["n"]["train"],
    }
    assert facts["fractions"][-1]["classes"] == facts["classes"]["train"]
    assert all(str(n) in text for n in facts["n"].values())


def test_a_dry_run_names_every_stage_and_leaves_nothing(tmp_path: Path) -> None:
    text, facts = run("ablate", "quickstart", "--dry-run", root=tmp_path / "runs")
    assert facts == {"study": "quickstart", "stages": 75, "cached": 0, "to_run": 75, "executed": 0}
    assert "pretrain moco_barlow seed 1" in text
    assert not (tmp_path / "runs").exists()


def test_overrides_reach_the_plan(tmp_path: Path) -> None:
    _, facts = run("ablate", "quickstart", "--dry-run", "--set", "seeds=[0]", root=tmp_path)
    assert facts["stages"] == (75 - 3) // 2 + 3


def test_ui_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no MLflow store in .*run `intermoco ablate` first"):
        serve(None, (), tmp_path, 5000)


@pytest.mark.parametrize(
    ("preset", "protocol", "said"),
    [
        ("cxr14", "recommended", ["size: 1024", "keep: last", "scale: auto", "unit: group"]),
        ("eyepacs", "paper", ["size: 299", "learning_rate: 0.3", "keep: saturated", "scale: 5.0e-05"]),
        ("idc", "authors", ["crop: 255", "momentum: 0.999", "validation: moving", "frozen_norm: moving", "pool: gap"]),
    ],
)
def test_a_dry_run_prints_resolved_values_where_the_data_is_not(
    preset: str, protocol: str, said: list[str], tmp_path: Path
) -> None:
    text, facts = run("ablate", preset, "--dry-run", "--set", f"protocol={protocol}", root=tmp_path / "runs")
    assert f"protocol {protocol}, as it stands" in text
    assert not [value for value in said if value not in text]
    assert facts["to_run"] == facts["stages"] > 30
    assert not (tmp_path / "runs").exists()
