"""Momentum contrast with losses on intermediate blocks (paper sections 3.1 and 3.2, figure 1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core.config import PretrainConfig, scale_of
from ssl_core.encoder import build_encoder, global_average
from ssl_core.initialisation import seeded
from ssl_core.key_queue import KeyQueue
from ssl_core.losses import Projector, barlow_loss, info_nce, mse_loss


class Branch(nn.Module):
    """An encoder and its projection head: the paper's g, or h."""

    def __init__(self, config: PretrainConfig, channels: int) -> None:
        super().__init__()
        self.encoder = build_encoder(config.encoder, channels, config.seed)
        width, dim = self.encoder.dim, config.moco.dim
        with seeded(config.seed, "head"):
            match config.moco.head:
                case "linear":  # MoCo v1
                    self.head: nn.Module = nn.Linear(width, dim)
                case "mlp":  # MoCo v2
                    self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, dim))

    def forward(self, view: Tensor, blocks: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        """View [B, C, H, W] -> unit-length embedding [B, dim] in float32, and the asked blocks' maps."""
        embedding, maps = self.encoder(view, blocks)
        return F.normalize(self.head(embedding).float(), dim=1), maps


class Moco(nn.Module):
    """Query branch g, key branch h, queue, and the block losses' projectors.

    A training step is: `forward`, the optimiser's step on g and the projectors, `update_keys`, `enqueue`. In training
    mode h normalises by its own batch and keeps its own batch norm statistics, as in MoCo's published code; only h's
    parameters follow g.
    """

    def __init__(self, config: PretrainConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.query = Branch(config, channels)  # g
        self.key = copy.deepcopy(self.query).requires_grad_(False)  # h
        self.queue = KeyQueue(config.moco.queue, config.moco.dim, config.seed)
        self.projectors = nn.ModuleDict()  # a block's, shared by both views
        if config.barlow is not None:
            for b in config.barlow.blocks:
                with seeded(config.seed, "projector", b):
                    width = self.query.encoder.widths[b]
                    self.projectors[str(b)] = Projector(width, config.barlow.width, config.barlow.layers)

    def forward(self, view1: Tensor, view2: Tensor, codes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms of a batch, and its keys [B, dim] to `enqueue` after the step.

        view1, view2 [B, C, H, W] are normalised views of the same images and codes [B] those images' (or groups')
        codes: a queued key of the same code is no negative. Terms are scalars: `info_nce`, the unscaled `mse_b` and
        `barlow_b` of each chosen block, and last `loss`, the total (section 4.1).
        """
        moco, mse, barlow = self.config.moco, self.config.mse, self.config.barlow
        q, maps_q = self.query(view1, self.config.blocks)
        with torch.no_grad():
            k, maps_k = self.key(view2, self.config.blocks)

        mask = None if moco.mask == "none" else codes[:, None] == self.queue.codes  # [B, K]
        terms = {"info_nce": info_nce(q, k, self.queue.keys, moco.temperature, mask)}
        if mse is not None:
            for b in mse.blocks:
                terms[f"mse_{b}"] = mse_loss(maps_q[b], maps_k[b], b, mse.pool)
        if barlow is not None:
            for b in barlow.blocks:
                projector = self.projectors[str(b)]  # trained through both views, though h gets no gradient
                za, zb = projector(global_average(maps_q[b])), projector(global_average(maps_k[b]))  # [B, d]
                terms[f"barlow_{b}"] = barlow_loss(za, zb, barlow.lambd, barlow.centred)
        return {**terms, "loss": total_loss(terms, self.config)}, k

    @torch.no_grad()
    def update_keys(self) -> None:
        """h <- m h + (1 - m) g, parameter by parameter; buffers are h's own."""
        h: list[Tensor] = list(self.key.parameters())
        g: list[Tensor] = list(self.query.parameters())
        torch._foreach_lerp_(h, g, 1 - self.config.moco.momentum)


def block_scales(config: PretrainConfig) -> dict[str, float]:
    """Scale of each block loss term, by the term's name."""
    losses = {"mse": config.mse, "barlow": config.barlow}
    return {
        f"{name}_{b}": scale
        for name, loss in losses.items()
        if loss is not None
        for b, scale in scale_of(loss.scale, loss.blocks).items()
    }


def total_loss(terms: Mapping[str, Tensor], config: PretrainConfig) -> Tensor:
    """InfoNCE + sum over the chosen blocks of scale x block loss (section 4.1)."""
    loss = terms["info_nce"]
    for name, scale in block_scales(config).items():
        loss = loss + scale * terms[name]
    return loss
