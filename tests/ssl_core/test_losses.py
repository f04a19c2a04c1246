"""The losses against the paper's formulas, written out, and against what they must not depend on."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_core.losses import BATCH_NORM_EPS, Projector, barlow_loss, cross_correlation, info_nce, mse_loss


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(randn(*shape, seed=seed), dim=1)


def info_nce_of_the_paper(q: Tensor, k: Tensor, queue: Tensor, t: float, mask: Tensor) -> float:
    total = 0.0
    for b in range(len(q)):
        positive = math.exp(float(q[b].double() @ k[b].double()) / t)
        negative = sum(
            math.exp(float(q[b].double() @ z.double()) / t) for z, m in zip(queue, mask[b], strict=True) if not m
        )
        total -= math.log(positive / (positive + negative))
    return total / len(q)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_is_equation_1(temperature: float, masked: bool) -> None:
    q, k, queue = unit(5, 8, seed=1), unit(5, 8, seed=2), unit(11, 8, seed=3)
    mask = torch.zeros(5, 11, dtype=torch.bool)
    if masked:
        mask = randn(5, 11, seed=4) > 0
    found = info_nce(q, k, queue, temperature, mask if masked else None)
    assert float(found) == pytest.approx(info_nce_of_the_paper(q, k, queue, temperature, mask), rel=1e-6)


def test_info_nce_equals_cross_entropy_in_value_and_gradient() -> None:
    q, k, queue = unit(5, 8, seed=1).requires_grad_(), unit(5, 8, seed=2), unit(11, 8, seed=3)
    (found,) = torch.autograd.grad(info_nce(q, k, queue, 0.07), q)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / 0.07
    expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(info_nce(q, k, queue, 0.07), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(found, torch.autograd.grad(expected, q)[0], rtol=1e-5, atol=1e-6)


def test_info_nce_does_not_depend_on_the_queues_order() -> None:
    q, k, queue = unit(5, 8, seed=1), unit(5, 8, seed=2), unit(11, 8, seed=3)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(info_nce(q, k, queue, 0.07), info_nce(q, k, queue[order], 0.07), rtol=1e-6, atol=0)


def test_info_nce_with_a_key_masked_is_info_nce_without_that_key() -> None:
    q, k, queue = unit(5, 8, seed=1), unit(5, 8, seed=2), unit(11, 8, seed=3)
    mask = torch.zeros(5, 11, dtype=torch.bool)
    mask[:, 4] = True
    without = torch.cat([queue[:4], queue[5:]])
    torch.testing.assert_close(info_nce(q, k, queue, 0.07, mask), info_nce(q, k, without, 0.07), rtol=1e-6, atol=0)


def test_info_nce_with_no_negative_left_is_zero_and_has_no_gradient() -> None:
    q, k, queue = unit(2, 8, seed=1).requires_grad_(), unit(2, 8, seed=2), unit(3, 8, seed=3)
    loss = info_nce(q, k, queue, 0.07, torch.ones(2, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, q)
    assert loss.item() == 0
    assert not gradient.any()


def test_losses_are_computed_in_float32_under_autocast() -> None:
    q, k, queue = unit(5, 8, seed=1), unit(5, 8, seed=2), unit(11, 8, seed=3)
    a, b = randn(4, 3, 6, 6, seed=1), randn(4, 3, 6, 6, seed=2)

    def losses() -> list[Tensor]:
        return [
            info_nce(q, k, queue, 0.07),
            mse_loss(a, b, 3, "grid"),
            barlow_loss(q, k, 0.1, True),
            barlow_loss(q, k, 0.1, False),
        ]

    plain = losses()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found, expected in zip(losses(), plain, strict=True):
            assert found.dtype == torch.float32
            assert torch.equal(found, expected)


def pooled(x: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Adaptive average pooling [B, C, h, w] -> [B, C, side, side]: cell i spans floor(ih/s) to ceil((i+1)h/s)."""
    h, w = x.shape[2:]
    out = np.empty((*x.shape[:2], side, side))
    for i in range(side):
        for j in range(side):
            rows = slice(i * h // side, math.ceil((i + 1) * h / side))
            columns = slice(j * w // side, math.ceil((j + 1) * w / side))
            out[:, :, i, j] = x[:, :, rows, columns].mean(axis=(2, 3))
    return out


@pytest.mark.parametrize(
    ("block", "side", "pool", "cells"),
    [
        (1, 20, "grid", 16),
        (2, 32, "grid", 16),
        (3, 10, "grid", 4),
        (4, 8, "grid", 4),
        (4, 2, "grid", 2),  # a map smaller than the grid is compared as it is
        (1, 16, "grid", 16),
        (1, 20, "gap", 1),
        (4, 1, "gap", 1),
    ],
)
def test_mse_compares_the_maps_after_the_papers_pooling(block: int, side: int, pool: str, cells: int) -> None:
    a, b = randn(3, 5, side, side, seed=1), randn(3, 5, side, side, seed=2)
    expected = ((pooled(a.double().numpy(), cells) - pooled(b.double().numpy(), cells)) ** 2).mean()
    assert float(mse_loss(a, b, block, pool)) == pytest.approx(expected, rel=1e-6)  # type: ignore[arg-type]


def test_mse_does_not_see_a_move_inside_a_cell() -> None:
    a = randn(3, 5, 16, 16, seed=1)
    moved = a.unflatten(2, (4, 4)).flip(3).flatten(2, 3)  # rows upside down inside each of block 4's cells
    assert not torch.equal(a, moved)
    assert float(mse_loss(a, moved, 4, "grid")) == pytest.approx(0, abs=1e-12)
    assert float(mse_loss(a, moved, 1, "grid")) > 0.1


def barlow_of_the_paper(za: Tensor, zb: Tensor, lambd: float, centred: bool) -> float:
    a, b = za.double().numpy(), zb.double().numpy()
    d = a.shape[1]
    loss = 0.0
    for i in range(d):
        for j in range(d):
            x, y = a[:, i], b[:, j]
            if centred:  # batch norm's standardisation, its epsilon included
                x = (x - x.mean()) / math.sqrt(x.var() + BATCH_NORM_EPS)
                y = (y - y.mean()) / math.sqrt(y.var() + BATCH_NORM_EPS)
                c = (x * y).mean()
            else:
                c = (x * y).sum() / (math.sqrt((x**2).sum()) * math.sqrt((y**2).sum()))
            loss += (1 - c) ** 2 if i == j else lambd * c**2
    return loss


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("lambd", [0.0, 0.0051, 1.0])
@pytest.mark.parametrize("d", [1, 6])
def test_barlow_is_the_papers_formula(d: int, lambd: float, centred: bool) -> None:
    za, zb = randn(9, d, seed=1) + 0.5, randn(9, d, seed=2) - 0.3
    found = barlow_loss(za, zb, lambd, centred)
    assert float(found) == pytest.approx(barlow_of_the_paper(za, zb, lambd, centred), rel=1e-6)


def test_the_centred_correlation_is_pearsons() -> None:
    za, zb = randn(50, 3, seed=1) + 2, randn(50, 4, seed=2)
    expected = np.corrcoef(za.numpy(), zb.numpy(), rowvar=False)[:3, 3:]
    np.testing.assert_allclose(cross_correlation(za, zb, True).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("centred", [True, False])
def test_barlow_does_not_depend_on_a_features_scale_nor_on_the_samples_order(centred: bool) -> None:
    za, zb = randn(9, 6, seed=1).double(), randn(9, 6, seed=2).double()
    scales = torch.tensor([0.5, 1, 2, 3, 10, 100]).double()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    expected = barlow_loss(za, zb, 0.1, centred)
    torch.testing.assert_close(barlow_loss(za * scales, zb, 0.1, centred), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(barlow_loss(za[order], zb[order], 0.1, centred), expected, rtol=1e-12, atol=0)


def test_only_the_centred_barlow_is_blind_to_a_features_mean() -> None:
    za, zb = randn(9, 6, seed=1).double(), randn(9, 6, seed=2).double()
    torch.testing.assert_close(barlow_loss(za + 5, zb, 0.1, True), barlow_loss(za, zb, 0.1, True), rtol=1e-9, atol=0)
    assert abs(float(barlow_loss(za + 5, zb, 0.1, False) - barlow_loss(za, zb, 0.1, False))) > 0.1


@pytest.mark.parametrize("centred", [True, False])
def test_barlow_of_a_dead_feature_is_finite_in_value_and_gradient(centred: bool) -> None:
    za, zb = randn(9, 3, seed=1), randn(9, 3, seed=2)
    za[:, 1] = 0
    za.requires_grad_()
    loss = barlow_loss(za, zb, 0.1, centred)
    (gradient,) = torch.autograd.grad(loss, za)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_the_projector_is_linear_norm_relu_with_a_plain_last_layer() -> None:
    projector = Projector(5, 7, 3)
    kinds = [type(module).__name__ for module in projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [tuple(p.shape) for p in projector.parameters() if p.ndim == 2] == [(7, 5), (7, 7), (7, 7)]
    a, b = randn(4, 5, seed=1), randn(4, 5, seed=2)
    alone = copy.deepcopy(projector)
    for found, view in zip(projector(a, b), (a, b), strict=True):  # each by its own mean and variance, a before b
        torch.testing.assert_close(found, nn.Sequential(*alone)(view))
    for name, value in alone.named_buffers():
        torch.testing.assert_close(projector.get_buffer(name), value)
