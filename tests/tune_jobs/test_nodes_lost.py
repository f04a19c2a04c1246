"""A miniature study on three Ray nodes: one of two that train together is lost, and nothing comes out otherwise."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.chaos.kills import KINDS, planned  # noqa: E402
from tests.chaos.namespace import possible  # noqa: E402
from tests.chaos.study import NAME, Published, differences  # noqa: E402
from tune_jobs.stage import Stage  # noqa: E402
from tune_jobs.store import Store  # noqa: E402

pytestmark = pytest.mark.timeout(600)


def test_kills_are_the_same_for_a_seed_and_of_every_kind_as_often() -> None:
    kills = list(planned(48, seed=3))
    assert kills == list(planned(48, seed=3))
    assert kills != list(planned(48, seed=4))
    assert {kind: [k.what for k in kills].count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What is left of a study with one pretraining, as far as the comparison looks at it."""
    store = Store(tmp_path / "runs")
    stage = Stage(kind="pretrain", config={}, inputs={}, labels={})
    work = store.begin(stage)
    (work / "encoder.pt").write_bytes(b"weights")
    store.publish(stage, work, {})
    (store.root / NAME / "tables").mkdir(parents=True)
    (store.root / NAME / "tables" / "linear.csv").write_text("arm,value,seconds\nmoco,0.9,1\n")
    return store.root


def test_a_stage_that_is_not_whole_is_noticed(root: Path) -> None:
    assert Published(root).amiss() == []
    (encoder,) = (root / "stages").glob("pretrain-*/encoder.pt")
    encoder.write_bytes(b"heights")
    assert Published(root).amiss() == [f"{encoder.parent.name}/encoder.pt differs"]
    (encoder.parent / "manifest.json").unlink()
    assert Published(root).amiss() == [f"{encoder.parent.name} has no manifest"]


def test_another_score_or_encoder_is_a_difference_and_another_time_is_not(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(root, other)
    table = other / NAME / "tables" / "linear.csv"
    table.write_text("arm,value,seconds\nmoco,0.9,2\n")
    assert differences(root, other) == []
    table.write_text("arm,value,seconds\nmoco,0.9000001,1\n")
    assert differences(root, other) == ["table linear differs"]
    table.unlink()
    assert differences(root, other) == ["table linear is there in one of both"]
    (manifest,) = other.glob("stages/pretrain-*/manifest.json")
    manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "f'))
    assert differences(root, other)[1].startswith("encoders differ")


@pytest.mark.skipif(not possible(), reason="this machine grants no network namespace, where a cluster could be alone")
def test_a_study_that_lost_a_training_node_ends_as_if_it_had_not() -> None:
    words = ["--kills", "1", "--kinds", "node", "--doing", "RayTrainWorker", "--workers", "2", "--arms", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert (told["studies"], told["by_kind"], told["amiss"]) == (1, {"node": 1}, [])
    assert "RayTrainWorker" in told["killed"][0]
