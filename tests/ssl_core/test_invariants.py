"""Each invariant holds, and fails where the code is broken on purpose: the defect is put into the real modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_core import (
    augment,
    distributed,
    downstream_invariants,
    finetuning,
    invariants,
    moco,
    pretraining,
    worker_invariants,
)
from ssl_core import pretraining_invariants as of_pretraining
from ssl_core.classifier import Classifier
from ssl_core.config import PretrainConfig
from ssl_core.data import splits
from ssl_core.finetuning import Finetuning
from ssl_core.invariants import INVARIANTS, Invariant, Verdict, check
from ssl_core.key_queue import KeyQueue
from ssl_core.losses import info_nce
from ssl_core.moco import Branch, Moco
from ssl_core.pretraining import Pretraining
from ssl_core.toy import Seen, Toy

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def unbroken() -> list[Verdict]:
    return check(device="cpu")


@pytest.mark.parametrize("number", range(len(INVARIANTS)), ids=lambda n: INVARIANTS[n].__name__)
def test_it_holds(unbroken: list[Verdict], number: int) -> None:
    verdict = unbroken[number]
    assert verdict.name == INVARIANTS[number].__name__
    assert verdict.passed, verdict.text
    assert any(c.isdigit() for c in verdict.text), "a sentence with numbers"
    assert verdict.claim.endswith(".")


# --- what may be wrong with pretraining


def validation_that_enqueues(patch: Patch) -> None:
    validate = Pretraining.validate

    def broken(self: Pretraining) -> dict[str, float]:
        keys = self.moco.queue.keys.flip(0)[:4]
        self.moco.queue.enqueue(keys, torch.arange(4))
        return validate(self)

    patch.setattr(Pretraining, "validate", broken)


def validation_that_moves_the_key_encoder(patch: Patch) -> None:
    validate = Pretraining.validate

    def broken(self: Pretraining) -> dict[str, float]:
        self.moco.update_keys()
        return validate(self)

    patch.setattr(Pretraining, "validate", broken)


def validation_in_training_mode(patch: Patch) -> None:
    patch.setattr(Moco, "eval", lambda self: self.train())


def keys_queued_before_the_loss(patch: Patch) -> None:
    forward = Moco.forward

    def broken(self: Moco, view1: Tensor, view2: Tensor, codes: Tensor, *more: Any) -> Any:
        with torch.no_grad():
            self.queue.enqueue(self.key(view2, ())[0], codes)
        return forward(self, view1, view2, codes, *more)

    patch.setattr(Moco, "forward", broken)


def masks_that_are_ignored(patch: Patch) -> None:
    patch.setattr(moco, "info_nce", lambda q, k, queue, t, mask=None: info_nce(q, k, queue, t))


def masks_of_images_where_groups_are_asked(patch: Patch) -> None:
    patch.setattr(pretraining, "_codes", lambda config, dataset: torch.arange(len(dataset)))


def codes_of_the_batch_before(patch: Patch) -> None:
    """Codes that lag behind their keys."""
    enqueue = KeyQueue.enqueue
    patch.setattr(KeyQueue, "enqueue", lambda self, keys, codes: enqueue(self, keys, codes.roll(1)))


def a_queue_that_drops_the_rest_at_its_end(patch: Patch) -> None:
    def broken(self: KeyQueue, keys: Tensor, codes: Tensor) -> None:
        first = min(len(keys), len(self) - self.pointer)
        self.keys[self.pointer : self.pointer + first] = keys[:first]
        self.codes[self.pointer : self.pointer + first] = codes[:first]
        self.pointer = (self.pointer + first) % len(self)

    patch.setattr(KeyQueue, "enqueue", broken)


def a_checkpoint_without_the_queues_place(patch: Patch) -> None:
    patch.setattr(KeyQueue, "set_extra_state", lambda self, state: None)


def a_checkpoint_without_the_optimiser(patch: Patch) -> None:
    patch.setattr(torch.optim.SGD, "load_state_dict", lambda self, state: None)


def block_features_out_of_order(patch: Patch) -> None:
    forward = Branch.forward

    def broken(self: Branch, view: Tensor, blocks: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        embedding, maps = forward(self, view, blocks)
        is_key = not next(self.parameters()).requires_grad
        return embedding, {b: m.roll(1, 0) if is_key else m for b, m in maps.items()}

    patch.setattr(Branch, "forward", broken)


def workers_that_leave_blocks_out_of_order(patch: Patch) -> None:
    """The authors' setting, which unshuffles the keys alone."""
    patch.setattr(worker_invariants, "SHUFFLE", "embedding")


def a_moving_average_the_wrong_way_round(patch: Patch) -> None:
    def broken(self: Moco) -> None:
        with torch.no_grad():
            for h, g in zip(self.key.parameters(), self.query.parameters(), strict=True):
                h.lerp_(g, self.config.moco.momentum)

    patch.setattr(Moco, "update_keys", broken)


def a_key_encoder_that_stays(patch: Patch) -> None:
    patch.setattr(Moco, "update_keys", lambda self: None)


def pretraining_that_ignores_nan(patch: Patch) -> None:
    def broken(steps: Any, first: int) -> list[dict[str, float]]:
        return [{name: float(value) for name, value in terms.items()} for terms in steps]

    patch.setattr(pretraining, "read_terms", broken)


def bf16_that_loses_its_digits(patch: Patch) -> None:
    def broken(q: Tensor, k: Tensor, queue: Tensor, t: float, mask: Tensor | None = None) -> Tensor:
        return info_nce(q, k, queue, t, mask) * (1.2 if torch.is_autocast_enabled("cpu") else 1.0)

    patch.setattr(moco, "info_nce", broken)


# --- and with fine-tuning


def finetuning_that_ignores_nan(patch: Patch) -> None:
    patch.setattr(Finetuning, "train", lambda self, log, reporter: None)
    patch.setattr(finetuning.metrics, "score", lambda *words: 0.5)
    patch.setattr(finetuning.metrics, "rows", lambda *words, **more: [])


def a_frozen_encoder_whose_batch_norm_moves(patch: Patch) -> None:
    patch.setattr(Classifier, "train", nn.Module.train)


def the_last_weights_instead_of_the_best(patch: Patch) -> None:
    patch.setattr(Finetuning, "_put_back", lambda self, weights: None)


def predictions_in_the_precision_of_the_training(patch: Patch) -> None:
    """Of bf16, whatever this machine trains in."""
    predict = Finetuning.predict
    patch.setattr(Finetuning, "predict", lambda self, split, precision="bf16": predict(self, split, precision))


def a_fraction_that_drops_augmentation(patch: Patch) -> None:
    made = Finetuning.__init__

    def broken(self: Finetuning, config: Any, *rest: Any) -> None:
        made(self, config, *rest)
        if config.fraction < 1:
            self.config = dataclasses.replace(config, augment=augment.AugmentConfig(flip=0.5, jitter=0, grey=0, blur=0))

    patch.setattr(Finetuning, "__init__", broken)


def an_arm_of_another_seed(patch: Patch) -> None:
    made = Branch.__init__

    def broken(self: Branch, config: PretrainConfig, channels: int) -> None:
        made(self, dataclasses.replace(config, seed=config.seed + (config.mse is not None)), channels)

    patch.setattr(Branch, "__init__", broken)


def scratch_of_another_seed(patch: Patch) -> None:
    build = finetuning.build_encoder
    patch.setattr(finetuning, "build_encoder", lambda config, channels, seed: build(config, channels, seed + 1))


def fractions_drawn_each_for_itself(patch: Patch) -> None:
    def broken(labels: Any, of: Any, *, fraction: float, seed: int, **more: Any) -> Any:
        rows = np.flatnonzero(of == 0)
        rng = np.random.default_rng(int(100 * fraction))
        return np.sort(rng.permutation(rows)[: round(fraction * len(rows))])

    patch.setattr(finetuning, "label_subset", broken)


def splits_made_image_by_image(patch: Patch) -> None:
    def broken(labels: Any, groups: Any, **settings: Any) -> Any:
        return np.random.default_rng(1).integers(0, 3, len(labels)).astype(np.int8)

    patch.setattr(splits, "make_splits", broken)


DEFECTS: list[tuple[Invariant, Callable[[Patch], None], str]] = [
    (of_pretraining.validation_changes_nothing, validation_that_enqueues, "queue.keys"),
    (of_pretraining.validation_changes_nothing, validation_that_moves_the_key_encoder, "key.encoder"),
    (of_pretraining.validation_changes_nothing, validation_in_training_mode, "running_mean"),
    (of_pretraining.keys_are_queued_after_the_loss, keys_queued_before_the_loss, "InfoNCE is"),
    (of_pretraining.stale_keys_are_masked, masks_that_are_ignored, "InfoNCE is"),
    (of_pretraining.stale_keys_are_masked, masks_of_images_where_groups_are_asked, "mask group: InfoNCE is"),
    (of_pretraining.queue_keeps_keys_at_its_wrap, a_queue_that_drops_the_rest_at_its_end, "K = 8, batch 3"),
    (of_pretraining.queue_survives_a_checkpoint, a_checkpoint_without_the_queues_place, "not restored: pointer"),
    (of_pretraining.keys_keep_the_order_of_their_queries, block_features_out_of_order, "out of order: mse_1"),
    (of_pretraining.keys_keep_the_order_of_their_queries, codes_of_the_batch_before, "0 of 32 queued keys"),
    (worker_invariants.two_workers_keep_the_order, workers_that_leave_blocks_out_of_order, "block maps are off"),
    (of_pretraining.key_encoder_is_the_moving_average, a_moving_average_the_wrong_way_round, "h moved by up to"),
    (of_pretraining.key_encoder_is_the_moving_average, a_key_encoder_that_stays, "h moved by up to 0"),
    (of_pretraining.resume_changes_nothing, a_checkpoint_without_the_optimiser, "the largest difference"),
    (of_pretraining.a_loss_that_is_not_finite_stops, pretraining_that_ignores_nan, "stops nothing"),
    (of_pretraining.bf16_agrees_with_float32, bf16_that_loses_its_digits, "info_nce"),
    (downstream_invariants.finetuning_stops_at_nan, finetuning_that_ignores_nan, "stop nothing"),
    (downstream_invariants.frozen_encoder_stays, a_frozen_encoder_whose_batch_norm_moves, "running_mean"),
    (downstream_invariants.evaluated_weights_are_the_selected, the_last_weights_instead_of_the_best, "model.pt gives"),
    (
        downstream_invariants.evaluated_weights_are_the_selected,
        predictions_in_the_precision_of_the_training,
        "gives the predictions to 0.0",
    ),
    (downstream_invariants.fractions_augment_alike, a_fraction_that_drops_augmentation, "views of one image differ"),
    (downstream_invariants.arms_start_from_the_same_weights, an_arm_of_another_seed, "elsewhere than moco: +mse"),
    (downstream_invariants.arms_start_from_the_same_weights, scratch_of_another_seed, "than moco: scratch"),
    (downstream_invariants.label_fractions_are_nested, fractions_drawn_each_for_itself, "not inside the next"),
    (downstream_invariants.no_group_is_in_two_splits, splits_made_image_by_image, "groups are in more than one"),
]


@pytest.mark.parametrize(
    ("invariant", "defect", "text"), DEFECTS, ids=lambda x: x.__name__ if callable(x) else ""
)  # fmt: skip
def test_it_fails_where_the_code_is_broken(
    monkeypatch: pytest.MonkeyPatch, invariant: Invariant, defect: Callable[[Patch], None], text: str
) -> None:
    defect(monkeypatch)
    (verdict,) = check([invariant], device="cpu")
    assert not verdict.passed, verdict.text
    assert text in verdict.text
    assert "it stopped with" not in verdict.text


def test_every_invariant_has_a_defect_that_it_finds() -> None:
    assert {invariant for invariant, _, _ in DEFECTS} == set(INVARIANTS)


def test_an_invariant_that_raises_has_failed_and_the_others_are_tried() -> None:
    def broken(toy: Toy) -> Seen:
        """Nothing is ever wrong."""
        raise ZeroDivisionError("of 3 by 0")

    heard: list[str] = []
    first, second = check(
        [broken, of_pretraining.queue_keeps_keys_at_its_wrap],
        device="cpu",
        before=lambda i: heard.append(i.__name__),
        after=lambda v: heard.append(f"after {v.name}"),
    )
    assert (first.passed, first.text) == (False, "it stopped with ZeroDivisionError: of 3 by 0")
    assert first.claim == "Nothing is ever wrong."
    assert second.passed
    assert heard == ["broken", "after broken", second.name, f"after {second.name}"]


def test_nothing_is_left_behind_and_workers_are_gone(unbroken: list[Verdict]) -> None:
    import multiprocessing

    assert not multiprocessing.active_children()
    assert distributed.world() == 1
    assert not nn.modules.module._global_forward_pre_hooks
    assert len(unbroken) == len(invariants.INVARIANTS)
