"""Random weights that depend on a named seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ssl_core.seeding import derive


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Inside the block, modules built on the CPU draw their weights from (seed, purpose).

    The global random state is as before afterwards, so building one part never shifts the weights of the next, and
    arms that differ in a projector share their encoder.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that reseeds every accelerator too, which fork_rng would then have to save.
        torch.default_generator.manual_seed(derive(seed, *purpose))
        yield


def random_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for the purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))
