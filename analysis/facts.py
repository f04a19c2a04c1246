"""What a study says about itself, as its report receives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.config import DecisionConfig


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where MLflow shows the study. Nothing asks MLflow: it may be down, or behind, when the page is built."""

    experiment: str
    study_key: str  # the tag intermoco.study_key of every run of the study
    address: str | None = None  # a server's http(s) address without user and password; None: a database
    command: str = ""  # that opens the page of a database


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a study says about itself. Values come as they are; the page escapes them.

    `dataset` is the summary of dataset.json. Beside counts and classes it may hold `source`, `notes` (sentences of
    the source), `unreadable` (images left out), `packing` ({images, seconds, images_per_second, source_bytes, bytes})
    and `audit` ([{name, count, severity, text, examples}]).
    """

    name: str
    command: str  # that makes this study again
    dataset: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any] | None]  # resolved pretraining of each; None: no pretraining
    seeds: Sequence[int]
    metric: str  # the score that the page speaks of; the CSV files hold the others too
    question: str = ""
    description: str = ""
    baseline: str | None = None  # the arm that others are compared with; the first one where not given
    downstream: Mapping[str, Any] = field(default_factory=dict)  # resolved fine-tuning of all weights
    protocol: str = "recommended"  # the named protocol that the study starts from
    switches: Mapping[str, str] = field(default_factory=dict)  # where it departs from that protocol: key to value
    accepted: Sequence[str] = ()  # sentences on findings that would have stopped the study: what the page says first
    notes: Sequence[str] = ()  # warnings that a reader of the summary should have seen
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commits: Sequence[str] = ()  # of the code that the stages ran
    tracking: Tracking | None = None
    decision: DecisionConfig | None = None  # how the configuration to ship is chosen; None: the page does not say
    promote: str = ""  # the command that promotes an arm, but for its name
    failed: Mapping[str, str] = field(default_factory=dict)  # stages that are not there: name to reason

    @property
    def compared_with(self) -> str | None:
        return self.baseline or next(iter(self.arms), None)
