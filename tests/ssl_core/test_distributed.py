"""Two workers against one on the same global batch, through real process groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_core import distributed
from ssl_core.data.dataset import Dataset
from tests.ssl_core import distributed_worker as worker
from tests.ssl_core.gloo import together

WORLD = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """What two workers left."""
    folder = tmp_path_factory.mktemp("workers")
    digits.save(folder / "data")
    return together(worker.work, WORLD, folder)


@pytest.mark.parametrize("centred", [True, False])
def test_terms_gradients_and_queue_equal_those_of_one_worker(folder: Path, centred: bool) -> None:
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
    assert 1 < first[0]["scale_mse_4"] < 1000  # measured, on both workers alike


def found(folder: Path, name: str) -> list[Any]:
    return [torch.load(folder / f"{name}_{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("shuffle", ["undone", "embedding", "none"])
def test_however_keys_are_shuffled_each_comes_back_to_its_query(folder: Path, shuffle: Any) -> None:
    """The authors' setting, embedding, leaves block maps with other images' queries; all else is that of one worker."""
    alone, equal_alone = worker.one_step(worker.config(shuffle=shuffle)), worker.equal_views(worker.config(), 0)
    workers, astray = found(folder, shuffle), shuffle == "embedding"
    keys = torch.cat([w["equal"]["keys"] for w in workers])
    torch.testing.assert_close(keys, equal_alone["keys"], rtol=1e-5, atol=1e-6)
    for step, equal in ((w["step"], w["equal"]) for w in workers):
        for name in ("info_nce", "queue"):
            torch.testing.assert_close(step[name], alone[name], rtol=1e-5, atol=1e-5)
        for name in ("mse_1", "mse_4", "barlow_2"):
            assert torch.allclose(step[name], alone[name], rtol=1e-4) != astray, name
        for name in ("mse_1", "mse_4"):  # of an image with itself, or with another
            assert equal[name] > 1e-5 if astray else equal[name] < 1e-9, name


def test_keys_are_shuffled_anew_at_each_step(folder: Path) -> None:
    """In training mode a worker's batch norm makes InfoNCE depend on which samples it encodes together."""
    terms = {
        shuffle: [float(found(folder, shuffle)[0][f"training {i}"]["info_nce"]) for i in (0, 1)]
        for shuffle in ("undone", "embedding", "none")
    }
    assert terms["none"][0] == terms["none"][1]
    assert terms["undone"] == terms["embedding"]
    assert len({terms["none"][0], *terms["undone"]}) == 3


@pytest.mark.parametrize("n", [8, 7])
def test_rows_are_dealt_in_the_order_asked_for_and_back(folder: Path, n: int) -> None:
    parts = [f[n] for f in found(folder, "dealt")]
    order = parts[0][0]
    assert order.tolist() != list(range(n))
    assert torch.equal(torch.cat([there for _, there, _ in parts]), order)
    assert torch.cat([back for *_, back in parts]).tolist() == list(range(n))


def test_a_moving_validation_shared_unevenly_is_that_of_one_worker(folder: Path, digits: Dataset) -> None:
    alone = worker.validated(digits)
    for result in found(folder, "validated"):
        assert result["values"] == pytest.approx(alone["values"], rel=1e-4)
        torch.testing.assert_close(result["queue"], alone["queue"], rtol=1e-4, atol=1e-5)
        assert torch.equal(result["codes"], alone["codes"])


def test_all_workers_stop_where_one_is_not_finite(folder: Path) -> None:
    said = [(folder / f"stopped_{rank}").read_text() for rank in range(2)]
    assert said[0] == said[1], "a worker that went on would wait for the other for half an hour"
    assert said[0].startswith("info_nce is nan at step 1 on worker 1; lower learning_rate")


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
