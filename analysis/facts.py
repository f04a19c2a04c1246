"""What a study says about itself, as its report receives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a study says about itself. Values come as they are; the page escapes them."""

    name: str
    command: str  # that makes this study again
    dataset: Mapping[str, Any]  # the summary of dataset.json
    arms: Mapping[str, Mapping[str, Any] | None]  # resolved pretraining of each; None: no pretraining
    seeds: Sequence[int]
    metric: str  # the score that the page speaks of; the CSV files hold the others too
    question: str = ""
    description: str = ""
    baseline: str | None = None  # the arm that others are compared with; the first one where not given
    protocol: Mapping[str, object] = field(default_factory=dict)  # anything else worth stating: name to value
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commits: Sequence[str] = ()  # of the code that the stages ran
    failed: Mapping[str, str] = field(default_factory=dict)  # stages that are not there: name to reason

    @property
    def compared_with(self) -> str | None:
        return self.baseline or next(iter(self.arms), None)
