"""Loss terms on their way from the device to the log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssl_core import distributed
from ssl_core.errors import NonFiniteError


def read_terms(steps: Sequence[Mapping[str, Tensor]], first: int) -> list[dict[str, float]]:
    """Scalars of consecutive steps as numbers, by one copy off the device; `first` is the number of the first step.

    With several workers, the mean over them, so that all of them stop where one has to.

    Raises NonFiniteError naming the earliest step, and in it the first term, that is NaN or infinite. Put the total
    last in a step, so that its part is blamed.
    """
    names = list(steps[0])
    table = distributed.mean(torch.stack([torch.stack(list(terms.values())) for terms in steps])).tolist()
    for i, values in enumerate(table):
        for name, value in zip(names, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{name} is {value} at step {first + i}; lower learning_rate or the block losses' scale, "
                    "or set precision to float32"
                )
    return [dict(zip(names, values, strict=True)) for values in table]
