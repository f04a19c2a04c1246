"""The pretraining step and its parts."""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from ssl_core import augment
from ssl_core.config import AugmentConfig
from tests.benchmarks.rows import Measured, Row, faster, in_turns


def augmentation() -> Measured:
    """128 views of 64 px in a batch, against torchvision image by image."""
    config = AugmentConfig(crop=(0.4, 1.0), flip=0.5)
    images = torch.randint(0, 256, (128, 3, 64, 64), dtype=torch.uint8)
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    plain = v2.Compose([
        v2.RandomResizedCrop(64, scale=(0.4, 1.0)), v2.RandomHorizontalFlip(), v2.RandomApply([jitter], 0.8),
        v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return faster(
        in_turns(
            lambda: augment.apply(images, augment.draw(config, 128, 3, 64, generator)),
            lambda: torch.stack([plain(image) for image in images]),
        )
    )


ROWS = (Row("augmentation, 128 views of 64 px", "torchvision, image by image", 1.5, augmentation),)
