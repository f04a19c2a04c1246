"""MoCo's queue of negative keys."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.initialisation import random_generator

#: Code of a random entry: that of no image, so it is never masked.
NO_IMAGE = -1


class KeyQueue(nn.Module):
    """The last `size` keys in a ring, with the code of the image or group that each came from.

    It starts full of random unit vectors, as in MoCo's published code. `keys` [K, D] float32 and `codes` [K] int64 are
    written in place, so `enqueue` belongs after the backward pass that reads them; that saves a copy of the queue a
    step. The place of the next key travels in the state dict.
    """

    keys: Tensor
    codes: Tensor

    def __init__(self, size: int, dim: int, seed: int) -> None:
        super().__init__()
        random = torch.randn(size, dim, generator=random_generator(seed, "queue"))
        self.register_buffer("keys", F.normalize(random, dim=1))
        self.register_buffer("codes", torch.full((size,), NO_IMAGE))
        self.pointer = 0

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, codes: Tensor) -> None:
        """Overwrite the oldest entries with keys [B, D] and codes [B]; where B > K the last K remain."""
        size, surplus = len(self), max(0, len(keys) - len(self))
        keys, codes = keys[surplus:], codes[surplus:]
        start = (self.pointer + surplus) % size
        first = min(len(keys), size - start)  # entries before the ring's end; the rest go to its beginning
        for ring, new in ((self.keys, keys), (self.codes, codes)):
            ring[start : start + first] = new[:first]
            ring[: len(new) - first] = new[first:]
        self.pointer = (start + len(keys)) % size

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer}

    def set_extra_state(self, state: Any) -> None:
        self.pointer = state["pointer"]
