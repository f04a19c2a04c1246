"""Convolutions of small maps, written as matrix products: on processors torch's own reach a tenth of their speed there.

Small images, and the last blocks of middling ones, spend most of a training step in maps of 4 x 4 positions and fewer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Most numbers that are gathered of a channel of one image (positions of the output x taps of the kernel). Measured on
#: AVX-512 and AMX processors, forward and backward: bf16 is 1.1 to 10 times faster below it, float32 0.8 to 4 times.
MOST = 256


class Conv2d(nn.Conv2d):
    """torch's convolution; on a processor and of few positions, as a matrix product in training and under autocast.

    Both are equal up to rounding. Evaluation in float32 is always torch's: what is stored, served and exported does not
    depend on which way is the faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, out, h, w]."""
        if x.device.type == "cpu" and self._few(x):
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                return _product(x.to(dtype), self.weight.to(dtype), self.stride[0])
            if self.training:
                return _product(x, self.weight, self.stride[0])
        return super().forward(x)

    def _few(self, x: Tensor) -> bool:
        (k, _), (s, _) = self.kernel_size, self.stride
        return k * k * len(range(0, x.shape[2], s)) * len(range(0, x.shape[3], s)) <= MOST


def quicken(module: nn.Module) -> None:
    """Make the convolutions below `module` this module's, in place. Names, values and evaluation stay as they are.

    Those with a bias, groups, dilation, or other padding than half of an odd kernel stay torch's.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            k, s, half = child.kernel_size[0], child.stride[0], child.kernel_size[0] // 2
            plain = child.bias is None and child.groups == 1 and child.dilation == (1, 1) and k % 2 == 1
            if plain and child.kernel_size == (k, k) and child.stride == (s, s) and child.padding == (half, half):
                quick = Conv2d(child.in_channels, child.out_channels, k, s, padding=half, bias=False, device="meta")
                quick.weight = child.weight
                setattr(module, name, quick.train(child.training))
        else:
            quicken(child)


class _Product(torch.autograd.Function):
    """x [B, C, H, W] and weight [out, C, k, k] -> [B, out, h, w], with zeros k // 2 wide around x.

    Both are laid out channels last, so the weight is a matrix [out, k k C] as it lies in memory. Nothing is kept but
    what torch's convolution keeps: the columns are gathered anew for the weight's gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        columns, (h, w) = _columns(x, weight.shape[2], stride)
        return (columns @ _matrix(weight).T).view(len(x), h, w, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (out, c, k, _), of_x, of_weight = weight.shape, None, None
        gradient = gradients[0].permute(0, 2, 3, 1).reshape(-1, out)  # [B h w, out]
        if ctx.needs_input_grad[1]:
            columns, _ = _columns(x, k, ctx.stride)
            of_weight = (gradient.T @ columns).view(out, k, k, c).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0] and ctx.stride == 1:  # each place is seen by the taps in turned order
            columns, _ = _columns(gradients[0], k, 1)
            turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, c)  # [k k out, C]
            of_x = (columns @ turned).view(len(x), *x.shape[2:], c).permute(0, 3, 1, 2)
        elif ctx.needs_input_grad[0]:
            of_columns = (gradient @ _matrix(weight)).view(len(x), *gradients[0].shape[2:], k, k, c)
            of_x = _fold(of_columns, x, ctx.stride)
        return of_x, of_weight, None


def _product(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    y: Tensor = _Product.apply(x, weight, stride)
    return y


def _matrix(weight: Tensor) -> Tensor:
    """[out, C, k, k] -> [out, k k C]."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _columns(x: Tensor, k: int, stride: int) -> tuple[Tensor, tuple[int, int]]:
    """What the kernel sees at each position, [B h w, k k C], and (h, w)."""
    x = x.permute(0, 2, 3, 1)  # [B, H, W, C]
    if k > 1:
        x = F.pad(x, (0, 0, *(k // 2,) * 4))
    seen = x.unfold(1, k, stride).unfold(2, k, stride)  # [B, h, w, C, k, k]
    return seen.permute(0, 1, 2, 4, 5, 3).reshape(-1, k * k * x.shape[3]), (seen.shape[1], seen.shape[2])


def _fold(of_columns: Tensor, x: Tensor, stride: int) -> Tensor:
    """x's gradient from that of its columns [B, h, w, k, k, C]: each place sums what saw it, in float32 at least."""
    n, h, w, k = of_columns.shape[:4]
    half, (height, width) = k // 2, x.shape[2:]
    of_padded = x.new_zeros(
        n, height + 2 * half, width + 2 * half, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32)
    )
    for i in range(k):
        for j in range(k):
            seen = of_padded[:, i : i + stride * h : stride, j : j + stride * w : stride]
            seen.add_(of_columns[:, :, :, i, j])
    return of_padded[:, half : half + height, half : half + width].permute(0, 3, 1, 2).to(x.dtype)
