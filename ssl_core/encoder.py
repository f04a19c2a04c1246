"""The encoder whose features everything is about: a ResNet that hands out the maps of its four blocks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from ssl_core import checkpoint
from ssl_core.config import BLOCKS, EncoderConfig
from ssl_core.convolution import quicken
from ssl_core.errors import CheckpointError, DataError
from ssl_core.initialisation import seeded


def global_average(maps: Tensor) -> Tensor:
    """Global average pooling, [B, C, h, w] -> [B, C], summed in float32 at least.

    Its gradient lies channels last in memory, as the maps of an encoder do; torch's mean over the last two would not.
    """
    return maps.permute(0, 2, 3, 1).mean(dim=(1, 2), dtype=torch.promote_types(maps.dtype, torch.float32))


class Encoder(nn.Module):
    """torchvision's ResNet without its classifier; parameters keep torchvision's names (`conv1`, `layer1.0.bn1`, ...).

    `dim` is the width of the embedding, `widths[b]` the channels of block b. The weights come from the global random
    state; `build_encoder` draws them from a named seed.
    """

    def __init__(self, config: EncoderConfig, channels: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise DataError(f"images have {channels} channels; the encoder takes 1 (grey) or 3 (RGB)")
        self.config = config
        self.channels = channels
        net = getattr(resnet, config.arch)(weights=None, zero_init_residual=config.zero_init_residual)
        small = config.stem == "small"
        if small or channels != net.conv1.in_channels:
            kernel, stride = (3, 1) if small else (7, 2)
            net.conv1 = nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's own
        self.conv1, self.bn1, self.relu = net.conv1, net.bn1, net.relu
        self.maxpool = nn.Identity() if small else net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        quicken(self)
        expansion = net.fc.in_features // 512  # 1 for basic blocks, 4 for bottlenecks
        self.widths: dict[int, int] = {b: 64 * 2 ** (b - 1) * expansion for b in BLOCKS}
        self.dim = self.widths[4]

    def forward(self, x: Tensor, blocks: tuple[int, ...] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Normalised images [B, C, H, W] -> embedding [B, dim] and the maps [B, widths[b], h, w] of the asked blocks.

        Block b's map is the output of ResNet stage b; the embedding is the global average of block 4's map. With the
        standard stem block b's side is H / 2**(b+1), with the small stem H / 2**(b-1), rounded up.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps: dict[int, Tensor] = {}
        for b, layer in zip(BLOCKS, (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            x = layer(x)
            if b in blocks:
                maps[b] = x
        return global_average(x), maps


def build_encoder(config: EncoderConfig, channels: int, seed: int) -> Encoder:
    """An encoder whose random weights depend on `seed` alone: every arm of a seed starts from the same weights."""
    with seeded(seed, "encoder"):
        return Encoder(config, channels)


def encoder_payload(encoder: Encoder, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Any]:
    """What a file must hold for `load_encoder`: weights, architecture, and the normalisation its inputs need."""
    return {
        "config": asdict(encoder.config),
        "channels": encoder.channels,
        "mean": list(mean),
        "std": list(std),
        "state": {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()},
    }


def save_encoder(path: Path, encoder: Encoder, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Write `encoder.pt`. `mean` and `std` a channel, of pixels in [0, 1], are those the encoder was trained with."""
    checkpoint.save(path, encoder_payload(encoder, mean, std))


def load_encoder(path: Path) -> tuple[Encoder, int, tuple[float, ...], tuple[float, ...]]:
    """(encoder in eval mode on the CPU, channels, mean, std) of an `encoder.pt` or of a fine-tuned `model.pt`.

    Raises CheckpointError, naming the path, if the file is missing, truncated or not an encoder.
    """
    payload = checkpoint.load(path)
    return (encoder := encoder_of(payload, path)), encoder.channels, tuple(payload["mean"]), tuple(payload["std"])


def encoder_of(payload: dict[str, Any], path: Path) -> Encoder:
    """The encoder inside a payload that was read from `path`, in eval mode."""
    try:
        with torch.random.fork_rng(devices=[]):  # the random weights are overwritten; the caller's state is not ours
            encoder = Encoder(EncoderConfig(**payload["config"]), payload["channels"])
        encoder.load_state_dict(payload["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no encoder ({error}); give an encoder.pt or a model.pt") from error
    return encoder.eval()
