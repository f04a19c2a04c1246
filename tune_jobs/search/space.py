"""A search space: which settings vary, over what, and under which conditions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Space:
    """To be filled."""
