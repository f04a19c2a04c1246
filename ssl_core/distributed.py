"""Several workers on one global batch. Every function is the identity, or the obvious, when there is one worker.

Each worker holds a contiguous slice of the global batch. Gradients, queue and block losses are those of one worker on
the whole batch. Batch norm's statistics are so too with `ssl_core.batch_norm`; with torch's own each worker normalises
by its slice, and the running statistics are averaged over the workers at the end of an epoch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> int:
    """Number of workers."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's place, from 0; worker 0 writes the files."""
    return dist.get_rank() if world() > 1 else 0


def share(n: int) -> slice:
    """This worker's contiguous part of n samples; the parts in rank order make up the whole."""
    return slice(rank() * n // world(), (rank() + 1) * n // world())


def parallel(module: nn.Module) -> nn.Module:
    """`module` with gradients averaged over workers. Buffers stay the worker's own; its queue is equal anyway."""
    if world() == 1:
        return module
    # Else torch packs gradients anew after the first step, in the order that they came in, and by its place in a pack
    # a gradient of three workers or more is summed in another order: a resumed run would not end in the same bits.
    packed_once = next(module.parameters()).device.type == "cpu"
    return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=packed_once)


def sum_with_gradient(x: Tensor) -> Tensor:
    """Sum over workers that gradients flow through (a plain all_reduce would cut them off).

    The backward pass sums too: of a loss that every worker computes alike from the result, each worker gets `world`
    times the gradient of its own part, which the averaging of `parallel` takes back.
    """
    if world() == 1:
        return x
    import torch.distributed.nn.functional as differentiable

    return differentiable.all_reduce(x)  # type: ignore[no-any-return, no-untyped-call]


def batch_size(x: Tensor) -> int | Tensor:
    """Number of samples in the global batch of which x [B, ...] is this worker's part, without waiting for a GPU."""
    if world() == 1:
        return len(x)
    n = x.new_full((), len(x), dtype=torch.float32)
    dist.all_reduce(n)
    return n


def weighted(mean: Tensor, own: int, n: int | None) -> Tensor:
    """A mean over this worker's `own` samples such that the mean over workers is that over the global batch of n.

    n None: every worker has as many. No samples: 0 instead of their mean, which is NaN, and a gradient of 0.
    """
    weight = 1.0 if n is None else own * world() / n
    return mean if weight == 1.0 else torch.nan_to_num(mean) * 0.0 if own == 0 else mean * weight


def gather(x: Tensor, n: int | None = None) -> Tensor:
    """The global batch of which x [B / world, ...] is this worker's part, in rank order. No gradient flows.

    n, the samples of the global batch, is needed where `share` deals them unevenly. The result is contiguous.
    """
    if world() == 1:
        return x
    n = len(x) * world() if n is None else n
    most = -(-n // world())
    mine = x.contiguous() if len(x) == most else torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    parts = [torch.empty_like(mine) for _ in range(world())]  # one shape and layout on every worker
    dist.all_gather(parts, mine)
    return torch.cat([part[: _size(r, n)] for r, part in enumerate(parts)])


def _size(worker: int, n: int) -> int:
    return (worker + 1) * n // world() - worker * n // world()


def deal(x: Tensor, order: Tensor) -> Tensor:
    """This worker's part of the global batch in another order: row i is row order[i] [B] of what x is a part of.

    Dealing again, in the order `order.argsort()`, puts the rows back where they were. No gradient flows.
    """
    return gather(x, len(order))[order[share(len(order))]]


def mean(x: Tensor) -> Tensor:
    """Average over workers. No gradient flows."""
    if world() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / world()


def average_gradients(module: nn.Module) -> None:
    """Average the gradients over workers, in place, where `parallel` does not."""
    if world() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    averages = torch.split(flat / world(), [g.numel() for g in gradients])
    for gradient, values in zip(gradients, averages, strict=True):
        gradient.copy_(values.view_as(gradient))


def average_statistics(module: nn.Module) -> None:
    """Average batch norm's running statistics over workers, in place, so that a resumed run finds one state."""
    if world() == 1:
        return
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            for buffer in (part.running_mean, part.running_var):
                assert buffer is not None
                buffer.copy_(mean(buffer))


def agree(flag: bool) -> bool:
    """Worker 0's answer, on every worker."""
    if world() == 1:
        return flag
    answer = [flag]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def barrier() -> None:
    """Wait for every worker."""
    if world() > 1:
        dist.barrier()
