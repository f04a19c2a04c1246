"""When a checkpoint is due, in words that several workers agree on."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ssl_core import distributed

#: Seconds between the looks of several workers: to agree, each of them waits for all, and for its accelerator.
LOOK_SECONDS = 1.0
#: Seconds between checkpoints while they are urgent.
URGENT_SECONDS = 5.0


class Due:
    """A checkpoint is due `seconds` after the last one; where it is urgent, at once and every 5 seconds from then on.

    One worker looks after each step, which costs nothing. Several look together after as many steps as take about a
    second, or `seconds` where that is less; then a checkpoint is due for all as soon as it is for one of them.
    """

    def __init__(self, seconds: float, urgent: Callable[[], bool], device: torch.device) -> None:
        self.seconds, self.urgent, self.device = seconds, urgent, device
        self.saved_at = self.looked_at = time.monotonic()
        self.steps, self.every = 0, 1  # since the last look, and from one look to the next
        self.hurried = False  # what `urgent` said last

    def after_step(self) -> bool:
        """Whether a checkpoint is due after a step. Every worker calls this after each one."""
        self.steps += 1
        return self.steps >= self.every and self.now()

    def now(self) -> bool:
        """Whether a checkpoint is due, with a look out of turn. Every worker calls this at the same point."""
        hurry, time_now = self.urgent(), time.monotonic()
        interval = min(self.seconds, URGENT_SECONDS) if hurry else self.seconds
        due = (hurry and not self.hurried) or time_now - self.saved_at >= interval
        self.hurried = hurry
        if distributed.world() == 1:
            return due
        wanted = min(LOOK_SECONDS, self.seconds)
        if self.steps:
            self.every = max(1, int(wanted * self.steps / (time_now - self.looked_at)))
        rows = distributed.gather(torch.tensor([[int(due), self.every]], device=self.device)).tolist()  # [world, 2]
        self.every = rows[0][1]
        self.steps, self.looked_at = 0, time.monotonic()
        return any(row[0] for row in rows)

    def saved(self) -> None:
        """A checkpoint was taken; its time does not count as that of steps."""
        self.saved_at = self.looked_at = time.monotonic()
