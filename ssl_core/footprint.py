"""The memory that a pretraining step needs, counted before there is any: from forward passes of a few small images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_core import devices
from ssl_core.config import Precision, PretrainConfig
from ssl_core.moco import Moco

#: Batches and sides of the images that are counted. Maps grow with the area, everything else does not.
BATCHES, SIDES = (2, 4), (32, 64)


@dataclass(frozen=True)
class Footprint:
    """Bytes that a step cannot do without. What libraries, the allocator and single operations take comes on top."""

    states: int  # weights of both encoders, gradients, the optimiser's momentum, the queue
    step: float  # kept until the backward pass, whatever the batch: weights that were cast, correlations
    image: float  # kept until the backward pass for each image of the batch

    def of(self, batch: int) -> int:
        """Bytes for a batch whose activations are in memory at once (a micro-batch, where there are some)."""
        return round(self.states + self.step + self.image * batch)

    def largest(self, memory: float) -> int:
        """The largest such batch for these bytes; 0 where there is none."""
        return max(0, int((memory - self.states - self.step) / self.image))


def footprint(config: PretrainConfig, channels: int, size: int, precision: Precision | None = None) -> Footprint:
    """Of images of `size` pixels a side and so many channels, on any device; a second or less on a CPU.

    Counts what autograd keeps of batches of 2 and 4 images of 32 and 64 pixels and draws the lines through them: within
    a percent for sides that are multiples of 32. `config.moco.queue` has to be a number; `precision` is the target's.
    """
    cpu = torch.device("cpu")
    moco = devices.place(Moco(config, channels), cpu).train()
    moco.scales = dict.fromkeys(moco.scales, 1.0)
    (few_small, many_small), (few_large, many_large) = (
        [_kept(moco, batch, channels, side, precision or config.precision) for batch in BATCHES] for side in SIDES
    )
    more = BATCHES[1] - BATCHES[0]
    small, large = (many_small - few_small) / more, (many_large - few_large) / more  # of an image
    by_area = (large - small) / (SIDES[1] ** 2 - SIDES[0] ** 2)
    trained = sum(p.nbytes for p in moco.parameters() if p.requires_grad)
    every = sum(tensor.nbytes for tensor in (*moco.parameters(), *moco.buffers()))
    return Footprint(
        states=every + 2 * trained,  # gradient and momentum
        step=max(0.0, few_small - BATCHES[0] * small),
        image=small + by_area * (size**2 - SIDES[0] ** 2),
    )


def _kept(moco: Moco, batch: int, channels: int, side: int, precision: Precision) -> int:
    """Bytes that autograd keeps of a forward pass until the backward pass, the model's own not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*moco.parameters(), *moco.buffers())}
    found: dict[int, tuple[Tensor, int]] = {}  # the tensors too, so that no address is given out twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    views = torch.rand(2, batch, channels, side, side, generator=torch.Generator().manual_seed(0))
    view1, view2 = (view.contiguous(memory_format=torch.channels_last) for view in views)
    kept = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with kept, devices.autocast(torch.device("cpu"), precision):
        moco(view1, view2, torch.arange(batch), 0, batch)
    return sum(size for _, size in found.values())
