"""Features of two workers against those of one, through a real process group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.features import Features, extract
from ssl_core.config import BLOCKS, EncoderConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.encoder import build_encoder, save_encoder
from tests.analysis.features_worker import RUNS, work
from tests.ssl_core.gloo import together

WORLD = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers left."""
    folder = tmp_path_factory.mktemp("features")
    draw, n = np.random.default_rng(0), 23
    dataset = Dataset(
        name="toy",
        images=draw.integers(0, 256, (n, 32, 32, 1), dtype=np.uint8),
        labels=np.arange(n) % 3,
        splits=draw.permutation(np.repeat(np.array([TRAIN, VAL, TEST], np.int8), (11, 5, 7))),
        groups=np.array([f"patient{i // 2}" for i in range(n)]),
        ids=np.array([f"image{i}" for i in range(n)]),
        class_names=("a", "b", "c"),
        task="multiclass",
        mean=(0.4,),
        std=(0.2,),
        fingerprint="f00d",
    )
    dataset.save(folder / "data")
    net = build_encoder(EncoderConfig(arch="resnet18"), 1, seed=0).train()
    with torch.no_grad():  # batch norm's statistics are not the initial ones
        net(torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
        save_encoder(folder / "encoder.pt", net, dataset.mean, dataset.std)
        net.layer3[0].bn1.weight[0] = float("inf")
        save_encoder(folder / "infinite.pt", net, dataset.mean, dataset.std)
    return together(work, WORLD, folder)


@pytest.mark.parametrize("name", RUNS)
def test_features_are_those_of_one_worker(folder: Path, tmp_path: Path, name: str) -> None:
    extract(folder / "encoder.pt", Dataset.open(folder / "data"), tmp_path, device="cpu", **RUNS[name])
    alone, both = Features.open(tmp_path), Features.open(folder / f"{name}-0")
    for block in BLOCKS:
        far = abs(both.blocks[block] - alone.blocks[block]).max()
        assert far <= 1e-5 * abs(alone.blocks[block]).max(), block
    for facts in ("ids", "labels", "splits", "groups"):
        np.testing.assert_array_equal(getattr(both, facts), getattr(alone, facts))
    assert (tmp_path / "features.json").read_text() == (folder / f"{name}-0" / "features.json").read_text()
    assert not list((folder / f"{name}-1").iterdir()), "worker 0 alone writes"


def test_every_worker_says_which_image_is_not_finite(folder: Path) -> None:
    first, second = ((folder / f"error-{rank}").read_text() for rank in range(WORLD))
    assert first == second == "block 3 of image image0 is NaN or infinite; pretrain at a lower rate"
