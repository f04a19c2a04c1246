"""One of two workers, started by test_distributed.py: python distributed_worker.py RANK WORLD FOLDER."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
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
from ssl_core.moco import Moco
from ssl_core.pretraining import Pretraining, pretrain

BATCH = 16


def config(*, centred: bool = True) -> PretrainConfig:
    return PretrainConfig(
        encoder=EncoderConfig(arch="resnet18", stem="small"),
        moco=MocoConfig(queue=20, dim=8, queue_limit=None),
        mse=MseConfig(blocks=(1, 4), scale=0.25),
        barlow=BarlowConfig(blocks=(2,), width=6, scale=0.1, centred=centred),
        augment=AugmentConfig(flip=0.5),
        batch_size=BATCH,
        epochs=1,
        warmup_epochs=0.0,
        precision="float32",
    )


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


class Calls:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def metrics(self, values: Mapping[str, float]) -> None:
        self.calls.append({k: v for k, v in values.items() if k not in ("views_per_second", "epoch_seconds")})

    def checkpoint(self, path: Path) -> None:
        self.calls.append(path.name)


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    for centred in (True, False):
        torch.save(one_step(config(centred=centred)), folder / f"step_{centred}_{rank}.pt")

    dataset, calls = Dataset.open(folder / "data"), Calls()
    workdir = folder / f"worker{rank}"  # each its own, so that who writes shows
    workdir.mkdir()
    pretrain(config(), dataset, workdir, calls, device="cpu")
    (folder / f"calls_{rank}.json").write_text(json.dumps(calls.calls))
    run = Pretraining(config(), dataset, torch.device("cpu"))
    run.train_epoch()
    run.validate()
    state = run.moco.state_dict()
    del state["queue._extra_state"]
    torch.save(state, folder / f"state_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
