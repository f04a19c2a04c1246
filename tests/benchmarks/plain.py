"""MoCo with losses on blocks, written the way that MoCo's and Barlow Twins' published code is.

Float32, torch's default layout, one image at a time in a loader, and nothing shared, fused or cut short. The benchmark
races the step against this one; a test holds the step's losses, gradients and queue to it.
"""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Images
from torchvision.transforms import v2

from ssl_core.config import AugmentConfig, PretrainConfig
from ssl_core.data.dataset import TRAIN, Dataset
from ssl_core.key_queue import NO_IMAGE

Terms = dict[str, Tensor]


class PlainMoco(nn.Module):
    """Encoders g and h, a queue of K keys, and projectors; `config` as the product takes it, its scales numbers."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config, moco = config, config.moco
        self.encoder_q = torchvision.models.get_model(config.encoder.arch, zero_init_residual=True)
        width = self.encoder_q.fc.in_features
        self.encoder_q.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, moco.dim))
        self.encoder_k = copy.deepcopy(self.encoder_q)
        for parameter in self.encoder_k.parameters():
            parameter.requires_grad = False
        self.projectors = nn.ModuleDict()
        if config.barlow is not None:
            for b in config.barlow.blocks:
                channels, d = 64 * 2 ** (b - 1) * width // 512, config.barlow.width
                self.projectors[str(b)] = nn.Sequential(
                    nn.Linear(channels, d, bias=False), nn.BatchNorm1d(d), nn.ReLU(),
                    nn.Linear(d, d, bias=False), nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, d, bias=False),
                )  # fmt: skip
        self.register_buffer("queue", F.normalize(torch.randn(moco.dim, moco.queue), dim=0))
        self.register_buffer("queue_codes", torch.full((moco.queue,), NO_IMAGE))
        self.pointer = 0

    def forward(self, im_q: Tensor, im_k: Tensor, codes: Tensor) -> Terms:
        """Loss terms of two views [B, C, H, W]; the keys of the second are in the queue when it returns."""
        q, maps_q = _encode(self.encoder_q, im_q)
        with torch.no_grad():
            self._momentum_update()
            k, maps_k = _encode(self.encoder_k, im_k)

        l_pos = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        l_neg = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
        own = codes.unsqueeze(1) == self.queue_codes.clone().unsqueeze(0)
        l_neg = l_neg.masked_fill(own, float("-inf"))
        logits = torch.cat([l_pos, l_neg], dim=1) / self.config.moco.temperature
        terms = {"info_nce": F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))}
        self._enqueue(k, codes)

        loss = terms["info_nce"]
        if (mse := self.config.mse) is not None:
            for b in mse.blocks:
                side = 1 if mse.pool == "gap" else min({1: 16, 2: 16, 3: 4, 4: 4}[b], maps_q[b].shape[-1])
                a, c = (F.adaptive_avg_pool2d(maps[b], side) for maps in (maps_q, maps_k))
                terms[f"mse_{b}"] = F.mse_loss(a, c)
                loss = loss + mse.scale * terms[f"mse_{b}"]
        if (barlow := self.config.barlow) is not None:
            for b in barlow.blocks:
                z1, z2 = (self.projectors[str(b)](maps[b].mean(dim=(2, 3))) for maps in (maps_q, maps_k))
                terms[f"barlow_{b}"] = _barlow(z1, z2, barlow.lambd)
                loss = loss + barlow.scale * terms[f"barlow_{b}"]
        return {**terms, "loss": loss}

    @torch.no_grad()
    def _momentum_update(self) -> None:
        m = self.config.moco.momentum
        for param_q, param_k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            param_k.data = param_k.data * m + param_q.data * (1.0 - m)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, codes: Tensor) -> None:
        size, n = self.queue.shape[1], len(keys)
        assert size % n == 0  # for simplicity
        self.queue[:, self.pointer : self.pointer + n] = keys.T
        self.queue_codes[self.pointer : self.pointer + n] = codes
        self.pointer = (self.pointer + n) % size


def _encode(encoder: nn.Module, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Unit-length embeddings [B, dim] and the maps of the four blocks."""
    x = encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(x))))
    maps = {}
    for b, layer in enumerate((encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4), start=1):
        maps[b] = x = layer(x)
    return F.normalize(encoder.fc(torch.flatten(encoder.avgpool(x), 1)), dim=1), maps


def _barlow(z1: Tensor, z2: Tensor, lambd: float) -> Tensor:
    d = z1.shape[1]
    bn = nn.BatchNorm1d(d, affine=False)
    c = bn(z1).T @ bn(z2)
    c = c / len(z1)
    on_diag = torch.diagonal(c).add_(-1).pow_(2).sum()
    off_diag = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten().pow_(2).sum()
    return on_diag + lambd * off_diag


class PlainTraining:
    """The loop around `PlainMoco`: a loader of two views, SGD at a constant rate."""

    def __init__(self, config: PretrainConfig, dataset: Dataset, workers: int = 0) -> None:
        self.model = PlainMoco(config)
        groups = np.unique(dataset.groups, return_inverse=True)[1]
        self.loader = DataLoader(
            TwoViews(dataset, config.augment, groups), config.batch_size, shuffle=True, drop_last=True,
            num_workers=workers, persistent_workers=workers > 0,
        )  # fmt: skip
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=config.learning_rate, momentum=config.sgd_momentum,
        )  # fmt: skip

    def train_epoch(self) -> list[dict[str, float]]:
        self.model.train()
        return [self.step(*batch) for batch in self.loader]

    def step(self, im_q: Tensor, im_k: Tensor, codes: Tensor) -> dict[str, float]:
        """One optimisation step; its loss terms."""
        terms = self.model(im_q, im_k, codes)
        self.optimizer.zero_grad()
        terms["loss"].backward()
        self.optimizer.step()
        return {name: term.item() for name, term in terms.items()}


class TwoViews(Images):
    """Two random views of each training image, and its group's number."""

    def __init__(self, dataset: Dataset, config: AugmentConfig, groups: NDArray[np.int64]) -> None:
        self.dataset, self.rows, self.groups = dataset, dataset.rows(TRAIN), groups
        self.transform = _transform(config, dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        row = self.rows[index]
        image = Image.fromarray(self.dataset.images[row])
        return self.transform(image), self.transform(image), int(self.groups[row])


class Blur:
    """PIL's Gaussian blur of a random sigma."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))


def _transform(config: AugmentConfig, dataset: Dataset) -> v2.Transform:
    """MoCo v2's augmentation, on PIL images."""
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    return v2.Compose([
        v2.RandomResizedCrop(dataset.size, scale=config.crop),
        v2.RandomApply([jitter], config.jitter),
        v2.RandomGrayscale(config.grey),
        v2.RandomApply([v2.Lambda(Blur(config.blur_sigma))], config.blur),
        v2.RandomHorizontalFlip(config.flip),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(dataset.mean, dataset.std),
    ])  # fmt: skip
