"""A world small enough to try the method's invariants in: images made from a seed, and runs that take a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl_core.config import NO_AUGMENT, AugmentConfig, EncoderConfig, FinetuneConfig, MocoConfig, Mode, PretrainConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset, pixel_statistics
from ssl_core.encoder import build_encoder, save_encoder
from ssl_core.pretraining import Pretraining

SIDE = 16  # px
N_TRAIN, N_VAL, N_TEST = 32, 16, 16
ENCODER = EncoderConfig(arch="resnet18", stem="small")
AUGMENT = AugmentConfig(crop=(0.5, 1.0), flip=0.5)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What trying an invariant showed: whether it holds, and a sentence with the numbers."""

    passed: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Toy:
    """64 colour images of 16 px in two classes, two a group (patient); `folder` is empty and may be written to."""

    folder: Path
    device: torch.device

    @cached_property
    def dataset(self) -> Dataset:
        return _images(N_TRAIN, N_VAL, N_TEST)

    @cached_property
    def encoder(self) -> Path:
        """An `encoder.pt` whose batch norm statistics are not those it was born with."""
        encoder = build_encoder(ENCODER, self.dataset.channels, 0)
        run = self.run(self.pretraining())
        with torch.no_grad():
            encoder.to(self.device).train()(run.batches.plain(run.rows))
        path = self.folder / "encoder.pt"
        save_encoder(path, encoder, self.dataset.mean, self.dataset.std)
        return path

    def run(self, config: PretrainConfig) -> Pretraining:
        return Pretraining(config, self.dataset, self.device)

    def workdir(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    def pretraining(self, *, moco: Mapping[str, Any] | None = None, **changes: Any) -> PretrainConfig:
        """Two steps an epoch with all random operations on; the queue is no multiple of the batch."""
        settings: dict[str, Any] = {
            "encoder": ENCODER,
            "moco": MocoConfig(**{"queue": 20, "dim": 16, "queue_limit": None} | dict(moco or {})),
            "augment": AUGMENT,
            "batch_size": 16,
            "epochs": 2,
            "learning_rate": 0.05,
            "learning_rate_batch": None,
            "warmup_epochs": 0.0,
            "schedule": "constant",
        }
        return PretrainConfig(**settings | changes)

    def single_step(self, *, moco: Mapping[str, Any] | None = None, **changes: Any) -> PretrainConfig:
        """One step an epoch, on all training images as they are, so that a step can be computed again beside it.

        At temperature 0.5 no negative is too far away to be noticed.
        """
        settings: dict[str, Any] = {"augment": NO_AUGMENT, "batch_size": N_TRAIN, "precision": "float32"}
        return self.pretraining(moco={"temperature": 0.5, "queue": N_TRAIN} | dict(moco or {}), **settings | changes)

    def finetuning(self, mode: Mode, **changes: Any) -> FinetuneConfig:
        settings: dict[str, Any] = {
            "encoder": ENCODER,
            "mode": mode,
            "augment": AUGMENT,
            "epochs": 1,
            "min_steps": 3,
            "batch_size": 8,
            "evaluations": 1,
            "bootstrap": 20,
        }
        return FinetuneConfig(**settings | changes)


class Silent:
    """A reporter that says nothing."""

    def metrics(self, values: Mapping[str, float]) -> None:
        pass

    def checkpoint(self, path: Path) -> None:
        pass

    def urgent(self) -> bool:
        return False


def _images(n_train: int, n_val: int, n_test: int) -> Dataset:
    """Blurred noise, a little redder in the second class; neighbours in pairs are a group of one class."""
    n = n_train + n_val + n_test
    rng = np.random.default_rng(0)
    labels = np.arange(n) // 2 % 2
    coarse = rng.integers(0, 200, (n, 4, 4, 3))
    coarse[..., 0] += 20 * labels[:, None, None]
    pixels = coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2) + rng.integers(0, 30, (n, SIDE, SIDE, 3))
    splits = np.repeat(np.array([TRAIN, VAL, TEST], dtype=np.int8), (n_train, n_val, n_test))
    mean, std = pixel_statistics(pixels.astype(np.uint8), np.flatnonzero(splits == TRAIN))
    return Dataset(
        name="toy",
        images=pixels.astype(np.uint8),
        labels=labels.astype(np.int64),
        splits=splits,
        groups=np.array([f"patient{i // 2}" for i in range(n)]),
        ids=np.array([f"image{i}" for i in range(n)]),
        class_names=("plain", "red"),
        task="binary",
        mean=mean,
        std=std,
        fingerprint="toy",
    )
