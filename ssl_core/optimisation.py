"""Learning rates, parameter groups and the optimisers of fine-tuning, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn


def learning_rate(
    step: int, *, base: float, steps: int, warmup: int = 0, schedule: Literal["cosine", "constant"] = "cosine"
) -> float:
    """Rate of step `step` (from 0) of `steps`.

    Linear over the first `warmup` steps, from base / warmup to base; then half a cosine from base towards 0, or base.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    match schedule:
        case "constant":
            return base
        case "cosine":
            return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float, *, decay_norms: bool) -> list[dict[str, Any]]:
    """The trainable parameters of `modules`; unless `decay_norms`, vectors (norms and biases) get no weight decay."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    decays = [decay_norms or p.ndim > 1 for p in parameters]
    return [
        {"params": [p for p, d in zip(parameters, decays, strict=True) if d], "weight_decay": weight_decay},
        {"params": [p for p, d in zip(parameters, decays, strict=True) if not d], "weight_decay": 0.0},
    ]


def adaptive(
    kind: Literal["adamw", "adam"], groups: list[dict[str, Any]], *, learning_rate: float, fused: bool
) -> torch.optim.Optimizer:
    """Adam on `groups` of `parameter_groups`; the two are one where nothing decays.

    adam: decay is added to the gradient (L2), so Adam's scaling divides it out wherever gradients are small beside it;
    adamw: weights shrink by rate x decay a step, whatever their gradients (Loshchilov and Hutter, ICLR 2019).
    """
    match kind:
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
        case "adam":
            return torch.optim.Adam(groups, lr=learning_rate, fused=fused)
