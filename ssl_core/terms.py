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

    Raises NonFiniteError naming the earliest step, in it the first term, that is NaN or infinite, and the workers on
    which it is. Put the total last in a step, so that its part is blamed.
    """
    names = list(steps[0])
    own = torch.stack([torch.stack(list(terms.values())) for terms in steps])
    workers = distributed.gather(own[None]).cpu().double()  # [workers, steps, terms]
    table = workers.mean(dim=0).tolist()
    for i, values in enumerate(table):
        for j, (name, value) in enumerate(zip(names, values, strict=True)):
            if not math.isfinite(value):
                where = [
                    str(r) for r, of_worker in enumerate(workers[:, i, j].tolist()) if not math.isfinite(of_worker)
                ]
                place = f" on worker {', '.join(where)}" if 0 < len(where) < len(workers) else ""
                raise NonFiniteError(
                    f"{name} is {value} at step {first + i}{place}; lower learning_rate or the block losses' scale, "
                    "or set precision to float32"
                )
    return [dict(zip(names, values, strict=True)) for values in table]
