"""`scale: auto`: block losses that start out as large as InfoNCE (paper section 4.1)."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ssl_core import distributed
from ssl_core.errors import ConfigError, NonFiniteError
from ssl_core.moco import Moco

log = logging.getLogger(__name__)

#: Batches over which losses are averaged to compare them.
STEPS = 4

#: (loss terms, this worker's keys [B / world, dim], the global batch's codes [B]) of the run's i-th batch.
Forward = Callable[[Moco, int], tuple[dict[str, Tensor], Tensor, Tensor]]


@torch.no_grad()
def measure(moco: Moco, forward: Forward, steps: int) -> dict[str, float]:
    """A scale for each block loss that has none: InfoNCE / block loss, means over the run's first `steps` batches.

    The losses are those of an untrained `moco` in training mode against a queue full of these batches' keys: against
    the random vectors that the queue starts with InfoNCE is small, and grows manifold within a few steps. All of it
    happens on a copy, so that nothing of the run changes; every worker gets the same numbers.

    Raises NonFiniteError if a loss is NaN or infinite, ConfigError if one is 0, naming it.
    """
    trial = copy.deepcopy(moco).train()
    trial.scales = dict.fromkeys(moco.scales, 0.0)
    passes = [forward(trial, i) for i in range(steps)]
    keys = torch.cat([distributed.gather(own, len(codes)) for _, own, codes in passes])
    codes = torch.cat([codes for *_, codes in passes])
    filling = torch.arange(len(trial.queue), device=keys.device) % len(keys)
    trial.queue.enqueue(keys[filling], codes[filling])

    names = ["info_nce", *(name for name, scale in moco.scales.items() if scale is None)]
    rows = [forward(trial, i)[0] for i in range(steps)]
    table = distributed.mean(torch.stack([torch.stack([terms[name] for name in names]) for terms in rows]))
    means = dict(zip(names, table.double().mean(dim=0).tolist(), strict=True))
    for name, value in means.items():
        if not math.isfinite(value):
            raise NonFiniteError(
                f"scale auto: {name} is {value} over the first {steps} batches; set precision to float32, "
                "or look at the images with `intermoco data`"
            )
        if value == 0:
            raise ConfigError(
                f"scale auto: {name} is 0 over the first {steps} batches, so no scale makes block losses as large as "
                "InfoNCE; give the scale as a number, or views that differ (augment)"
            )
    scales = {name: means["info_nce"] / means[name] for name in names[1:]}
    found = ", ".join(f"{name} {scale:.4g}" for name, scale in scales.items())
    log.info("scale auto, measured over the first %d batches against InfoNCE %.4g: %s", steps, means["info_nce"], found)
    return scales
