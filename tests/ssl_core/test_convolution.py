"""Convolutions as matrix products against torch's own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.config import EncoderConfig
from ssl_core.convolution import Conv2d, quicken
from ssl_core.encoder import build_encoder


def convolution(c: int, out: int, k: int, s: int, dtype: torch.dtype = torch.float64) -> Conv2d:
    holder = nn.Sequential(nn.Conv2d(c, out, k, s, padding=k // 2, bias=False))
    quicken(holder)
    found = holder[0].to(dtype=dtype, memory_format=torch.channels_last)
    assert isinstance(found, Conv2d)
    return found


def images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def as_product(y: Tensor) -> bool:
    return y.grad_fn is not None and "_Product" in y.grad_fn.name()


@pytest.mark.parametrize(
    ("shape", "k", "s"),
    [
        *(((3, 5, *side), k, s) for side, k, s in itertools.product([(2, 2), (4, 3), (1, 1)], (1, 3), (1, 2))),
        ((2, 3, 8, 7), 3, 2),  # a row and a column that only the padding follows
        ((2, 3, 9, 9), 1, 2),  # the last row and column are seen
        ((2, 3, 6, 6), 5, 3),
        ((0, 3, 4, 4), 3, 1),  # a worker without a sample
    ],
)
def test_values_and_gradients_are_torchs(shape: tuple[int, ...], k: int, s: int) -> None:
    conv, x = convolution(shape[1], 4, k, s), images(*shape)
    y = conv(x)
    assert as_product(y)
    expected = F.conv2d(x, conv.weight, stride=s, padding=k // 2)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    gradient = images(*y.shape, seed=1).detach()
    ours = torch.autograd.grad(y, (x, conv.weight), gradient)
    theirs = torch.autograd.grad(expected, (x, conv.weight), gradient)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_any_layout_is_taken_and_frozen_weights_have_no_gradient() -> None:
    conv, x = convolution(5, 4, 3, 1), images(3, 5, 4, 4).detach().contiguous().requires_grad_()
    conv.weight.requires_grad_(False)
    y = conv(x)
    (found,) = torch.autograd.grad(y.sum(), x)
    (expected,) = torch.autograd.grad(F.conv2d(x, conv.weight, padding=1).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("k", "s"), [(1, 1), (3, 1), (3, 2)])
def test_in_bf16_it_rounds_about_as_torchs(k: int, s: int) -> None:
    conv, x = convolution(64, 32, k, s, torch.float32), images(8, 64, 4, 4, dtype=torch.float32)
    gradient = images(8, 32, 4 // s, 4 // s, dtype=torch.float32, seed=1).detach()
    weight = conv.weight.detach().bfloat16().double().requires_grad_()  # what both ways see
    exact = x.detach().bfloat16().double().requires_grad_()
    true_y = F.conv2d(exact, weight, stride=s, padding=k // 2)
    true = true_y, *torch.autograd.grad(true_y, (exact, weight), gradient.bfloat16().double())

    def off(way: Callable[[Tensor], Tensor]) -> list[float]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = way(x)
        assert y.dtype == torch.bfloat16
        found = y, *torch.autograd.grad(y, (x, conv.weight), gradient.bfloat16())
        return [float((a.double() - b).detach().norm() / b.detach().norm()) for a, b in zip(found, true, strict=True)]

    def torchs(x: Tensor) -> Tensor:
        return F.conv2d(x, conv.weight, stride=s, padding=k // 2)

    for ours, theirs in zip(off(conv), off(torchs), strict=True):
        assert ours < (1.2 if s == 1 else 1.4) * theirs + 1e-6  # strided, gradients are rounded before they are summed
        assert theirs < 5e-3


def test_evaluation_in_float32_and_large_maps_are_torchs_to_the_bit() -> None:
    conv, x = convolution(8, 6, 3, 1, torch.float32), images(2, 8, 4, 4, dtype=torch.float32)
    y = conv.eval()(x)
    assert not as_product(y)
    assert torch.equal(y, F.conv2d(x, conv.weight, padding=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert as_product(conv(x))
    large = images(2, 8, 8, 8, dtype=torch.float32)
    assert not as_product(conv.train()(large))
    assert as_product(conv(x))


def test_it_keeps_what_torchs_keeps_and_leaves_gradients_in_the_weights_layout() -> None:
    conv, x = convolution(16, 8, 3, 1, torch.float32), images(2, 16, 4, 4, dtype=torch.float32)

    def kept(train: bool) -> int:
        found: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            conv.train(train)(x)
        return sum(found)

    assert kept(True) == kept(False)
    of_x, of_weight = torch.autograd.grad(conv.train()(x).square().sum(), (x, conv.weight))
    assert of_weight.stride() == conv.weight.stride()
    assert of_x.stride() == x.stride()


def test_only_plain_convolutions_are_exchanged_and_weights_stay_as_they_are() -> None:
    left = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)]
    left += [nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 3, padding=1, dilation=2, bias=False)]
    left += [nn.Conv2d(4, 4, (1, 3), padding=(0, 1), bias=False), nn.Conv2d(4, 4, 2, padding=1, bias=False)]
    module = nn.Sequential(*left, nn.Sequential(nn.Conv2d(4, 4, 1, bias=False)).eval())
    before = copy.deepcopy(module.state_dict())
    quicken(module)
    assert [type(m) for m in module[:-1]] == [nn.Conv2d] * len(left)
    assert type(module[-1][0]) is Conv2d
    assert not module[-1][0].training
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "config", [EncoderConfig(arch="resnet18", stem="small"), EncoderConfig(arch="resnet50", stem="small")]
)
def test_an_encoder_has_no_other_convolutions(config: EncoderConfig) -> None:
    encoder = build_encoder(config, 1, 0)
    kinds = {type(m) for m in encoder.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {Conv2d}
