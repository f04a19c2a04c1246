"""Fine-tuning on three workers against one, through real process groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core import distributed
from ssl_core.data.dataset import Dataset
from ssl_core.encoder import build_encoder, save_encoder
from tests.ssl_core.finetuning_runs import ENCODER, outputs, run
from tests.ssl_core.finetuning_worker import RUNS, gradients, work
from tests.ssl_core.gloo import together

WORLD = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """What three workers left."""
    folder = tmp_path_factory.mktemp("workers")
    digits.save(folder / "data")
    save_encoder(folder / "encoder.pt", build_encoder(ENCODER, digits.channels, 0), digits.mean, digits.std)
    return together(work, WORLD, folder)


def found(folder: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True)[name] for rank in range(WORLD)]


@pytest.mark.parametrize("name", RUNS)
def test_gradients_and_statistics_are_those_of_one_worker(folder: Path, digits: Dataset, name: str) -> None:
    alone = gradients(RUNS[name], digits, folder / "encoder.pt")
    workers = found(folder, name)
    losses = [result["gradients"].pop("loss") for result in workers]
    torch.testing.assert_close(torch.stack(losses).mean(), alone.pop("loss"), rtol=1e-5, atol=1e-6)
    for result in workers:
        assert result["gradients"].keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(result["gradients"][key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", RUNS)
def test_it_ends_where_one_worker_ends(folder: Path, digits: Dataset, tmp_path: Path, name: str) -> None:
    run(RUNS[name], digits, tmp_path, None if RUNS[name].mode == "scratch" else folder / "encoder.pt")
    alone, together = outputs(tmp_path), outputs(folder / f"{name}-0")
    assert alone.keys() == together.keys()
    for key in alone:
        if key.endswith("probabilities"):
            np.testing.assert_allclose(together[key], alone[key], atol=2e-3)  # Adam turns rounding into steps
        elif key != "val_score":
            np.testing.assert_array_equal(together[key], alone[key])


def test_worker_0_writes_and_all_report_alike(folder: Path) -> None:
    assert not list((folder / "full-1").iterdir())
    assert {p.name for p in (folder / "full-0").iterdir()} == {
        "metrics.jsonl", "model.pt", "predictions.npz", "rows.json", "samples.json",
    }  # fmt: skip
    results = found(folder, "full")
    assert [result["rows"] > 0 for result in results] == [True, False, False]
    timeless = [[{**row, "views_per_second": 0} for row in result["reported"]] for result in results]
    assert timeless[0] == timeless[1] == timeless[2]
    lines = [json.loads(line) for line in (folder / "full-0" / "metrics.jsonl").read_text().splitlines()]
    assert lines == results[0]["reported"]


def test_alone_gradients_stay() -> None:
    module = torch.nn.Linear(2, 1)
    module(torch.ones(1, 2)).sum().backward()
    distributed.average_gradients(module)
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[1.0, 1.0]]
