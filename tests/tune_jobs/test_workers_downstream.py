"""Fine-tuning and features by two Ray Train workers on a real local Ray, one of them killed: what one worker leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages_on_ray import OnRay, local, train_worker
from studies import few_digits, miniature

from analysis.features import Features
from ssl_core.config import BLOCKS
from ssl_core.errors import ConfigError, InputError
from tune_jobs.machine import LOOPBACK, listening
from tune_jobs.plan import plan
from tune_jobs.room import Capacity
from tune_jobs.runner import check_fits
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store, read_manifest
from tune_jobs.study import Study
from tune_jobs.work import by_workers, perform

pytestmark = pytest.mark.timeout(600)

STEPS = 6


def small(workers: int, data: Path | None = None, **resources: Any) -> Study:
    """Fine-tuning in a few steps; at this rate Adam, which turns rounding into steps, does not go far."""
    full = {"epochs": 1, "min_steps": STEPS, "evaluations": 2, "batch_size": 31, "learning_rate": 1e-5}
    return miniature(
        seeds=[0],
        dataset=few_digits(data) if data else {"source": "digits"},
        resources={"downstream_workers": workers, **resources},
        downstream={"bootstrap": 20, "fractions": [1.0], "full": {**full, "precision": "float32"}},
    )


def test_workers_are_no_part_of_an_identity() -> None:
    one, two = (plan(small(workers), "f") for workers in (1, 2))
    assert [stage.key for stage in one.stages] == [stage.key for stage in two.stages]
    several = {stage.kind for stage in two.stages if by_workers(stage, stage.demand)}
    assert several == {"pretrain", "finetune", "features"}
    assert {stage.demand.workers for stage in two.stages if stage.kind in ("finetune", "features")} == {2}
    assert {stage.demand.workers for stage in two.stages if stage.kind not in ("finetune", "features")} == {1}
    assert {stage.kind for stage in one.stages if by_workers(stage, stage.demand)} == {"pretrain"}


def test_several_workers_have_whole_accelerators() -> None:
    for kind in ("finetune", "features"):
        for stage in plan(small(2, accelerator_share=0.25), "f").of_kind(kind):
            assert stage.demand.on(4).accelerators == 1, stage.name
            assert stage.demand.on(1).accelerators == 0, "there is none for the second worker"


def test_a_number_of_workers_that_cannot_be_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match=r"resources\.downstream_workers 0 must be at least 1"):
        small(0)
    with pytest.raises(InputError, match=r"needs 9 workers .* lower resources\.downstream_workers"):
        check_fits(plan(small(9), "f").stages, Capacity(4))


@dataclass
class Ended:
    store: Store
    finetuned: Stage
    features: Stage
    heard: dict[str, Any]  # of the fine-tuning, by the driver
    sockets: set[tuple[str, str]]  # that listened while its two workers trained


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    """A fine-tuning, one of whose workers is killed when they have begun, then the features of its model."""
    root = tmp_path_factory.mktemp("workers")
    study = small(2, root, restarts=1)
    with local(root, study) as on_ray:
        tuned = finetuning(on_ray, study)
        on_ray.runner.submit(tuned)
        on_ray.until(lambda: on_ray.attempts(tuned))
        sockets = listening(os.getpid()) or set()
        os.kill(train_worker(), signal.SIGKILL)
        assert on_ray.end_of(tuned) is None
        on_ray.until(lambda: on_ray.runner.progress().get(tuned.key, {}).get("step") == STEPS)
        features = Stage(
            kind="features",
            config={"splits": [0, 1, 2], "norm": "moving", "norm_batch": 64, "seed": 0},
            inputs={**tuned.inputs, "finetune": tuned.key},
            demand=tuned.demand,
        )
        on_ray.runner.submit(features)
        assert on_ray.end_of(features) is None
        yield Ended(on_ray.store, tuned, features, dict(on_ray.runner.progress()[tuned.key]), sockets)
    shutil.rmtree(root, ignore_errors=True)


def finetuning(on_ray: OnRay, study: Study) -> Stage:
    (data,) = (path.name.removeprefix("data-") for path in on_ray.store.stages.glob("data-*"))
    stages = (s for s in plan(study, "f").of_kind("finetune") if s.labels["mode"] == "scratch")
    return replace(next(stages), inputs={"data": data})


def alone(ended: Ended, stage: Stage, root: Path) -> Path:
    """The folder of the same stage, done from the same inputs by one worker in this process."""
    store, threads = Store(root), torch.get_num_threads()
    store.stages.mkdir()
    for kind, key in stage.inputs.items():
        theirs = ended.store.find(kind, key)
        (store.stages / theirs.name).symlink_to(theirs)
    perform(stage, store, Demand(), {}, lambda values: None)
    torch.set_num_threads(threads)
    return store.path(stage)


def test_a_fine_tuning_ends_where_one_worker_ends(ended: Ended, tmp_path: Path) -> None:
    one, two = alone(ended, ended.finetuned, tmp_path), ended.store.path(ended.finetuned)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    with np.load(one / "predictions.npz") as theirs, np.load(two / "predictions.npz") as ours:
        for name in theirs.files:
            if name.endswith("probabilities"):
                np.testing.assert_allclose(ours[name], theirs[name], atol=2e-3)
            elif name != "val_score":
                np.testing.assert_array_equal(ours[name], theirs[name])
    assert (one / "samples.json").read_text() == (two / "samples.json").read_text()
    assert all(read_manifest(folder)["peak_memory"] > 50 << 20 for folder in (one, two))
    weights, expected = (torch.load(folder / "model.pt", weights_only=True)["state"] for folder in (two, one))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=STEPS * 2e-5, msg=name)


def test_features_are_those_of_one_worker(ended: Ended, tmp_path: Path) -> None:
    found = Features.open(ended.store.path(ended.features))
    expected = Features.open(alone(ended, ended.features, tmp_path))
    np.testing.assert_array_equal(found.ids, expected.ids)
    for block in BLOCKS:
        far = abs(found.blocks[block] - expected.blocks[block]).max()
        assert far <= 1e-5 * abs(expected.blocks[block]).max(), block


def test_the_work_was_shared(ended: Ended) -> None:
    for stage in (ended.finetuned, ended.features):
        assert read_manifest(ended.store.path(stage))["workers"] == 2


def test_two_local_workers_listen_on_this_machine_alone(ended: Ended) -> None:
    theirs = {address for address, program in ended.sockets if program.startswith("ray::RayTrain")}
    assert theirs, "torch's store and gloo's listen there"
    assert {address for address, _ in ended.sockets} <= LOOPBACK, ended.sockets


def test_worker_0s_metrics_reach_the_driver(ended: Ended) -> None:
    *_, last = (ended.store.path(ended.finetuned) / "metrics.jsonl").read_text().splitlines()
    assert ended.heard == json.loads(last)


def test_a_lost_worker_restarts_the_stage_from_its_start(ended: Ended) -> None:
    manifest = read_manifest(ended.store.path(ended.finetuned))
    (restart,) = manifest["restarts"]
    assert "died" in restart["why"] or "killed" in restart["why"] or "unexpectedly" in restart["why"], restart
    assert 0 < manifest["recomputed_seconds"] < manifest["wall_seconds"]
    lines = (ended.store.path(ended.finetuned) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [STEPS // 2, STEPS]
    assert read_manifest(ended.store.path(ended.features))["restarts"] == []


def test_nothing_half_made_is_left(ended: Ended) -> None:
    assert not list((ended.store.stages / ".work").iterdir())
    assert not list((ended.store.stages / ".train").iterdir())
    for stage in (ended.finetuned, ended.features):
        assert not [path for path in ended.store.path(stage).iterdir() if path.is_dir()]
