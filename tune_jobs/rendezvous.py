"""Where several workers meet: on a local Ray, which listens on the loopback alone, torch does so too."""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

from ray.train.torch.config import TorchConfig, _TorchBackend

LOOPBACK = "127.0.0.1"
#: In the process of worker 0: what the workers ask where the others are. It ends with the process.
_served: list[Any] = []


class SeveralWorkers(TorchConfig):  # type: ignore[misc]  # ray has no types
    """A process group of several workers, which nobody beyond this machine can reach where Ray is a local one."""

    @property
    def backend_cls(self) -> Any:
        return _Meeting


class _Meeting(_TorchBackend):  # type: ignore[misc]
    """Ray's own, whose torch listens on every interface, but for a local Ray."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        import ray

        port = worker_group.execute_single(0, _serve_if_local)
        if port is None:
            super().on_start(worker_group, backend_config)
            return
        common = {
            "port": port,
            "world_size": len(worker_group),
            "backend": "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo",
            "patience": timedelta(seconds=backend_config.timeout_s),
        }
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, world_rank=rank, **common)
                for rank in range(len(worker_group))
            ]
        )


def _serve_if_local() -> int | None:
    """In worker 0: the port on the loopback where the workers meet; None where Ray is not of this machine alone."""
    import ray
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        return None
    # torch would listen on every interface; a socket that listens already it takes as it is
    listening = socket.create_server((LOOPBACK, 0))
    port: int = listening.getsockname()[1]
    _served[:] = [TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())]
    return port


def _join(*, port: int, world_rank: int, world_size: int, backend: str, patience: timedelta) -> None:
    """In each worker: make the process group. What gloo and NCCL listen on is of the loopback too."""
    from torch.distributed import TCPStore, init_process_group  # type: ignore[attr-defined]

    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    store = TCPStore(LOOPBACK, port, is_master=False, timeout=patience)
    init_process_group(backend, store=store, rank=world_rank, world_size=world_size, timeout=patience)
