"""Where several workers meet: on the loopback where Ray is of this machine alone, else where Ray has them meet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import ray
from ray.train.torch.config import _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tune_jobs.machine import LOOPBACK, listening
from tune_jobs.rendezvous import SeveralWorkers, _serve_if_local, _served

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _nobody_served() -> Iterator[None]:
    yield
    _served.clear()


def where(port: int) -> set[str]:
    """Addresses on which this process listens at the port."""
    return {address for address, program in listening(os.getpid()) or () if program.endswith(f" port {port}")}


def test_a_local_rays_workers_meet_on_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    first = _serve_if_local()
    assert first is not None
    assert where(first) == {"0100007F"} < LOOPBACK
    clients = [TCPStore("127.0.0.1", first, is_master=False, timeout=timedelta(seconds=10)) for _ in range(2)]
    clients[0].set("here", "I am")
    assert clients[1].get("here") == b"I am"
    second = _serve_if_local()  # of a further attempt in the same process
    assert second not in (None, first)
    assert where(first) == set()


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.7.7", "fd00::1"])
def test_a_clusters_workers_meet_as_ray_has_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    assert _serve_if_local() is None
    assert _served == []
    asked: list[Any] = []
    monkeypatch.setattr(_TorchBackend, "on_start", lambda self, group, config: asked.append((group, config)))

    class Group:
        """Ray's group of workers, as far as it is asked before Ray's own way is taken."""

        def execute_single(self, rank: int, do: Any) -> Any:
            assert rank == 0
            return do()

    config, group = SeveralWorkers(), Group()
    config.backend_cls().on_start(group, config)
    assert asked == [(group, config)]


def test_what_the_controller_of_a_lone_worker_imports_is_no_torch() -> None:
    code = (
        "import sys, tune_jobs.lone_worker as it; print(it.LoneWorker().backend_cls.__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Backend", "False"]  # no process group
