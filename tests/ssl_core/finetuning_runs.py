"""Fine-tuning in a second: a small encoder, 8 px digits, a handful of steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_core import batches
from ssl_core.config import AugmentConfig, EncoderConfig, FinetuneConfig
from ssl_core.data.dataset import TRAIN, Dataset, Task
from ssl_core.encoder import build_encoder, save_encoder
from ssl_core.finetuning import finetune

ENCODER = EncoderConfig(arch="resnet18", stem="small")
CPU = torch.device("cpu")


def config(**changes: Any) -> FinetuneConfig:
    settings: dict[str, Any] = {
        "encoder": ENCODER,
        "augment": AugmentConfig(flip=0.5),
        "epochs": 1,
        "min_steps": 4,
        "batch_size": 16,
        "evaluations": 2,
        "bootstrap": 20,
        "precision": "float32",
    }
    return FinetuneConfig(**settings | changes)


class Recorder:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def metrics(self, values: Mapping[str, float]) -> None:
        self.rows.append(dict(values))

    def checkpoint(self, path: Path) -> None:
        raise AssertionError(path)

    def urgent(self) -> bool:
        return False


def run(config: FinetuneConfig, dataset: Dataset, workdir: Path, encoder: Path | None = None) -> list[dict[str, Any]]:
    workdir.mkdir(exist_ok=True)
    return finetune(config, dataset, workdir, Recorder(), encoder=encoder, device="cpu")


def outputs(folder: Path) -> dict[str, Any]:
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        return dict(file)


def curve(folder: Path, name: str) -> list[float]:
    """One value of each evaluation."""
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def pretrained_encoder(path: Path, dataset: Dataset) -> Path:
    """An encoder whose batch norm statistics are not those it was born with."""
    encoder = build_encoder(ENCODER, 1, 7)
    view = batches.Batches(dataset, dataset.mean, dataset.std, CPU).plain(dataset.rows(TRAIN))
    with torch.no_grad():
        for _ in range(3):
            encoder(view)
    save_encoder(path, encoder, dataset.mean, dataset.std)
    return path


def with_task(digits: Dataset, task: Task) -> Dataset:
    """The same images with the labels of another task."""
    match task:
        case "multiclass":
            return digits
        case "binary":
            return dataclasses.replace(
                digits, labels=(digits.labels == 1).astype(np.int64), class_names=("other", "one"), task=task
            )
        case "multilabel":
            labels = np.stack([digits.labels == 0, digits.labels != 1], axis=1).astype(np.uint8)
            return dataclasses.replace(digits, labels=labels, class_names=("zero", "not one"), task=task)
