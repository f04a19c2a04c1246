"""One of two workers (test_distributed.py). Reads `data` in their folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ssl_core import distributed
from ssl_core.config import (
    AugmentConfig,
    BarlowConfig,
    EncoderConfig,
    MocoConfig,
    MseConfig,
    PretrainConfig,
)
from ssl_core.data.dataset import Dataset
from ssl_core.errors import NonFiniteError
from ssl_core.moco import Moco
from ssl_core.pretraining import Pretraining, pretrain

Shuffle = Literal["undone", "embedding", "none"]
SHUFFLES: tuple[Shuffle, ...] = get_args(Shuffle)
BATCH = 16


def config(*, centred: bool = True, shuffle: Shuffle = "undone", **changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {
        "encoder": EncoderConfig(arch="resnet18", stem="small"),
        "moco": MocoConfig(queue=20, dim=8, queue_limit=None, momentum=0.9, shuffle_keys=shuffle),
        "mse": MseConfig(blocks=(1, 4), scale=0.25),
        "barlow": BarlowConfig(blocks=(2,), width=6, scale=0.1, centred=centred),
        "augment": AugmentConfig(flip=0.5),
        "batch_size": BATCH,
        "epochs": 1,
        "warmup_epochs": 0.0,
        "precision": "float32",
    }
    return PretrainConfig(**settings | changes)


def global_batch() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(BATCH, 1, 8, 8, generator=rng), torch.rand(BATCH, 1, 8, 8, generator=rng), torch.arange(BATCH)


def one_step(config: PretrainConfig) -> dict[str, Tensor]:
    """Terms, gradients and queue of a step on the global batch. Eval mode, so that batch norm has no part in it."""
    moco = Moco(config, 1).eval()
    with torch.no_grad():
        for parameter in moco.key.parameters():
            parameter.mul_(1.1)
    model = distributed.parallel(moco)
    view1, view2, codes = global_batch()
    part = distributed.share(BATCH)
    terms, keys = model(view1[part], view2[part], codes[part])
    terms["loss"].backward()
    for _ in range(3):  # past the ring's end
        moco.queue.enqueue(distributed.gather(keys), codes)
    found = {name: distributed.mean(term.detach()) for name, term in terms.items()}
    found |= {f"gradient/{name}": p.grad for name, p in moco.named_parameters() if p.grad is not None}
    return found | {"queue": moco.queue.keys, "codes": moco.queue.codes}


@torch.no_grad()
def equal_views(config: PretrainConfig, step: int, *, training: bool = False) -> dict[str, Tensor]:
    """Terms where view 2 is view 1, and g is h, so that whatever belongs together agrees; this worker's keys."""
    moco = Moco(config, 1).train(training)
    view, _, codes = global_batch()
    part = distributed.share(BATCH)
    terms, keys = moco(view[part], view[part], codes[part], step)
    return {"keys": keys} | {name: distributed.mean(term) for name, term in terms.items()}


def validated(dataset: Dataset) -> dict[str, Any]:
    """Losses, h and queue after a moving validation of 6, 5 and 5 images, which two workers share unevenly."""
    arm = config(batch_size=6, validation="moving", shuffle="undone")
    run = Pretraining(arm, dataset, torch.device("cpu"))
    with torch.no_grad():
        for parameter in run.moco.query.parameters():
            parameter.mul_(1.1)
    values = run.validate()
    return {"values": values, "queue": run.moco.queue.keys, "codes": run.moco.queue.codes}


def dealt(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A shuffled order of n rows, this worker's part of 0 .. n - 1 in it, and that dealt back."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    rows = torch.arange(n).repeat(3, 1).T[distributed.share(n)]  # [n / world, 3]
    there = distributed.deal(rows, order)
    return order, there[:, 1], distributed.deal(there, order.argsort())[:, 2]


def stopped_by_one(rank: int, dataset: Dataset) -> str:
    """What a worker says where the other, worker 1, is the one whose weights have become NaN."""
    run = Pretraining(config(barlow=None), dataset, torch.device("cpu"))
    run.train_steps(lambda: run.step == 1)
    if rank == 1:
        with torch.no_grad():
            next(run.moco.query.parameters()).fill_(torch.nan)
    try:
        run.train_steps()
    except NonFiniteError as error:
        return str(error)
    return "nothing"


class Calls:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def metrics(self, values: Mapping[str, float]) -> None:
        self.calls.append({k: v for k, v in values.items() if k not in ("views_per_second", "epoch_seconds")})

    def checkpoint(self, path: Path) -> None:
        self.calls.append(path.name)

    def urgent(self) -> bool:
        return False


def work(rank: int, world: int, folder: Path) -> None:
    for centred in (True, False):
        torch.save(one_step(config(centred=centred)), folder / f"step_{centred}_{rank}.pt")

    dataset, calls = Dataset.open(folder / "data"), Calls()
    for shuffle in SHUFFLES:
        found = {"step": one_step(config(shuffle=shuffle)), "equal": equal_views(config(shuffle=shuffle), 0)}
        found |= {f"training {i}": equal_views(config(shuffle=shuffle), i, training=True) for i in (0, 1)}
        torch.save(found, folder / f"{shuffle}_{rank}.pt")
    torch.save({n: dealt(n) for n in (8, 7)}, folder / f"dealt_{rank}.pt")
    torch.save(validated(dataset), folder / f"validated_{rank}.pt")
    workdir = folder / f"worker{rank}"  # each its own, so that who writes shows
    workdir.mkdir()
    pretrain(config(mse=MseConfig(blocks=(1, 4))), dataset, workdir, calls, device="cpu")  # scales are measured
    (folder / f"calls_{rank}.json").write_text(json.dumps(calls.calls))
    run = Pretraining(config(), dataset, torch.device("cpu"))
    run.train_epoch()
    run.validate()
    state = run.moco.state_dict()
    del state["queue._extra_state"]
    torch.save(state, folder / f"state_{rank}.pt")
    (folder / f"stopped_{rank}").write_text(stopped_by_one(rank, dataset))
