"""Several workers in a process group of their own, forked from a process that has imported torch once for all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tests.processes import CONTEXT

#: What each of them does, given its rank, their number and a folder that all share.
Work = Callable[[int, int, Path], None]


def together(work: Work, world: int, folder: Path, *, seconds: float = 280.0) -> Path:
    """Let `world` workers do their work to its end; the folder. What one of them prints is in `said-RANK` there."""
    workers = [CONTEXT.Process(target=_worker, args=(work, rank, world, folder)) for rank in range(world)]
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    ended = [worker.exitcode for worker in workers]  # None: it had not
    for worker in workers:
        worker.kill()
    said = "\n".join(path.read_text() for path in sorted(folder.glob("said-*")))
    assert ended == [0] * world, f"{ended}\n{said}"
    return folder


def _worker(work: Work, rank: int, world: int, folder: Path) -> None:
    with (folder / f"said-{rank}").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    work(rank, world, folder)
    dist.destroy_process_group()
