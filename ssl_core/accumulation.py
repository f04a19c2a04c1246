"""A step's gradients from pieces of the batch, so that the activations of one piece at a time are in memory.

InfoNCE and mse are means over samples, whose gradients add up. Barlow's correlation is of the whole batch: its features
are computed piece by piece without a graph, the loss gives their gradient, and a second pass hands that on to the
encoder (gradient caching: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021).
What the pieces change is batch norm, which sees one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_core import distributed
from ssl_core.moco import Compared, Moco, total_loss


def backward(
    moco: Moco, views: Sequence[Tensor], codes: Tensor, step: int, n: int, pieces: int, autocast: torch.autocast
) -> tuple[dict[str, Tensor], Tensor]:
    """Leave the gradients of `Moco.forward`'s loss in the parameters, averaged over workers; its terms and keys.

    The two views [B, C, H, W] and codes [B] are this worker's part of a global batch of n, which is cut into `pieces`.
    """
    view1, view2 = views
    with autocast, torch.no_grad():
        keys, of_keys = moco.encode_keys(view2, step, n, pieces)
    batch_terms, gradients = _batch_terms(moco, view1, of_keys, pieces, autocast)

    sums = dict[str, Tensor]()
    begin = 0
    for piece in view1.tensor_split(pieces):
        part = slice(begin, begin := begin + len(piece))
        with autocast:
            q, of_q = moco.encode_queries(piece)
            of_k = {name: x[part] for name, x in of_keys.items()}
            terms = moco.sample_terms(q, keys[part], of_q, of_k, codes[part], n)
            loss = total_loss(terms, {name: scale for name, scale in moco.scales.items() if name in terms})
        handed_on = [(of_q[name] * gradient[part]).sum() for name, gradient in gradients.items()]
        torch.stack([loss, *handed_on]).sum().backward()  # type: ignore[no-untyped-call]
        sums = {name: sums.get(name, 0.0) + term.detach() for name, term in terms.items()}
    distributed.average_gradients(moco)
    whole = sums | batch_terms
    return {**whole, "loss": total_loss(whole, moco.scales)}, keys


def _batch_terms(
    moco: Moco, view1: Tensor, of_keys: Compared, pieces: int, autocast: torch.autocast
) -> tuple[dict[str, Tensor], Compared]:
    """The terms of the batch as a whole, and the loss's gradient with respect to the features [B, C] they compare.

    The projectors' gradients are left in them.
    """
    if moco.config.barlow is None:
        return {}, {}
    names = [f"barlow_{b}" for b in moco.config.barlow.blocks]
    before = Statistics(moco.query)
    with autocast, torch.no_grad():
        found = [moco.encode_queries(piece)[1] for piece in view1.tensor_split(pieces)]
    before.put_back()
    features = {name: torch.cat([of_piece[name] for of_piece in found]).requires_grad_() for name in names}
    with autocast:
        terms = moco.batch_terms(features, of_keys)
        loss = torch.stack([(moco.scales[name] or 0.0) * term for name, term in terms.items()]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: x.grad for name, x in features.items() if x.grad is not None}
    return {name: term.detach() for name, term in terms.items()}, gradients


class Statistics:
    """Batch norm's running statistics below a module as they were when this was made."""

    def __init__(self, module: nn.Module) -> None:
        norms = (part for part in module.modules() if isinstance(part, _BatchNorm))
        self._values = [(buffer, buffer.clone()) for part in norms for buffer in part.buffers()]

    def put_back(self) -> None:
        for buffer, value in self._values:
            buffer.copy_(value)
