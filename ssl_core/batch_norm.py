"""Batch norm over the global batch of several workers, on any device (torch's own takes accelerators alone)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_core import distributed


class GlobalBatchNorm(_BatchNorm):
    """Normalises [B, C, ...] by the batch of all workers in train mode, as one worker would that had it whole.

    In eval mode, or alone, it is torch's batch norm. Workers may hold different numbers of samples, even none.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world() == 1:
            return super().forward(x)
        y, mean, variance, n = _Normalise.apply(x, self.weight, self.bias, self.eps)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)  # unbiased
        normalised: Tensor = y
        return normalised

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm takes [B, C, ...], not {tuple(input.shape)}")


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, by the statistics of all workers' x; in float32 at least.

    The backward pass sums over workers too: what a worker's sample does to the mean reaches every worker's loss. The
    convention is that of `distributed.sum_with_gradient`: each worker gets the gradient of the sum of all losses.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z = x.to(torch.promote_types(x.dtype, torch.float32))
        own = x.numel() // x.shape[1] if len(x) else 0
        mean = z.mean(dim=_samples(x)) if own else z.new_zeros(x.shape[1])
        squares = (z - _wide(mean, x)).square().sum(dim=_samples(x))
        count = mean.new_full((1,), own)
        parts = distributed.gather(torch.cat([mean, squares, count])[None])  # [workers, 2 C + 1]
        means, squared, counts = torch.split(parts, [x.shape[1], x.shape[1], 1], dim=1)
        n = counts.sum()
        mean = (means * counts).sum(dim=0) / n
        variance = (squared + (means - mean).square() * counts).sum(dim=0) / n
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, n)
        ctx.mark_non_differentiable(mean, variance, n)
        y = (z - _wide(mean, x)) * _wide(scale * weight, x) + _wide(bias, x)
        return y.to(x.dtype), mean, variance, n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, n = ctx.saved_tensors
        gradient = gradients[0].to(mean.dtype)
        normalised = (x.to(mean.dtype) - _wide(mean, x)) * _wide(scale, x)
        of_bias = gradient.sum(dim=_samples(x))
        of_weight = (gradient * normalised).sum(dim=_samples(x))
        all_bias, all_weight = distributed.gather(torch.stack([of_bias, of_weight])[None]).sum(dim=0) / n
        centred = gradient - _wide(all_bias, x) - normalised * _wide(all_weight, x)
        return (centred * _wide(weight * scale, x)).to(x.dtype), of_weight, of_bias, None


def synchronise(module: nn.Module) -> None:
    """Let every batch norm below `module` see the global batch, in place. Names and values of its state stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            wide = GlobalBatchNorm(child.num_features, child.eps, child.momentum)
            wide.load_state_dict(child.state_dict())
            for mine, theirs in zip(wide.parameters(), child.parameters(), strict=True):
                mine.requires_grad_(theirs.requires_grad)
            wide.train(child.training)
            setattr(module, name, wide.to(child.weight.device))
        else:
            synchronise(child)


def _samples(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """One value a channel [C], as wide as x [B, C, ...]."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
