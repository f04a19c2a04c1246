"""What a search judges by: the validation score of a linear probe, and no sight of a test image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis import calibration
from analysis.config import ProbeConfig
from analysis.features import extract
from analysis.probing import probe
from analysis.selection import read_scores, score, validation_scores
from ssl_core import checkpoint, devices, metrics
from ssl_core.config import EncoderConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.data.labels import label_subset
from ssl_core.encoder import Encoder, build_encoder, save_encoder
from ssl_core.errors import DataError, NonFiniteError

CONFIG = ProbeConfig(blocks=(3,), fraction=0.3, epochs=15, batch_size=8, bootstrap=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Noise and a shape a class: 60 to train on, 30 to validate, 30 to test."""
    draw = np.random.default_rng(0)
    labels = np.arange(120) % 3
    shapes = draw.integers(0, 120, (3, 8, 8, 1))
    images = (shapes[labels] + draw.integers(0, 130, (120, 8, 8, 1))).astype(np.uint8)
    return Dataset(
        name="shapes",
        images=images,
        labels=labels.astype(np.int64),
        splits=np.repeat(np.array([TRAIN, VAL, TEST], dtype=np.int8), (60, 30, 30)),
        groups=np.array([f"group{i}" for i in range(120)]),
        ids=np.array([f"image{i}" for i in range(120)]),
        class_names=("a", "b", "c"),
        task="multiclass",
        mean=(0.4,),
        std=(0.2,),
        fingerprint="shapes",
    )


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return devices.place(build_encoder(EncoderConfig(arch="resnet18", stem="small"), 1, 0).eval(), CPU)


def scores(encoder: Encoder, dataset: Dataset, config: ProbeConfig = CONFIG) -> dict[str, float]:
    return validation_scores(encoder, dataset.mean, dataset.std, dataset, config, CPU)


def test_the_score_is_that_of_the_probe_on_validation(encoder: Encoder, dataset: Dataset, tmp_path: Path) -> None:
    """The probe that an ablation trains on extracted features, asked about its validation images."""
    save_encoder(tmp_path / "encoder.pt", encoder, dataset.mean, dataset.std)
    extract(tmp_path / "encoder.pt", dataset, tmp_path, device="cpu")
    probe(CONFIG, tmp_path, tmp_path)
    with np.load(tmp_path / "predictions.npz") as saved:
        labels, predicted = saved["val_labels"], saved["val_block3"]
    expected = {
        "score": metrics.score("auroc", labels, predicted, "multiclass"),
        "ece": calibration.ece(labels, predicted, "multiclass"),
    }
    found = scores(encoder, dataset)
    assert found == pytest.approx(expected, abs=1e-5)
    assert 0.55 < found["score"] < 1

    (tmp_path / "stage").mkdir()
    score(CONFIG, tmp_path / "encoder.pt", dataset, tmp_path / "stage", "cpu")
    assert read_scores(tmp_path / "stage") == found
    rows = json.loads((tmp_path / "stage" / "rows.json").read_text())
    cell = {"mode": "probe", "split": "val", "label_fraction": 0.3, "block": 3, "n": 30}
    assert rows == [
        cell | {"metric": "auroc", "value": found["score"]},
        cell | {"metric": "ece", "value": found["ece"]},
    ]


class Opened:
    """Images that note which of them were looked at."""

    def __init__(self, images: Any) -> None:
        self.images, self.rows = images, set[int]()
        self.shape = images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> Any:
        self.rows |= set(np.atleast_1d(rows).tolist())
        return self.images[rows]


def test_only_labelled_training_images_and_validation_images_are_opened(encoder: Encoder, dataset: Dataset) -> None:
    opened, labels = Opened(dataset.images), dataset.labels.copy()
    labels[dataset.rows(TEST)] = 77  # no such class
    shut = dataclasses.replace(dataset, images=opened, labels=labels)  # type: ignore[arg-type]
    assert scores(encoder, shut) == scores(encoder, dataset)
    seen = label_subset(dataset.labels, dataset.splits, fraction=0.3, seed=0)
    assert opened.rows == set(seen) | set(dataset.rows(VAL))


def test_it_repeats_itself_and_leaves_no_trace(encoder: Encoder, dataset: Dataset) -> None:
    before, random = checkpoint.state_digest(encoder.state_dict()), torch.get_rng_state()
    first = scores(encoder, dataset)
    torch.manual_seed(123)
    assert scores(encoder, dataset) == first
    assert checkpoint.state_digest(encoder.state_dict()) == before
    assert not encoder.training
    torch.set_rng_state(random)


def test_block_and_fraction_are_those_of_the_configuration(encoder: Encoder, dataset: Dataset) -> None:
    found = {
        scores(encoder, dataset, dataclasses.replace(CONFIG, **change))["score"]
        for change in ({}, {"blocks": (1,)}, {"fraction": 0.8}, {"seed": 1}, {"metric": "f1_macro"})
    }
    assert len(found) == 5


def test_what_cannot_be_scored_is_refused(encoder: Encoder, dataset: Dataset) -> None:
    splits = np.where(dataset.splits == VAL, TEST, dataset.splits)
    with pytest.raises(DataError, match="dataset shapes has no validation images to score on"):
        scores(encoder, dataclasses.replace(dataset, splits=splits))
    with pytest.raises(DataError, match="too few to hold every class"):
        scores(encoder, dataset, dataclasses.replace(CONFIG, fraction=0.02))
    broken = build_encoder(EncoderConfig(arch="resnet18", stem="small"), 1, 0).eval()
    torch.nn.init.constant_(broken.layer3[0].conv1.weight, float("nan"))
    with pytest.raises(NonFiniteError, match="block 3 of image image"):
        scores(broken, dataset)
