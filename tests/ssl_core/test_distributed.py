"""Two workers against one on the same global batch, through real process groups."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ssl_core import distributed
from ssl_core.data.dataset import Dataset

WORKER = Path(__file__).with_name("distributed_worker.py")
WORLD = 2


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    """The workers' own code, to be run by one."""
    spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """What two workers left."""
    folder = tmp_path_factory.mktemp("workers")
    digits.save(folder / "data")
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(WORLD), str(folder)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    outputs = [w.communicate(timeout=200)[0] for w in workers]
    assert [w.returncode for w in workers] == [0] * WORLD, "\n".join(outputs)
    return folder


@pytest.mark.parametrize("centred", [True, False])
def test_terms_gradients_and_queue_equal_those_of_one_worker(folder: Path, worker: ModuleType, centred: bool) -> None:
    alone = worker.one_step(worker.config(centred=centred))
    for rank in range(WORLD):
        found = torch.load(folder / f"step_{centred}_{rank}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(found["codes"], alone["codes"])


def test_after_an_epoch_every_worker_holds_the_same_state(folder: Path) -> None:
    first, second = (torch.load(folder / f"state_{rank}.pt", weights_only=True) for rank in range(WORLD))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def test_only_worker_0_writes_and_all_report_alike(folder: Path) -> None:
    assert {p.name for p in (folder / "worker0").iterdir()} == {"encoder.pt", "checkpoint.pt", "metrics.jsonl"}
    assert not list((folder / "worker1").iterdir())
    first, second = (json.loads((folder / f"calls_{rank}.json").read_text()) for rank in range(WORLD))
    assert first == second
    assert [c if isinstance(c, str) else c["step"] for c in first] == [2, "checkpoint.pt"]


def test_alone_every_function_is_the_identity() -> None:
    x = torch.rand(3, 2)
    module = torch.nn.Linear(2, 2)
    assert distributed.world() == 1
    assert distributed.rank() == 0
    assert distributed.share(7) == slice(0, 7)
    assert distributed.parallel(module) is module
    assert distributed.gather(x) is x
    assert distributed.mean(x) is x
    assert distributed.sum_with_gradient(x) is x
    assert distributed.batch_size(x) == 3
    assert distributed.agree(True)
    assert not distributed.agree(False)
