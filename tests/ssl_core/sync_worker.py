"""One of several workers that pretrain together. Reads `data` in their folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_core import distributed
from ssl_core.config import PretrainConfig
from ssl_core.data.dataset import Dataset
from ssl_core.key_queue import KeyQueue
from ssl_core.pretraining import Pretraining
from tests.ssl_core.distributed_worker import config

STEPS = 3
#: Ten samples: of four workers two have two and two have three.
SYNC = config(batch_norm="sync", batch_size=10)
BF16 = config(batch_norm="sync", batch_size=10, precision="bf16")


def trained(arm: PretrainConfig, dataset: Dataset, steps: int) -> dict[str, Tensor]:
    """Terms of the last of some steps in train mode, its gradients, and all state after it."""
    run = Pretraining(arm, dataset, torch.device("cpu"))
    run.moco.train()
    order = run._order()
    terms = dict[str, Tensor]()
    for step in range(steps):
        terms = run._step(step, order[step * arm.batch_size :][: arm.batch_size])
    found = {f"term {name}": distributed.mean(term) for name, term in terms.items()}
    found |= {f"gradient {name}": p.grad for name, p in run.moco.named_parameters() if p.grad is not None}
    state = {name: value for name, value in run.moco.state_dict().items() if isinstance(value, Tensor)}
    return found | {f"state {name}": value.clone() for name, value in state.items()}


def plain_all_reduce(x: Tensor) -> Tensor:
    x = x.clone()
    dist.all_reduce(x.detach())
    return x


def backwards(queue: KeyQueue, keys: Tensor, codes: Tensor) -> None:
    ENQUEUE(queue, torch.cat(list(reversed(keys.tensor_split(distributed.world())))), codes)


def own_alone(queue: KeyQueue, keys: Tensor, codes: Tensor) -> None:
    ENQUEUE(queue, keys[distributed.share(len(keys))].repeat(distributed.world(), 1), codes)


ENQUEUE: Callable[..., None] = KeyQueue.enqueue
#: What is put in on purpose, and where.
DEFECTS: dict[str, tuple[str, Any]] = {
    "a correlation through a plain all-reduce": ("ssl_core.distributed.sum_with_gradient", plain_all_reduce),
    "keys gathered in another order": ("ssl_core.key_queue.KeyQueue.enqueue", backwards),
    "a queue of the worker's own keys": ("ssl_core.key_queue.KeyQueue.enqueue", own_alone),
}


def work(rank: int, world: int, folder: Path) -> None:
    dataset = Dataset.open(folder / "data")
    found = {f"{steps} steps": trained(SYNC, dataset, steps) for steps in (1, STEPS)}
    found["bf16"] = trained(BF16, dataset, 1)
    if world == 2:
        shuffled = config(batch_norm="sync", batch_size=10, shuffle="embedding")
        found["block features left shuffled"] = trained(shuffled, dataset, 1)
        for name, (target, defect) in DEFECTS.items():
            with patch(target, defect):
                found[name] = trained(SYNC, dataset, 1)
    torch.save(found, folder / f"found-{rank}.pt")
