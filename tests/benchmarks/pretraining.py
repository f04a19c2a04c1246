"""The pretraining step and its parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from ssl_core import augment
from ssl_core.config import AugmentConfig, BarlowConfig, EncoderConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.data.dataset import TRAIN, Dataset
from ssl_core.pretraining import Pretraining
from tests.benchmarks.plain import PlainTraining
from tests.benchmarks.rows import Measured, Row, faster, in_turns, time_of

CPU = torch.device("cpu")
SIDE = 64  # px
STEPS = 2  # of a turn
MANY = 61  # turns, where a twentieth of a step has to be told from noise
#: The protocol's augmentation where views are cropped (idc).
AUGMENT = AugmentConfig(crop=(0.4, 1.0), flip=0.5)


def step(arch: str, batch: int) -> Measured:
    """An epoch of a few steps, from pixels to the queue, against the same written plainly (see `plain`)."""
    config, dataset = _config(arch, batch), images(STEPS * batch)
    run, plain = Pretraining(config, dataset, CPU), PlainTraining(config, dataset)
    return _views(faster(in_turns(run.train_epoch, plain.train_epoch)), batch)


def with_data(arch: str, batch: int) -> Measured:
    """The share of its own step's speed, on one batch of views that lie ready, that an epoch reaches."""
    config, dataset = _config(arch, batch), images(STEPS * batch)
    run, fixed = Pretraining(config, dataset, CPU), Pretraining(config, dataset, CPU)
    rows = fixed.rows[:batch]
    fixed.batches = Fixed(fixed.batches.views(rows, config.augment, torch.Generator().manual_seed(0), 2))
    return _views(faster(in_turns(run.train_epoch, fixed.train_epoch)), batch)


def adding(batch: int, **losses: Any) -> Measured:
    """The time of a step with losses on four blocks, in units of MoCo's alone."""
    dataset = images(STEPS * batch)
    arm, moco = (Pretraining(_config("resnet18", batch, **more), dataset, CPU) for more in (losses, {}))
    return _views(time_of(in_turns(arm.train_epoch, moco.train_epoch, turns=MANY)), batch)


def augmentation() -> Measured:
    """128 views of 64 px in a batch, against torchvision image by image."""
    config = AUGMENT
    pixels = torch.randint(0, 256, (128, 3, SIDE, SIDE), dtype=torch.uint8)
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    plain = v2.Compose([
        v2.RandomResizedCrop(SIDE, scale=config.crop), v2.RandomHorizontalFlip(), v2.RandomApply([jitter], 0.8),
        v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return faster(
        in_turns(
            lambda: augment.apply(pixels, augment.draw(config, 128, 3, SIDE, generator)),
            lambda: torch.stack([plain(image) for image in pixels]),
        )
    )


@dataclass(frozen=True)
class Fixed:
    """In the place of `Batches`: the same views whichever rows are asked for."""

    ready: list[Tensor]

    def views(self, *_: Any) -> list[Tensor]:
        return self.ready


def images(n: int, side: int = SIDE) -> Dataset:
    """n training images of noise, each its own group."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return Dataset(
        name="noise", images=pixels, labels=np.arange(n) % 2, splits=np.full(n, TRAIN, dtype=np.int8),
        groups=np.arange(n).astype(str), ids=np.arange(n).astype(str), class_names=("even", "odd"), task="binary",
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), fingerprint="noise",
    )  # fmt: skip


def _config(arch: str, batch: int, **losses: Any) -> PretrainConfig:
    """MoCo at the paper's 65,536 keys and a constant rate; the rest as a study has it by default."""
    return PretrainConfig(
        encoder=EncoderConfig(arch=arch), moco=MocoConfig(queue=65_536, queue_limit=None), augment=AUGMENT,
        batch_size=batch, learning_rate_batch=None, warmup_epochs=0, schedule="constant", **losses,
    )  # fmt: skip


def _views(measured: Measured, batch: int) -> Measured:
    views = 2 * STEPS * batch
    return replace(measured, facts={**measured.facts, "views_per_second": views / measured.ours})


MSE, BARLOW = MseConfig(scale=0.25, pool="grid"), BarlowConfig(width=512, scale=5e-5)

ROWS = (
    Row("pretraining step, ResNet-18, 64 px", "the same, written plainly", 2, partial(step, "resnet18", 64)),
    Row("pretraining step, ResNet-50, 64 px", "the same, written plainly", 2, partial(step, "resnet50", 32)),
    Row("with data, ResNet-18, 64 px", "its step on a batch at hand", 0.9, partial(with_data, "resnet18", 64)),
    Row("with data, ResNet-50, 64 px", "its step on a batch at hand", 0.9, partial(with_data, "resnet50", 32)),
    Row("adding mse at four blocks", "MoCo alone", 1.05, partial(adding, 64, mse=MSE), most=True),
    Row("adding barlow (d 512) at four blocks", "MoCo alone", 1.15, partial(adding, 64, barlow=BARLOW), most=True),
    Row("augmentation, 128 views of 64 px", "torchvision, image by image", 1.5, augmentation),
)
