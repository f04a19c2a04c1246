"""The method's invariants, tried on this machine: each runs the real code on a toy dataset and says what it saw."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ssl_core import devices
from ssl_core.downstream_invariants import (
    arms_start_from_the_same_weights,
    evaluated_weights_are_the_selected,
    finetuning_stops_at_nan,
    fractions_augment_alike,
    frozen_encoder_stays,
    label_fractions_are_nested,
    no_group_is_in_two_splits,
)
from ssl_core.pretraining_invariants import (
    a_loss_that_is_not_finite_stops,
    bf16_agrees_with_float32,
    key_encoder_is_the_moving_average,
    keys_are_queued_after_the_loss,
    keys_keep_the_order_of_their_queries,
    queue_keeps_keys_at_its_wrap,
    queue_survives_a_checkpoint,
    resume_changes_nothing,
    stale_keys_are_masked,
    validation_changes_nothing,
)
from ssl_core.toy import Seen, Toy
from ssl_core.worker_invariants import two_workers_keep_the_order

#: A function of this kind claims what its docstring's first line says.
Invariant = Callable[[Toy], Seen]

INVARIANTS: tuple[Invariant, ...] = (
    validation_changes_nothing,
    keys_are_queued_after_the_loss,
    stale_keys_are_masked,
    queue_keeps_keys_at_its_wrap,
    queue_survives_a_checkpoint,
    keys_keep_the_order_of_their_queries,
    two_workers_keep_the_order,
    key_encoder_is_the_moving_average,
    resume_changes_nothing,
    a_loss_that_is_not_finite_stops,
    finetuning_stops_at_nan,
    frozen_encoder_stays,
    evaluated_weights_are_the_selected,
    fractions_augment_alike,
    arms_start_from_the_same_weights,
    label_fractions_are_nested,
    no_group_is_in_two_splits,
    bf16_agrees_with_float32,
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An invariant that was tried."""

    name: str  # the function's
    claim: str  # what holds
    passed: bool
    text: str  # what was seen, with the numbers
    seconds: float


def claim(invariant: Invariant) -> str:
    """What the invariant says holds."""
    return (invariant.__doc__ or invariant.__name__).strip().splitlines()[0]


def check(
    invariants: Sequence[Invariant] = INVARIANTS,
    *,
    device: str | torch.device | None = None,
    before: Callable[[Invariant], None] | None = None,
    after: Callable[[Verdict], None] | None = None,
) -> list[Verdict]:
    """Try each invariant on `device` (else the first accelerator, else the CPU), in a temporary folder.

    `before` and `after` hear of each as it comes. An invariant that raises has failed, and its text holds the error.
    """
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="intermoco-") as folder, _exact():
        toy = Toy(folder=Path(folder), device=devices.choose(device))
        for invariant in invariants:
            if before:
                before(invariant)
            verdicts.append(_tried(invariant, toy))
            if after:
                after(verdicts[-1])
    return verdicts


@contextmanager
def _exact() -> Iterator[None]:
    """One thread, as on images this small threads mostly wait for each other; on an accelerator float32 is float32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)


def _tried(invariant: Invariant, toy: Toy) -> Verdict:
    began = time.perf_counter()
    try:
        seen = invariant(toy)
    except Exception as error:  # whatever it is, it is to be reported beside the others
        seen = Seen(passed=False, text=f"it stopped with {type(error).__name__}: {error}")
    return Verdict(
        name=invariant.__name__,
        claim=claim(invariant),
        passed=seen.passed,
        text=seen.text,
        seconds=time.perf_counter() - began,
    )
