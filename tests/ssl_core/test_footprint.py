"""What a step needs, counted from small images, against what autograd keeps of large ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ssl_core import devices
from ssl_core.config import BarlowConfig, EncoderConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.footprint import Footprint, _kept, footprint
from ssl_core.moco import Moco

CONFIG = PretrainConfig(
    encoder=EncoderConfig(arch="resnet18"),
    moco=MocoConfig(queue=64),
    mse=MseConfig(blocks=(1, 4), pool="grid"),
    barlow=BarlowConfig(blocks=(3,), width=64),
    batch_size=16,
    precision="float32",
)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_it_is_what_autograd_keeps_of_larger_images_and_batches(precision: devices.Precision) -> None:
    counted = footprint(CONFIG, 1, 96, precision)
    moco = devices.place(Moco(CONFIG, 1), torch.device("cpu")).train()
    moco.scales = dict.fromkeys(moco.scales, 1.0)
    expected = _kept(moco, 6, 1, 96, precision)
    assert counted.of(6) - counted.states == pytest.approx(expected, rel=1e-2)
    assert counted.image > 0.3 * 96 * 96 * 64  # a quarter of the pixels, 64 channels, more than once


def test_states_are_both_encoders_gradients_momentum_and_queue() -> None:
    moco = Moco(CONFIG, 1)
    trained = 4 * sum(p.numel() for m in (moco.query, moco.projectors) for p in m.parameters())
    frozen = 4 * sum(p.numel() for p in moco.key.parameters())
    queue = moco.queue.keys.nbytes + moco.queue.codes.nbytes
    found = footprint(CONFIG, 1, 32).states
    assert found == pytest.approx(3 * trained + frozen + queue, rel=1e-3)  # batch norm's statistics are the rest


def test_bf16_keeps_less_and_a_loss_more() -> None:
    plain = dataclasses.replace(CONFIG, mse=None, barlow=None)
    assert footprint(CONFIG, 1, 64, "bf16").image < 0.7 * footprint(CONFIG, 1, 64, "float32").image
    assert footprint(plain, 1, 64).of(16) < footprint(CONFIG, 1, 64).of(16)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    counted = Footprint(states=1000, step=10.0, image=7.0)
    assert counted.largest(2000) == 141
    assert counted.of(141) <= 2000 < counted.of(142)
    assert counted.largest(900) == 0
