"""What must hold of pretraining, each tried on the real loop (paper sections 3.1 and 3.2).

Where a loss is computed again beside the loop, it is written out from equation 1 in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_core import pretraining
from ssl_core.checkpoint import state_digest
from ssl_core.config import BarlowConfig, MseConfig
from ssl_core.data.dataset import TRAIN
from ssl_core.encoder import load_encoder
from ssl_core.errors import NonFiniteError
from ssl_core.key_queue import KeyQueue
from ssl_core.losses import mse_loss
from ssl_core.pretraining import Pretraining
from ssl_core.toy import Seen, Silent, Toy

MSE = MseConfig(scale=0.25, pool="grid")
BARLOW = BarlowConfig(blocks=(4,), width=8, scale=5e-5)
#: Two losses of one value in different order of summation differ by less.
CLOSE = 1e-4
#: Keys of one image, computed twice, are closer than this; those of two toy images are 0.4 apart or more.
SAME_KEY = 1e-2


def validation_changes_nothing(toy: Toy) -> Seen:
    """Validation leaves the key encoder, the queue and batch norm as they were."""
    run = toy.run(toy.pretraining(mse=MSE, barlow=BARLOW))
    run.train_epoch()
    before = copy.deepcopy(run.moco.state_dict())
    first = run.validate()
    after = run.moco.state_dict()
    moved = [name for name, value in before.items() if not _same(value, after[name])]
    again = run.validate()
    text = f"{len(before) - len(moved)} of {len(before)} tensors are the same to the bit after a validation pass"
    if moved:
        return Seen(passed=False, text=f"{text}; changed: {_some(moved)}")
    passed = first == again
    return Seen(passed=passed, text=f"{text}; a second pass gives {'the same' if passed else 'another'} loss")


def keys_are_queued_after_the_loss(toy: Toy) -> Seen:
    """No key of the current batch is among its negatives."""
    run = toy.run(toy.single_step(moco={"mask": "none"}))
    step = _Step.ahead(run)
    seen = run.train_epoch()["info_nce"]
    expected = step.info_nce(step.queue)
    leaked = step.info_nce(torch.cat([step.queue, step.k]))
    passed = abs(seen - expected) < CLOSE and abs(leaked - expected) > 10 * CLOSE
    return Seen(
        passed=passed,
        text=f"InfoNCE is {seen:.5f}; against the {len(step.queue)} keys queued before the batch it is {expected:.5f}, "
        f"with the batch's own {len(step.k)} among them {leaked:.5f}",
    )


def stale_keys_are_masked(toy: Toy) -> Seen:
    """No stale key of the same image, or of its group where groups are masked, is among a query's negatives."""
    groups = np.unique(toy.dataset.groups, return_inverse=True)[1]
    parts, passed = [], True
    for mask in ("image", "group"):
        run = toy.run(toy.single_step(moco={"mask": mask, "queue": len(toy.dataset.rows(TRAIN)) - 2}))
        first = _Step.ahead(run)
        run.train_epoch()
        step = _Step.ahead(run)
        origin, distance = _origin(step.queue, first.k)
        own = torch.from_numpy(np.arange(len(run.rows)) if mask == "image" else groups[run.rows])
        stale = own[:, None] == own[origin.cpu()]  # [B, K]
        seen = run.train_epoch()["info_nce"]
        expected = step.info_nce(step.queue, ~stale)
        unmasked = step.info_nce(step.queue)
        passed &= distance < SAME_KEY and abs(seen - expected) < CLOSE and abs(unmasked - expected) > 10 * CLOSE
        parts.append(
            f"mask {mask}: InfoNCE is {seen:.5f}; without the {int(stale.sum())} pairs of a query and a stale key of "
            f"its {mask} it is {expected:.5f}, with them {unmasked:.5f}"
        )
    return Seen(passed=passed, text="; ".join(parts))


def queue_keeps_keys_at_its_wrap(toy: Toy) -> Seen:
    """The queue holds the last K keys in order, each beside its code, when batches do not fit into it evenly."""
    wrong, sizes = [], ((8, 3), (7, 7), (9, 8), (5, 12))
    for size, batch in sizes:
        queue = KeyQueue(size, 2, 0).to(toy.device)
        angles = torch.linspace(0, 1, 5 * batch + 1, device=toy.device)[1:]
        keys, codes = torch.stack([angles.cos(), angles.sin()], 1), torch.arange(5 * batch, device=toy.device)
        for i in range(0, 5 * batch, batch):
            queue.enqueue(keys[i : i + batch], codes[i : i + batch])
            held = min(size, i + batch)
            expected = torch.arange(i + batch - held, i + batch, device=toy.device)
            found_codes, found_keys = (ring.roll(-queue.pointer, 0)[-held:] for ring in (queue.codes, queue.keys))
            if not torch.equal(found_codes, expected) or not torch.equal(found_keys, keys[expected]):
                wrong.append(f"K = {size}, batch {batch}: codes {found_codes.tolist()}, not {expected.tolist()}")
                break
    shapes = ", ".join(f"{batch} into {size}" for size, batch in sizes)
    text = f"batches of {shapes} keys, five each: every queue holds its last K keys in order"
    return Seen(passed=not wrong, text=wrong[0] if wrong else text)


def queue_survives_a_checkpoint(toy: Toy) -> Seen:
    """Keys, codes and the place of the next key come back from a checkpoint, and so does the next loss."""
    config, path = toy.pretraining(), toy.workdir("queue") / "checkpoint.pt"
    run = toy.run(config)
    run.train_epoch()
    run.save(path)
    other = toy.run(config)
    other.restore(path)
    old, new = run.moco.queue, other.moco.queue
    parts = {
        "keys": torch.equal(old.keys, new.keys),
        "codes": torch.equal(old.codes, new.codes),
        "pointer": old.pointer == new.pointer,
    }
    place = new.pointer
    losses = [r.train_epoch()["info_nce"] for r in (run, other)]
    parts["next loss"] = abs(losses[0] - losses[1]) <= _tolerance(toy)
    lost = [name for name, kept in parts.items() if not kept]
    text = f"{len(new)} keys, next place {place}; InfoNCE of the next epoch is {losses[0]:.6f} and {losses[1]:.6f}"
    return Seen(passed=not lost, text=f"{text}; not restored: {', '.join(lost)}" if lost else text)


def keys_keep_the_order_of_their_queries(toy: Toy) -> Seen:
    """With identical views each query's key, and each of its block features, is that of its own image."""
    run = toy.run(toy.single_step(moco={"mask": "image"}, mse=MSE, barlow=BarlowConfig(
        blocks=(1, 4), width=8, scale=5e-5, lambd=0.0, centred=False)))  # fmt: skip
    step = _Step.ahead(run)
    own = run.codes[torch.from_numpy(run.rows)].to(toy.device)
    terms = run.train_epoch()
    origin, distance = _origin(run.moco.queue.keys, step.k)
    matched = int((own[origin] == run.moco.queue.codes).sum())
    closest = (step.q @ step.k.T).argmax(1)
    diagonal = int((closest == torch.arange(len(closest), device=toy.device)).sum())
    apart = {f"mse_{b}": float(mse_loss(m, m.roll(1, 0), b, "grid")) for b, m in step.maps.items()}
    apart |= {"barlow_1": 1.0, "barlow_4": 1.0}  # of 8 features: what a batch out of order leaves is above 1
    late = [name for name, other in apart.items() if terms[name] > 0.01 * other]
    text = (
        f"{diagonal} of {len(closest)} queries have their own key closest, {matched} of {len(origin)} queued keys lie "
        f"beside their image's code; block losses of equal views are at most {max(terms[n] for n in apart):.2g}, out "
        f"of order mse is {min(apart.values()):.2g} or more"
    )
    passed = not late and matched == len(origin) and diagonal == len(closest) and distance < SAME_KEY
    return Seen(passed=passed, text=f"{text}; out of order: {', '.join(late)}" if late else text)


def key_encoder_is_the_moving_average(toy: Toy) -> Seen:
    """After a step every weight of h is m h + (1 - m) g, and no gradient reached it."""
    run = toy.run(toy.single_step(moco={"momentum": 0.9}, learning_rate=1.0))
    before = [p.detach().double().clone() for p in run.moco.key.parameters()]
    run.train_epoch()
    untouched = all(h.grad is None for h in run.moco.key.parameters())
    after = zip(before, run.moco.key.parameters(), run.moco.query.parameters(), strict=True)
    triples = [(old, h.detach().double(), g.detach().double()) for old, h, g in after]
    off = max(float((h - (0.9 * old + 0.1 * g)).abs().max()) for old, h, g in triples)
    moved = max(float((h - old).abs().max()) for old, h, _ in triples)
    passed = off < 1e-6 < moved and untouched
    return Seen(
        passed=passed,
        text=f"h moved by up to {moved:.2g} and is off m h + (1 - m) g by at most {off:.1g}; "
        f"{'no' if untouched else 'a'} gradient reached it",
    )


class _Interrupt(Exception):
    """A machine that is lost."""


class _Interrupting(Silent):
    def checkpoint(self, path: Path) -> None:
        raise _Interrupt(path)


def resume_changes_nothing(toy: Toy) -> Seen:
    """A run that is lost after its first step, and gone on with, equals one that is not."""
    config = toy.pretraining(mse=MSE, barlow=BARLOW)
    whole, halves = toy.workdir("whole"), toy.workdir("halves")
    pretraining.pretrain(config, toy.dataset, whole, Silent(), device=toy.device)
    try:
        pretraining.pretrain(config, toy.dataset, halves, _Interrupting(), checkpoint_seconds=0, device=toy.device)
    except _Interrupt:
        pretraining.pretrain(config, toy.dataset, halves, Silent(), device=toy.device)
    states = [load_encoder(folder / "encoder.pt")[0].state_dict() for folder in (whole, halves)]
    off = max(float((a.double() - b.double()).abs().max()) for a, b in zip(*map(dict.values, states), strict=True))
    digests = [state_digest(state)[:12] for state in states]
    passed = digests[0] == digests[1] if toy.device.type == "cpu" else off < 1e-2
    return Seen(
        passed=passed,
        text=f"the encoder's digest is {digests[0]} without and {digests[1]} with an interruption; "
        f"the largest difference of a weight is {off:.1g}",
    )


def a_loss_that_is_not_finite_stops(toy: Toy) -> Seen:
    """A loss that becomes NaN or infinite stops the training, and the message names the step."""
    run = toy.run(toy.pretraining())
    with torch.no_grad():
        next(run.moco.query.parameters()).fill_(torch.nan)
    try:
        terms = run.train_epoch()
    except NonFiniteError as error:
        return Seen(passed="at step 0" in str(error), text=f"a weight of NaN stops with: {error}")
    return Seen(passed=False, text=f"a weight of NaN stops nothing; the epoch ends with a loss of {terms['loss']}")


def bf16_agrees_with_float32(toy: Toy) -> Seen:
    """The losses in bf16 are those in float32, within its three digits."""
    values = {
        precision: toy.run(toy.single_step(mse=MSE, augment=toy.pretraining().augment, precision=precision)).validate()
        for precision in ("float32", "bf16")
    }
    names = ("val_info_nce", "val_mse_4", "val_loss")
    parts = [f"{name[4:]} {values['float32'][name]:.4f} and {values['bf16'][name]:.4f}" for name in names]
    passed = all(abs(values["bf16"][n] - values["float32"][n]) <= 0.05 * abs(values["float32"][n]) for n in names)
    return Seen(passed=passed, text=f"in float32 and in bf16: {', '.join(parts)}")


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What a run's next step will see, if it takes all training images as they are."""

    q: Tensor  # [B, D], in the order of `run.rows`
    k: Tensor  # [B, D]
    maps: Mapping[int, Tensor]  # of q's blocks
    queue: Tensor  # [K, D]
    temperature: float

    @classmethod
    @torch.no_grad()
    def ahead(cls, run: Pretraining) -> _Step:
        view = run.batches.plain(run.rows)
        q, maps = copy.deepcopy(run.moco.query).train()(view, (1, 2, 3, 4))
        k, _ = copy.deepcopy(run.moco.key).train()(view, ())
        return cls(q=q, k=k, maps=maps, queue=run.moco.queue.keys.clone(), temperature=run.config.moco.temperature)

    def info_nce(self, negatives: Tensor, allowed: Tensor | None = None) -> float:
        """Equation 1, averaged: negatives [K, D], of which query b sees those that allowed [B, K] lets it."""
        q, k, z = (x.double().cpu() for x in (self.q, self.k, negatives))
        positive = ((q * k).sum(1) / self.temperature).exp()
        others = (q @ z.T / self.temperature).exp()
        if allowed is not None:
            others = others * allowed
        return float(-(positive / (positive + others.sum(1))).log().mean())


def _origin(queued: Tensor, keys: Tensor) -> tuple[Tensor, float]:
    """(row of the key [B, D] that each queued key [K, D] is closest to, the largest such distance)."""
    distance, row = torch.cdist(queued, keys, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    return row, float(distance.max())


def _tolerance(toy: Toy) -> float:
    """Between two runs of the same steps: none on a CPU; an accelerator may sum in any order."""
    return 0.0 if toy.device.type == "cpu" else 1e-2


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
