"""Learning rates as a function of the step, which weights decay, and how."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from ssl_core.optimisation import adaptive, learning_rate, parameter_groups


def test_the_rate_warms_up_linearly_then_follows_half_a_cosine() -> None:
    rates = [learning_rate(s, base=0.3, steps=14, warmup=4) for s in range(14)]
    assert rates[:4] == pytest.approx([0.075, 0.15, 0.225, 0.3])
    assert rates[4:] == pytest.approx([0.15 * (1 + math.cos(math.pi * i / 10)) for i in range(10)])
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)


def test_a_constant_rate_is_constant_after_warm_up() -> None:
    rates = [learning_rate(s, base=0.3, steps=6, warmup=2, schedule="constant") for s in range(6)]
    assert rates == pytest.approx([0.15, 0.3, 0.3, 0.3, 0.3, 0.3])


def test_warm_up_may_be_all_there_is() -> None:
    assert [learning_rate(s, base=1.0, steps=2, warmup=4) for s in range(2)] == [0.25, 0.5]


@pytest.mark.parametrize("decay_norms", [False, True])
def test_norms_and_biases_decay_only_where_asked(decay_norms: bool) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    groups = parameter_groups([module, frozen], 0.1, decay_norms=decay_norms)
    decays = {p.shape: group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == 6
    for shape, decay in decays.items():
        assert decay == (0.1 if len(shape) > 1 or decay_norms else 0.0)


@pytest.mark.parametrize(("kind", "expected"), [("adam", 2 - 0.01), ("adamw", 2 * (1 - 0.01 * 0.1) + 0.01)])
def test_adam_decays_through_the_gradient_and_adamw_beside_it(kind: Literal["adam", "adamw"], expected: float) -> None:
    """A first step has the length of the rate, against the gradient's sign: 0.1 x 2 of decay turns that of -0.1."""
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 2.0)
    optimiser = adaptive(kind, parameter_groups([layer], 0.1, decay_norms=False), learning_rate=0.01, fused=True)
    layer.weight.grad = torch.full((1, 1), -0.1)
    optimiser.step()
    assert layer.weight.item() == pytest.approx(expected, rel=1e-6)
