"""The three losses, in the paper's symbols (sections 3.1 and 3.2). All are computed in float32, under autocast too."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_core import distributed
from ssl_core.config import MSE_GRID
from ssl_core.encoder import global_average

Pool = Literal["grid", "gap"]

#: Added to the variance before the square root in the centred correlation, as batch norm does.
BATCH_NORM_EPS = 1e-5
#: Least norm of a feature over the batch in the uncentred correlation: a feature that is zero correlates with nothing.
NORM_EPS = 1e-12


def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """InfoNCE (equation 1), averaged over the batch: -log( e^(q.k/t) / (e^(q.k/t) + sum_i e^(q.z_i/t)) ).

    q, k [B, D] embeddings of the two views and queue [K, D] negatives, all of unit length; mask [B, K] is true where
    queue entry i is no negative of sample b. 0 for a sample whose negatives are all masked.
    """
    with _float32(q):
        q, k = _full(q), _full(k)
        positive = (q * k).sum(dim=1) / temperature  # [B]
        negative = (q / temperature) @ queue.to(q.dtype).T  # [B, K]: as large as the step's other tensors together
        if mask is not None:
            negative = negative.masked_fill_(mask, -torch.inf)
        # -log(e^p / (e^p + S)) = log(1 + S/e^p) = softplus(log S - p); no [B, 1+K] matrix is ever put together.
        return F.softplus(negative.logsumexp(dim=1) - positive, threshold=50.0).mean()


def mse_loss(a: Tensor, b: Tensor, block: int, pool: Pool) -> Tensor:
    """Mean squared error of two maps [B, C, h, w] of `block` after average pooling (section 3.2.1).

    Maps that are pooled already stay as they are.
    """
    with _float32(a):
        a, b = (mse_pooled(x, block, pool).permute(0, 2, 3, 1) for x in (a, b))
        return F.mse_loss(a, b)  # its gradient is laid out C last: of maps that are, too, as the layers below want it


def mse_pooled(x: Tensor, block: int, pool: Pool) -> Tensor:
    """What `mse_loss` compares of a map [B, C, h, w] of `block`, in float32.

    `grid` pools to the paper's 16, 16, 4, 4 cells a side, or leaves the map's own side where that is less; `gap` pools
    to a single cell.
    """
    if pool == "gap":
        return global_average(x)[:, :, None, None]
    with _float32(x):
        grid = (min(MSE_GRID[block], x.shape[2]), min(MSE_GRID[block], x.shape[3]))
        return _full(x) if grid == x.shape[2:] else F.adaptive_avg_pool2d(_full(x), grid)


def barlow_loss(za: Tensor, zb: Tensor, lambd: float, centred: bool) -> Tensor:
    """Distance of the two views' cross-correlation matrix C [d, d] from the identity (section 3.2.2):

    sum_i (1 - C_ii)^2 + lambd * sum_{i != j} C_ij^2, for features za, zb [B, d]. `centred` takes each feature's mean
    off first, as batch norm would; the paper's formula does not. With several workers C is that of the global batch.
    """
    with _float32(za):
        C = cross_correlation(_full(za), _full(zb), centred)
        invariance = (1 - C.diagonal()).square().sum()
        d = len(C)
        # Without its last entry the flat matrix, in rows of d + 1, has the diagonal as its first column.
        redundancy = C.flatten()[:-1].view(d - 1, d + 1)[:, 1:].square().sum()
        return invariance + lambd * redundancy


def cross_correlation(za: Tensor, zb: Tensor, centred: bool) -> Tensor:
    """C_ij = sum_b za_bi zb_bj / (|za_i| |zb_j|), [d, d], of the global batch; za, zb [B, d] are this worker's part."""
    n = distributed.batch_size(za)
    if centred:
        za, zb = _standardise(za, n), _standardise(zb, n)
        return distributed.sum_with_gradient(za.T @ zb) / n
    norm_a, norm_b = (
        distributed.sum_with_gradient(z.square().sum(dim=0)).clamp_min(NORM_EPS**2).sqrt() for z in (za, zb)
    )
    return distributed.sum_with_gradient(za.T @ zb) / (norm_a[:, None] * norm_b)


def _standardise(z: Tensor, n: int | Tensor) -> Tensor:
    """Each feature less its mean, by its standard deviation (biased), both over the global batch of n."""
    z = z - distributed.sum_with_gradient(z.sum(dim=0)) / n
    variance = distributed.sum_with_gradient(z.square().sum(dim=0)) / n
    return z * (variance + BATCH_NORM_EPS).rsqrt()


class Projector(nn.ModuleList):
    """Linear layers of `width`, all but the last followed by batch norm and ReLU.

    One a block, shared by both views and trained by gradient (section 3.2.2). No biases, as in Barlow Twins: batch
    norm, and the centring of the correlation, would take them out again.
    """

    def __init__(self, channels: int, width: int, layers: int) -> None:
        modules: list[nn.Module] = []
        for i in range(layers):
            modules.append(nn.Linear(width if i else channels, width, bias=False))
            if i < layers - 1:
                modules += [nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        super().__init__(modules)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Both views' features [B, channels] -> [B, width]. They pass together, but batch norm is over one view."""
        x = torch.cat([a, b])
        for module in self:
            if isinstance(module, _BatchNorm):
                x = torch.cat([module(view) for view in x.tensor_split((len(a),))])
            else:
                x = module(x)
        return x[: len(a)], x[len(a) :]


def _float32(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


def _full(x: Tensor) -> Tensor:
    """At least float32: bf16 is widened, float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
