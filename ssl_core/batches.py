"""From row numbers to normalised tensors on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_core import augment, devices
from ssl_core.config import AugmentConfig
from ssl_core.data.dataset import Dataset
from ssl_core.distributed import share

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Batches:
    """A dataset's images as the encoder wants them: `mean` and `std` a channel, of pixels in [0, 1]."""

    dataset: Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    def plain(self, rows: Rows) -> Tensor:
        """Images [B, C, H, W] without augmentation."""
        return plain(self.dataset.images[rows], self.mean, self.std, self.device)

    def views(self, rows: Rows, config: AugmentConfig, generator: torch.Generator, count: int) -> list[Tensor]:
        """`count` views [B / world, C, H, W] of this worker's part of the global batch `rows`.

        Parameters are drawn for the global batch, so a sample's views do not depend on the number of workers.
        """
        part = share(len(rows))
        images = self._load(rows[part])
        channels, size = self.dataset.channels, self.dataset.size
        drawn = [augment.draw(config, len(rows), channels, size, generator) for _ in range(count)]
        return [_normalised(augment.apply(images, parameters[part]), self.mean, self.std) for parameters in drawn]

    def _load(self, rows: Rows) -> Tensor:
        return _placed(self.dataset.images[rows], self.device)  # copied out of the memory map


def plain(pixels: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Pixels [B, H, W, C] as an encoder's input [B, C, H, W] on the device: what is evaluated, and what is served."""
    return _normalised(augment.prepare(_placed(pixels, device)), mean, std)


def _placed(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    return devices.to_device(torch.from_numpy(pixels), device).permute(0, 3, 1, 2)  # [B, C, H, W], channels last


def _normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return augment.normalise(images, mean, std).contiguous(memory_format=torch.channels_last)


def statistics(dataset: Dataset, normalise: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) a channel: the training set's, or those that change nothing."""
    if normalise:
        return dataset.mean, dataset.std
    return (0.0,) * dataset.channels, (1.0,) * dataset.channels
