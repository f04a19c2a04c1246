"""Momentum contrast with losses on intermediate blocks (paper sections 3.1 and 3.2, figure 1)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core import devices, distributed
from ssl_core.batch_norm import synchronise
from ssl_core.config import PretrainConfig, scale_of
from ssl_core.encoder import build_encoder, global_average
from ssl_core.errors import ConfigError
from ssl_core.feasibility import settle_pool
from ssl_core.initialisation import random_generator, seeded
from ssl_core.key_queue import KeyQueue
from ssl_core.losses import Pool, Projector, barlow_loss, info_nce, mse_loss, mse_pooled

#: What the block losses look at of a view, by the term's name: pooled maps, or global averages [B, C].
Compared = dict[str, Tensor]


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
        self.config = config = settle_pool(config)
        assert not isinstance(config.moco.queue, str)  # a number of keys needs a number of images: `settle_queue`
        self.pool: Pool = "gap" if config.mse is not None and config.mse.pool == "gap" else "grid"
        self.scales = block_scales(config)  # of the block losses, by the term's name
        self.query = Branch(config, channels)  # g
        if config.batch_norm == "sync":
            synchronise(self.query)
        self.key = copy.deepcopy(self.query).requires_grad_(False)  # h
        self.queue = KeyQueue(config.moco.queue, config.moco.dim, config.seed)
        self.projectors = nn.ModuleDict()  # a block's, shared by both views
        if config.barlow is not None:
            for b in config.barlow.blocks:
                with seeded(config.seed, "projector", b):
                    width = self.query.encoder.widths[b]
                    self.projectors[str(b)] = Projector(width, config.barlow.width, config.barlow.layers)
        if config.batch_norm == "sync":
            synchronise(self.projectors)

    def forward(
        self, view1: Tensor, view2: Tensor, codes: Tensor, step: int = 0, n: int | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms of a batch, and its keys [B, dim] to `enqueue` after the step.

        view1, view2 [B, C, H, W] are normalised views of the same images and codes [B] those images' (or groups')
        codes: a queued key of the same code is no negative. Terms are scalars: `info_nce`, the unscaled `mse_b` and
        `barlow_b` of each chosen block, and last `loss`, the total (section 4.1). Several workers each give their part
        of a global batch of n, needed where the parts are uneven; the mean of a term over workers is then that of the
        global batch, and so is the mean of its gradients. `step` tells one shuffle of keys from the next.
        """
        q, of_q = self.encode_queries(view1)
        with torch.no_grad():
            k, of_k = self.encode_keys(view2, step, n)
        terms = self.sample_terms(q, k, of_q, of_k, codes, n) | self.batch_terms(of_q, of_k)
        return {**terms, "loss": total_loss(terms, self.scales)}, k

    def sample_terms(
        self, q: Tensor, k: Tensor, of_q: Compared, of_k: Compared, codes: Tensor, n: int | None
    ) -> dict[str, Tensor]:
        """The terms that are means over samples, InfoNCE and mse: of any part of a batch, weighted by its share."""
        moco, mse = self.config.moco, self.config.mse
        mask = None if moco.mask == "none" else codes[:, None] == self.queue.codes  # [B, K]
        terms = {"info_nce": info_nce(q, k, self.queue.keys, moco.temperature, mask)}
        for name, b in ((f"mse_{b}", b) for b in (mse.blocks if mse else ())):
            terms[name] = mse_loss(of_q[name], of_k[name], b, self.pool)
        return {name: distributed.weighted(term, len(q), n) for name, term in terms.items()}

    def batch_terms(self, of_q: Compared, of_k: Compared) -> dict[str, Tensor]:
        """The terms that are of a batch as a whole, Barlow's: every worker gets that of the global batch."""
        terms, barlow = dict[str, Tensor](), self.config.barlow
        if barlow is not None:
            for name, b in ((f"barlow_{b}", b) for b in barlow.blocks):
                # The projector is trained through both views, though h gets no gradient.
                za, zb = self.projectors[str(b)](of_q[name], of_k[name])  # [B, d]
                terms[name] = barlow_loss(za, zb, barlow.lambd, barlow.centred)
        return terms

    def encode_queries(self, view1: Tensor) -> tuple[Tensor, Compared]:
        """g of view 1: embeddings [B, dim] and what the block losses compare."""
        q, maps = self.query(view1, self.config.blocks)
        return q, self._compared(maps)

    def _compared(self, maps: Mapping[int, Tensor]) -> Compared:
        mse, barlow = self.config.mse, self.config.barlow
        pooled = {f"mse_{b}": mse_pooled(maps[b], b, self.pool) for b in (mse.blocks if mse else ())}
        return pooled | {f"barlow_{b}": global_average(maps[b]) for b in (barlow.blocks if barlow else ())}

    def encode_keys(self, view2: Tensor, step: int, n: int | None, pieces: int = 1) -> tuple[Tensor, Compared]:
        """h of view 2, in so many pieces: keys [B, dim] and what the block losses compare, in their queries' order.

        Of several workers each encodes samples of all, so that batch norm over a worker's batch does not tell which
        query a key belongs to (MoCo's shuffling); then both are dealt back, or with `shuffle_keys: embedding` the keys
        alone. Block features travel pooled.
        """
        if distributed.world() == 1 or self.config.moco.shuffle_keys == "none":
            return self._keys_of(view2, pieces)
        n = len(view2) * distributed.world() if n is None else n
        order = torch.randperm(n, generator=random_generator(self.config.seed, "shuffle", step))
        order, back = (devices.to_device(o, view2.device) for o in (order, order.argsort()))
        dealt = distributed.deal(view2, order).contiguous(memory_format=torch.channels_last)
        k, features = self._keys_of(dealt, pieces)
        if self.config.moco.shuffle_keys == "undone":
            features = {name: distributed.deal(x, back) for name, x in features.items()}
        return distributed.deal(k, back), features

    def _keys_of(self, view2: Tensor, pieces: int) -> tuple[Tensor, Compared]:
        if pieces == 1:
            k, maps = self.key(view2, self.config.blocks)
            return k, self._compared(maps)
        encoded = [self.key(piece, self.config.blocks) for piece in view2.tensor_split(pieces)]
        compared = [self._compared(maps) for _, maps in encoded]
        return torch.cat([k for k, _ in encoded]), {
            name: torch.cat([of_piece[name] for of_piece in compared]) for name in compared[0]
        }

    @torch.no_grad()
    def update_keys(self) -> None:
        """h <- m h + (1 - m) g, parameter by parameter; buffers are h's own."""
        h: list[Tensor] = list(self.key.parameters())
        g: list[Tensor] = list(self.query.parameters())
        torch._foreach_lerp_(h, g, 1 - self.config.moco.momentum)


def block_scales(config: PretrainConfig) -> dict[str, float | None]:
    """Scale of each block loss term, by the term's name; None where `auto` is still to be measured."""
    scales: dict[str, float | None] = {}
    for name, loss in (("mse", config.mse), ("barlow", config.barlow)):
        if loss is not None:
            known = {} if isinstance(loss.scale, str) else scale_of(loss.scale, loss.blocks)
            scales |= {f"{name}_{b}": known.get(b) for b in loss.blocks}
    return scales


def total_loss(terms: Mapping[str, Tensor], scales: Mapping[str, float | None]) -> Tensor:
    """InfoNCE + sum over the chosen blocks of scale x block loss (section 4.1)."""
    loss = terms["info_nce"]
    for name, scale in scales.items():
        if scale is None:
            raise ConfigError(f"{name}: its scale is auto, which has to be measured before there is a total loss")
        loss = loss + scale * terms[name]
    return loss
