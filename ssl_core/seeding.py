"""Named randomness: every generator is derived from (study seed, purpose), so arms of a seed share what they must.

Deriving anew at each step, instead of carrying generator state, makes a run resumable at any step and independent of
how many workers share a batch.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on the purpose's words alone, e.g. `derive(0, "views", step)`."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator for the purpose."""
    return np.random.default_rng(derive(seed, *purpose))
