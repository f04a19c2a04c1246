"""A run that is lost after any step and gone on with: the same bits, the same metrics, whatever its switches are."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core import checkpoint, due
from ssl_core.config import BarlowConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.data.dataset import Dataset
from ssl_core.due import Due
from ssl_core.errors import CheckpointError
from ssl_core.pretraining import Pretraining, pretrain
from ssl_core.resume import position
from tests.ssl_core import resume_worker
from tests.ssl_core.gloo import together
from tests.ssl_core.pretraining_runs import CPU, Recorder, config, different, lines, run, timeless

pytestmark = pytest.mark.timeout(500)

WORLD = 3  # of two, sums are the same in any order
STEPS = 4  # an epoch, of 40 images in batches of 10


def arm(**changes: Any) -> PretrainConfig:
    """Three epochs of four steps."""
    return config(**{"epochs": 3, "batch_size": 10, "learning_rate_batch": 10, "mse": None, "barlow": None} | changes)


ARMS = {
    "both losses, their scales measured, best kept": arm(
        mse=MseConfig(), barlow=BarlowConfig(blocks=(2, 4), width=6), keep="best"
    ),
    "moving validation until saturated, in bf16": arm(
        mse=MseConfig(scale=0.25, blocks=(1,)),
        barlow=BarlowConfig(blocks=(4,), width=6, scale=5e-5),
        moco=MocoConfig(queue=12, dim=8, momentum=0.9),
        validation="moving",
        keep="saturated",
        saturation=1,
        schedule="constant",
        precision="bf16",
        epochs=2,
    ),
}
#: Looks at which a run is lost, counted anew after each resume. The first one is lost after every step and epoch.
LOST_AT = ([1] * (3 * (STEPS + 1) - 1), [2, 5])


def state(path: Path) -> dict[str, Any]:
    """A checkpoint, but for what was measured by the clock."""
    payload = checkpoint.load(path)
    return {**payload, "history": timeless(payload["history"]), "seconds": None}


@pytest.mark.parametrize(("settings", "lost_at"), list(zip(ARMS.values(), LOST_AT, strict=True)), ids=ARMS)
def test_a_run_that_is_lost_after_any_step_ends_in_the_same_bits(
    digits: Dataset, tmp_path: Path, settings: Any, lost_at: list[int]
) -> None:
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    uninterrupted, rows, saved = Recorder(), [], []
    run(settings, digits, whole, uninterrupted)
    for look in lost_at:
        recorder = Recorder(stop_at=look)
        with pytest.raises(KeyboardInterrupt):
            run(settings, digits, lost, recorder)
        rows += recorder.rows
        saved += recorder.checkpoints
        assert not (lost / "encoder.pt").exists()
    last = Recorder()
    run(settings, digits, lost, last)

    steps = len(uninterrupted.rows) * STEPS
    if len(lost_at) > STEPS * 2:
        every = [(epoch, epoch * STEPS + step) for epoch in range(3) for step in range(1, STEPS + 1)]
        assert saved == sorted([*every, (1, STEPS), (2, 2 * STEPS)], key=lambda at: (at[1], at[0]))
    assert last.checkpoints == [(steps // STEPS, steps)]
    assert checkpoint.digest(lost / "encoder.pt") == checkpoint.digest(whole / "encoder.pt")
    assert different(state(lost / "checkpoint.pt"), state(whole / "checkpoint.pt")) == []
    assert timeless(rows + last.rows) == timeless(uninterrupted.rows), "each epoch is reported once"
    assert timeless(lines(lost / "metrics.jsonl")) == timeless(uninterrupted.rows)


def test_no_generator_but_the_named_ones_is_drawn_from(digits: Dataset) -> None:
    """So there is none whose state a checkpoint would have to hold."""

    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: NPY002

    before = states()
    training = Pretraining(arm(mse=MseConfig(), barlow=BarlowConfig(width=6), moco=MocoConfig(queue=20)), digits, CPU)
    training.train_epoch()
    training.validate()
    assert states() == before
    torch.rand(1)
    assert states() != before


def test_an_epochs_seconds_are_those_of_all_who_trained_it(digits: Dataset, tmp_path: Path) -> None:
    training, path = Pretraining(arm(batch_size=20), digits, CPU), tmp_path / "checkpoint.pt"
    assert training.train_steps(lambda: True)
    training.save(path)
    payload = checkpoint.load(path)
    assert (payload["epoch"], payload["step"], payload["values"].shape) == (0, 1, (1, len(payload["terms"])))
    assert 0 < payload["seconds"] < 60
    checkpoint.save(path, {**payload, "seconds": payload["seconds"] + 1000})
    training.restore(path)
    first, second = training.train_epoch(), training.train_epoch()
    assert 1000 < first["epoch_seconds"] < 1060
    assert first["views_per_second"] == pytest.approx(2 * 40 / first["epoch_seconds"])
    assert second["epoch_seconds"] < 60

    checkpoint.save(path, {name: value for name, value in payload.items() if name != "step"})
    for read in (position, training.restore):
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is of an earlier version.*; delete it"):
            read(path)
    assert position(tmp_path / "nowhere.pt") == (0, 0)


def test_a_checkpoint_is_due_by_the_clock_and_where_it_is_urgent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, notice = 100.0, False
    monkeypatch.setattr(due.time, "monotonic", lambda: clock)
    pace = Due(60, lambda: notice, CPU)

    def looks(*times: float) -> list[bool]:
        nonlocal clock
        seen = []
        for now in times:
            clock = now
            seen.append(pace.after_step())
            if seen[-1]:
                pace.saved()
        return seen

    assert looks(100, 159, 160, 161, 219, 220) == [False, False, True, False, False, True]
    notice = True
    assert looks(221, 222, 225, 226, 230, 231) == [True, False, False, True, False, True]
    notice = False
    assert looks(236, 290, 291) == [False, False, True]
    notice = True
    assert looks(291.5) == [True], "another notice"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """What three workers left, and one worker's checkpoint that they went on from."""
    folder, threads = tmp_path_factory.mktemp("several"), torch.get_num_threads()
    torch.set_num_threads(1)
    digits.save(folder / "data")
    (folder / "alone").mkdir()
    with pytest.raises(resume_worker.Lost):
        alone(digits, folder, resume_worker.Reporter(1))
    shutil.copy2(folder / "alone/checkpoint.pt", folder / "alone.pt")
    alone(digits, folder, resume_worker.Reporter())
    torch.set_num_threads(threads)
    return together(resume_worker.work, WORLD, folder, seconds=400)


def alone(digits: Dataset, folder: Path, reporter: resume_worker.Reporter) -> None:
    pretrain(resume_worker.config(), digits, folder / "alone", reporter, checkpoint_seconds=1000, device="cpu")


def test_several_workers_that_are_lost_within_an_epoch_end_in_the_same_bits(several: Path) -> None:
    assert [position(several / f"lost_{part}.pt") for part in (0, 1)] == [(0, 1), (1, 3)]
    whole, lost = several / "whole", several / "lost"
    assert checkpoint.digest(lost / "encoder.pt") == checkpoint.digest(whole / "encoder.pt")
    assert different(state(lost / "checkpoint.pt"), state(whole / "checkpoint.pt")) == []
    assert timeless(lines(lost / "metrics.jsonl")) == timeless(lines(whole / "metrics.jsonl"))


@pytest.mark.parametrize("norm", ["worker", "sync"])
def test_another_number_of_workers_goes_on_and_says_what_changes(
    several: Path, digits: Dataset, caplog: pytest.LogCaptureFixture, tmp_path: Path, norm: Any
) -> None:
    settings = resume_worker.config(batch_norm=norm)
    payload = checkpoint.load(several / "lost_0.pt")
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {**payload, "config": {**payload["config"], "batch_norm": norm}})
    training = Pretraining(settings, digits, CPU)
    training.restore(path)
    assert training.step == 1
    buffers = dict(training.moco.named_buffers())
    assert len(payload["statistics"]) == 2 * 2 * 20 + 2 * 2  # g, h and a projector's two layers
    for name, values in payload["statistics"].items():  # [3, C]
        assert not torch.equal(values[0], values[1]), "each worker's own"
        torch.testing.assert_close(buffers[name], (values[0] + values[1] + values[2]) / 3)
    training.train_epoch()

    (warning,) = (record.message for record in caplog.records if "workers" in record.message)
    assert f"{path} was written with workers = 3, this run has 1" in warning
    says = {
        "worker": "about 18 samples of a batch of 18 at once, not 6, and starts from the mean",
        "sync": "results differ by rounding alone",
    }
    assert says[norm] in warning


def test_more_workers_than_before_go_on_too(several: Path) -> None:
    assert position(several / "alone.pt") == (0, 1)
    assert [row["epoch"] for row in lines(several / "fewer/metrics.jsonl")] == [1, 2]
    for rank in range(WORLD):
        assert "workers = 1, this run has 3" in (several / f"log_{rank}").read_text()


def test_several_workers_agree_about_once_a_second(several: Path) -> None:
    """In 200 steps of 5 ms or more, after each of which one worker alone would look."""
    found = [(several / f"looks_{rank}").read_text().split() for rank in range(WORLD)]
    looks, seconds = {int(looks) for looks, _ in found}, max(float(seconds) for _, seconds in found)
    assert len(looks) == 1
    assert 2 <= looks.pop() <= 4 + 2 * seconds
