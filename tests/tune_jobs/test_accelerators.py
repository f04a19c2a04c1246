"""Stages with an accelerator of a Ray that says it has two. None is needed: a stage without one there takes the CPU."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from stages_on_ray import OnRay, local, stage_process
from studies import miniature

from tune_jobs.plan import pretrain_stage
from tune_jobs.stage import Stage
from tune_jobs.store import read_manifest

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRay]:
    root = tmp_path_factory.mktemp("accelerators")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2, "GPU": 2}')
        with local(root, miniature()) as found:
            yield found
    shutil.rmtree(root, ignore_errors=True)


def pretraining(on_ray: OnRay, accelerators: float, seed: int) -> Stage:
    study = miniature()
    config = study.arms["moco"]
    assert config is not None
    (data,) = (p.name.removeprefix("data-") for p in on_ray.store.stages.glob("data-*"))
    stage = pretrain_stage(dataclasses.replace(config, seed=seed), study.resources, data, {"arm": "moco", "seed": seed})
    return dataclasses.replace(stage, demand=dataclasses.replace(stage.demand, accelerators=accelerators))


def process_of(on_ray: OnRay, stage: Stage) -> int:
    """The process that has done the stage."""
    on_ray.alone.submit(stage)
    on_ray.until(lambda: on_ray.attempts(stage))
    process = stage_process(stage)
    assert on_ray.end_of(stage) is None
    return process


def test_a_process_that_had_an_accelerator_does_no_other_stage(on_ray: OnRay) -> None:
    """It would keep memory there, and a process that has begun on one accelerator stays on it."""
    assert on_ray.alone.capacity().accelerators == 2
    having, without = pretraining(on_ray, 0.5, seed=1), pretraining(on_ray, 0.0, seed=2)
    there = Path(f"/proc/{process_of(on_ray, having)}")
    on_ray.until(lambda: not there.exists(), seconds=30)
    assert read_manifest(on_ray.store.path(having))["accelerator_seconds"] > 0
    first, second = process_of(on_ray, without), process_of(on_ray, pretraining(on_ray, 0.0, seed=3))
    assert first == second, "without one, what is imported is kept"
