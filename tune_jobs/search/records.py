"""What a search's storage holds, as plain values: a record a trial, and which of them are best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from tune_jobs.search.config import MAXIMISED

State = Literal["complete", "pruned", "failed", "running", "duplicate"]

#: User attributes of a trial that are not its outcome.
START, ARM, DUPLICATE, ABANDONED, ERROR = "start", "arm", "duplicate_of", "abandoned", "error"
_OWN = (START, ARM, DUPLICATE, ABANDONED, ERROR)
STATES: tuple[State, ...] = ("complete", "pruned", "failed", "duplicate", "running")
_STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial. `params` holds those that were active."""

    number: int
    state: State
    params: Mapping[str, Any]
    values: Mapping[str, float]  # by objective, of a completed trial
    attrs: Mapping[str, Any] = field(default_factory=dict)  # what its end said
    curve: Mapping[int, float] = field(default_factory=dict)  # score by step: epochs, or seconds
    start: str | None = None  # name of the warm start that it is
    duplicate_of: int | None = None
    error: str | None = None
    started: datetime | None = None  # local time
    ended: datetime | None = None
    pareto: bool = False  # no other is better in all objectives; with one objective: the best


def state_of(trial: FrozenTrial) -> State | None:
    """None for a trial that waits or was abandoned."""
    if ABANDONED in trial.user_attrs or trial.state == TrialState.WAITING:
        return None
    return "duplicate" if DUPLICATE in trial.user_attrs else _STATES[trial.state]


def record(trial: FrozenTrial, objectives: Sequence[str], front: frozenset[int]) -> TrialRecord | None:
    """A trial that was begun, else None; `front`: numbers of those that none is better than."""
    state = state_of(trial)
    if state is None:
        return None
    attrs = dict(trial.user_attrs)
    if isinstance(scores := attrs.get("scores"), Mapping):
        attrs["scores"] = {int(seed): score for seed, score in scores.items()}  # JSON's keys are text
    return TrialRecord(
        number=trial.number,
        state=state,
        params=dict(trial.params),
        values=dict(zip(objectives, trial.values, strict=True)) if state == "complete" else {},
        attrs={key: value for key, value in attrs.items() if key not in _OWN},
        curve=dict(sorted(trial.intermediate_values.items())),
        start=attrs.get(START),
        duplicate_of=attrs.get(DUPLICATE),
        error=attrs.get(ERROR),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
        pareto=trial.number in front,
    )


def ranked(trials: Sequence[FrozenTrial], objectives: Sequence[str]) -> list[tuple[int, FrozenTrial]]:
    """Completed trials from the best on, each with its Pareto rank from 0.

    Within a rank by score, or by the first objective where the score is none of them; ties by number.
    """
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    if not done:
        return []
    signs = np.array([-1.0 if objective in MAXIMISED else 1.0 for objective in objectives])
    losses = signs * np.array([t.values for t in done])  # (trials, objectives), lower is better
    first = objectives.index("score") if "score" in objectives else 0
    ranks = pareto_ranks(losses)
    order = sorted(range(len(done)), key=lambda i: (ranks[i], losses[i, first], done[i].number))
    return [(int(ranks[i]), done[i]) for i in order]


def pareto_ranks(losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank of each row of (n, k), lower values better: 0 where no row is better, 1 where only those of rank 0 are, ...

    A row is better than another if it is nowhere worse and somewhere lower.
    """
    ranks = np.full(len(losses), -1)
    rank = 0
    while (left := np.flatnonzero(ranks < 0)).size:
        rows = losses[left]
        nowhere_worse = (rows[:, None] <= rows[None]).all(2)  # (n, n): the row's index first
        better = nowhere_worse & (rows[:, None] < rows[None]).any(2)
        ranks[left[~better.any(0)]] = rank
        rank += 1
    return ranks
