"""`scale: auto` against the ratio written out, and against a run that is given its numbers."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core import checkpoint, scales
from ssl_core.config import NO_AUGMENT, BarlowConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.data.dataset import TRAIN, Dataset
from ssl_core.errors import ConfigError, NonFiniteError
from ssl_core.initialisation import random_generator
from ssl_core.moco import Moco
from ssl_core.pretraining import Pretraining
from ssl_core.seeding import generator
from tests.ssl_core.pretraining_runs import CPU, LOOKS, Recorder, config, different, lines, run, timeless

NAMES = ["mse_1", "mse_4", "barlow_2"]


def auto(**changes: Any) -> PretrainConfig:
    return config(mse=MseConfig(blocks=(1, 4)), barlow=BarlowConfig(blocks=(2,), width=6), **changes)


def test_a_scale_is_info_nce_by_the_block_loss_over_the_first_batches(digits: Dataset) -> None:
    """Of 5 batches the first 4 count, as training will see them, against negatives that are these batches' keys."""
    arm = auto(batch_size=8)
    training = Pretraining(arm, digits, CPU)
    training.settle_scales()

    known = dataclasses.replace(
        arm, mse=MseConfig(blocks=(1, 4), scale=1.0), barlow=BarlowConfig(blocks=(2,), width=6, scale=1.0)
    )
    moco = Moco(known, 1).train()
    order = generator(0, "order", 0).permutation(digits.rows(TRAIN))[:32].reshape(4, 8)
    codes = torch.from_numpy(np.unique(digits.groups, return_inverse=True)[1])
    views = [
        training.batches.views(rows, arm.augment, random_generator(0, "views", i), 2) for i, rows in enumerate(order)
    ]
    with torch.no_grad():
        keys = torch.cat([moco(*v, codes[rows])[1] for v, rows in zip(views, order, strict=True)])
        moco.queue.keys[:], moco.queue.codes[:] = keys[:20], codes[order.ravel()[:20]]  # the queue has room for 20
        terms = [moco(*v, codes[rows])[0] for v, rows in zip(views, order, strict=True)]
    mean = {name: float(torch.stack([t[name] for t in terms]).mean()) for name in ("info_nce", *NAMES)}
    assert list(training.scales) == NAMES
    for name in NAMES:
        assert training.scales[name] == pytest.approx(mean["info_nce"] / mean[name], rel=1e-4)
    assert mean["info_nce"] > 2 * float(Moco(known, 1)(*views[0], codes[order[0]])[0]["info_nce"].detach())


def test_block_losses_start_as_large_as_info_nce(digits: Dataset) -> None:
    first = Pretraining(auto(batch_size=8), digits, CPU).train_epoch()
    for name in NAMES:
        assert 0.5 < first[f"ratio_{name}"] < 2


def test_measuring_leaves_no_trace(digits: Dataset) -> None:
    training = Pretraining(auto(), digits, CPU)
    training.moco.eval()
    before = copy.deepcopy((dict(training.moco.state_dict()), training.optimiser.state_dict()))
    random_state = torch.get_rng_state()
    training.settle_scales()
    after = (dict(training.moco.state_dict()), training.optimiser.state_dict())
    assert different(list(before), list(after)) == []
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not training.moco.training
    assert None not in training.moco.scales.values()


def test_a_run_with_the_numbers_written_out_is_the_same_run(
    digits: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(auto(epochs=2), digits, tmp_path / "auto", Recorder())
    (message,) = [m for m in caplog.messages if "scale auto" in m]
    rows = lines(tmp_path / "auto/metrics.jsonl")
    found = {name: rows[0][f"scale_{name}"] for name in NAMES}
    assert all(f"{name} {scale:.4g}" in message for name, scale in found.items())
    written = config(
        mse=MseConfig(blocks=(1, 4), scale=(found["mse_1"], found["mse_4"])),
        barlow=BarlowConfig(blocks=(2,), width=6, scale=found["barlow_2"]),
        epochs=2,
    )
    run(written, digits, tmp_path / "written", Recorder())
    assert timeless(lines(tmp_path / "written/metrics.jsonl")) == timeless(rows)
    encoders = [(tmp_path / d / "encoder.pt").read_bytes() for d in ("auto", "written")]
    assert encoders[0] == encoders[1]
    states = [checkpoint.load(tmp_path / d / "checkpoint.pt") for d in ("auto", "written")]
    for part in ("moco", "optimiser", "scales"):
        assert different(states[0][part], states[1][part]) == []
    assert states[0]["config"]["mse"]["scale"] == "auto"


def test_a_resumed_run_goes_on_with_the_scales_it_measured(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(auto(epochs=2), digits, tmp_path / "whole", Recorder())
    with pytest.raises(KeyboardInterrupt):
        run(auto(epochs=2), digits, tmp_path / "halves", Recorder(stop_at=LOOKS))
    monkeypatch.setattr(scales, "measure", lambda *words: pytest.fail("measured again"))
    run(auto(epochs=2), digits, tmp_path / "halves", Recorder())
    assert (tmp_path / "whole/encoder.pt").read_bytes() == (tmp_path / "halves/encoder.pt").read_bytes()
    assert timeless(lines(tmp_path / "halves/metrics.jsonl")) == timeless(lines(tmp_path / "whole/metrics.jsonl"))


def test_a_scale_that_is_a_number_stays(digits: Dataset) -> None:
    both = Pretraining(auto(), digits, CPU)
    one = Pretraining(
        config(mse=MseConfig(blocks=(1, 4)), barlow=BarlowConfig(blocks=(2,), width=6, scale=0.125)), digits, CPU
    )
    for training in (both, one):
        training.settle_scales()
    assert one.scales == both.scales | {"barlow_2": 0.125}


def test_a_block_loss_of_zero_has_no_scale(digits: Dataset) -> None:
    same_views = config(augment=NO_AUGMENT, mse=MseConfig(blocks=(1,)), barlow=None)
    with pytest.raises(ConfigError, match=r"mse_1 is 0 over the first 2 batches.*give the scale as a number"):
        Pretraining(same_views, digits, CPU).train_epoch()


def test_an_info_nce_of_zero_gives_no_scale(digits: Dataset) -> None:
    """One batch whose images are all of a group: its keys are no negatives."""
    groups = np.where(np.isin(np.arange(72), generator(0, "order", 0).permutation(40)[:32]), "a", digits.groups)
    with pytest.raises(ConfigError, match="info_nce is 0"):
        Pretraining(auto(batch_size=16), dataclasses.replace(digits, groups=groups), CPU).train_epoch()


def test_a_block_loss_that_is_not_finite_is_named(digits: Dataset) -> None:
    training = Pretraining(auto(), digits, CPU)
    with torch.no_grad():
        training.moco.projectors["2"].get_parameter("0.weight").fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="barlow_2 is nan over the first 2 batches"):
        training.train_epoch()


def test_a_total_loss_waits_for_its_scales(digits: Dataset) -> None:
    moco = Moco(auto(moco=MocoConfig(queue=20, dim=8)), 1)
    with pytest.raises(ConfigError, match="mse_1: its scale is auto"):
        moco(torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8), torch.arange(4))
