"""What a search has found, as tables: its trials, what each block did, and the compute that pruning saved."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas import DataFrame, Series

from analysis.least_squares import least_squares

#: Objectives that are better the higher they are; all others are better the lower.
MAXIMISED = ("score",)
_EFFECTS = [
    *("objective", "kind", "block", "other", "n_on", "n_off"),
    *("difference", "effect", "low", "high", "df", "reason"),
]
_BLOCK = "params_block_"


@dataclass(frozen=True, kw_only=True)
class SearchFindings:
    """A search as its report receives it.

    trials: a row a trial, without repetitions: trial, state (complete, pruned, failed, running), start (the name of a
        warm start), arm (where promoted), each objective, score_sd, epochs, seconds, accelerator_seconds, peak_memory
        (bytes), saved_seconds, seeds, pareto, duplicate_of, stages, error, then `params_<name>`, missing where a
        parameter is not active.
    curves: trial, epoch, score: the validation score on the way.
    importances: evaluator, objective, parameter, importance (shares of 1), trials.
    """

    trials: DataFrame
    curves: DataFrame
    importances: DataFrame
    objectives: Sequence[str]
    metric: str  # of `score`, on the validation images
    fraction: float  # of the training labels that the scoring probe saw
    block: int  # whose features it read
    logs: Collection[str] = ()  # parameters on a log axis
    promoted: Mapping[int, str] = field(default_factory=dict)  # trial to arm
    starts: Mapping[str, str] = field(default_factory=dict)  # warm start to its arm, where that has another name
    controls: Mapping[int, str] = field(default_factory=dict)  # promoted trial to the arm without its block losses
    duplicates: int = 0  # suggestions that had been tried before, and were not trained again
    sampler: str = "tpe"
    scheduler: str = "asha"
    on: str = "epochs"  # what `curves` counts in its column epoch: epochs, or seconds of training
    notes: Sequence[str] = ()

    @property
    def main(self) -> str:
        """The objective that trials are ranked by first."""
        return "score" if "score" in self.objectives else self.objectives[0]

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters, in the space's order."""
        return [name.removeprefix("params_") for name in map(str, self.trials) if name.startswith("params_")]


def is_paper(start: object) -> bool:
    """Whether a warm start is one of the paper's settings."""
    return isinstance(start, str) and start.startswith("paper_")


def completed(trials: DataFrame, objective: str) -> DataFrame:
    """Trials that ran to their end, with the objective as a float. A pruned trial's last score is no result."""
    done = trials[trials["state"] == "complete"]
    values = pd.to_numeric(done[objective]) if objective in done else Series(math.nan, index=done.index)
    return done.assign(**{objective: values.astype(float)}).dropna(subset=[objective])


def ranked(search: SearchFindings) -> DataFrame:
    """Completed trials, best first: those on the Pareto front where there are several objectives, then by the first."""
    done = completed(search.trials, search.main)
    keys, up = [search.main, "trial"], [search.main not in MAXIMISED, True]
    if len(search.objectives) > 1:
        keys, up = ["pareto", *keys], [False, *up]
    return done.sort_values(keys, ascending=up, kind="stable")


@dataclass(frozen=True)
class Saved:
    """What pruning saved, estimated: the rest of each pruned trial at its own pace. Epochs are summed over seeds."""

    pruned: int
    unknown: int  # pruned trials of which the seconds are not known; they count as nothing saved
    epochs_run: float
    epochs: float
    seconds_run: float
    seconds: float

    @property
    def epochs_share(self) -> float:
        """Of the epochs that the same trials would have taken to their ends; NaN for none."""
        return self.epochs / whole if (whole := self.epochs + self.epochs_run) else math.nan

    @property
    def share(self) -> float:
        """Of the seconds that the same trials would have taken to their ends; NaN for none."""
        return self.seconds / whole if (whole := self.seconds + self.seconds_run) else math.nan


def saved(trials: DataFrame, curves: DataFrame, epochs: float | None = None) -> Saved:
    """Compute that pruning saved.

    Args:
        epochs: of a whole trial, all its seeds together, where no parameter says so; the most that a completed trial
            ran where not given. With neither, no epochs are counted as saved.
    """
    ran = _floats(trials, "epochs")
    ran = ran.fillna(trials["trial"].map(curves.groupby("trial")["epoch"].max()).astype(float))
    pruned, done = trials["state"] == "pruned", trials["state"] == "complete"
    whole = epochs if epochs is not None else float(ran[done].max()) if done.any() else math.nan
    seeds = trials["seeds"].map(lambda text: len(str(text).split())).astype(float) if "seeds" in trials else 1
    planned = (_floats(trials, "params_epochs") * seeds).fillna(whole)
    spared = _floats(trials, "saved_seconds")
    return Saved(
        pruned=int(pruned.sum()),
        unknown=int(spared[pruned].isna().sum()),
        epochs_run=float(ran.sum()),
        epochs=float((planned - ran)[pruned].clip(lower=0).sum()),
        seconds_run=float(_floats(trials, "seconds").sum()),
        seconds=float(spared[pruned].sum()),
    )


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """What a search took to find arms that nobody had named: training all its trials, whatever became of them."""

    arms: tuple[str, ...]
    trials: int
    seconds: float
    accelerator_seconds: float  # 0 on a machine without any


def search_cost(trials: DataFrame, promoted: Mapping[int, str]) -> SearchCost:
    """Of `SearchFindings.trials` and `promoted`; a trial whose seconds are not known counts as none.

    A best trial that the study, or the paper, has under another name is not what the search was needed for.
    """
    seconds, accelerator = (float(_floats(trials, name).sum()) for name in ("seconds", "accelerator_seconds"))
    arms = tuple(arm for number, arm in promoted.items() if arm.startswith(f"trial_{number}"))
    return SearchCost(arms=arms, trials=len(trials), seconds=seconds, accelerator_seconds=accelerator)


def _floats(trials: DataFrame, column: str) -> Series[float]:
    if column not in trials:
        return Series(math.nan, index=trials.index, dtype=float)
    return pd.to_numeric(trials[column], errors="coerce").astype(float)


def block_effects(trials: DataFrame, objective: str = "score") -> DataFrame:
    """What switching a block's loss on does to the objective, from completed trials that have a block to switch.

    Rows are `main` (a block) and `interaction` (a pair: block, other). Per row, in the objective's unit:

    - n_on, n_off: trials with the block (both of the pair) on, and the others;
    - difference: of the plain means with and without, or of the four means' difference of differences;
    - effect: by least squares, adjusted for the other blocks and the kind of loss; an interaction's model holds all
      blocks and pairs; low, high: its 95% t-interval on df degrees of freedom, not adjusted for their number;
    - reason: why effect or interval is NaN: never varied, changed only together with another, or too few trials.

    Least squares takes the trials as they came. A sampler that follows good values and a pruner that stops bad trials
    make them no random sample, and the other parameters are left to the noise: the intervals are a guide.
    """
    done = completed(trials, objective)
    blocks = sorted(int(name.removeprefix(_BLOCK)) for name in map(str, done) if name.startswith(_BLOCK))
    names = [f"{_BLOCK}{b}" for b in blocks]
    done = done[done[names].notna().any(axis=1)] if names else done
    on = {b: done[name].map(_is_on).to_numpy(bool) for b, name in zip(blocks, names, strict=True)}
    y = done[objective].to_numpy(float)
    base: dict[str, NDArray[np.float64]] = {"the mean": np.ones(len(done)), **_kinds(done)}
    mains = {f"block {b}": on[b].astype(np.float64) for b in blocks}
    pairs = {f"blocks {a} and {b}": mains[f"block {a}"] * mains[f"block {b}"] for a, b in combinations(blocks, 2)}
    rows: list[dict[str, Any]] = []
    for b, fit in zip(blocks, least_squares(y, base, mains), strict=True):
        own = {"kind": "main", "block": b, "other": None, **_means(y, [on[b]])}
        rows.append({**own, **fit, "reason": _unvaried(b, on[b]) or fit["reason"]})
    for (a, b), fit in zip(combinations(blocks, 2), least_squares(y, {**base, **mains}, pairs), strict=True):
        own = {"kind": "interaction", "block": a, "other": b, **_means(y, [on[a], on[b]])}
        rows.append({**own, **fit, "reason": _never(a, b, on) or fit["reason"]})
    table = DataFrame([{"objective": objective, **row} for row in rows], columns=_EFFECTS)
    return table.astype({"other": "Int64", "df": "Int64"})


def _is_on(value: object) -> bool:
    return value is not None and value == value and str(value).lower() in ("true", "1", "1.0")


def _kinds(done: DataFrame) -> dict[str, NDArray[np.float64]]:
    """A column for each kind of loss but the first: a block may do more under one loss than under another."""
    if "params_loss" not in done:
        return {}
    kinds = done["params_loss"].astype(str)
    return {f"loss {kind}": np.array([float(k == kind) for k in kinds]) for kind in sorted(set(kinds))[1:]}


def _means(y: NDArray[np.float64], on: Sequence[NDArray[np.bool_]]) -> dict[str, Any]:
    """Counts, and the difference (of differences) of plain means; NaN where a cell is empty."""
    both = np.logical_and.reduce(on)
    difference = 0.0
    for signs in np.ndindex(*(2,) * len(on)):
        cell = np.logical_and.reduce([x == bool(s) for x, s in zip(on, signs, strict=True)])
        mean = float(y[cell].mean()) if cell.any() else math.nan
        difference += mean * (-1) ** (len(on) - sum(signs))
    return {"n_on": int(both.sum()), "n_off": int((~both).sum()), "difference": difference}


def _unvaried(block: int, on: NDArray[np.bool_]) -> str:
    if len(on) and on.all() != (~on).all():
        return f"block {block} was {'on' if on.all() else 'off'} in all {len(on)} trials"
    return ""


def _never(a: int, b: int, on: Mapping[int, NDArray[np.bool_]]) -> str:
    """The first of the four combinations that no trial tried."""
    words = {(1, 1): f"{a} and {b} together", (1, 0): f"{a} without {b}", (0, 1): f"{b} without {a}"}
    for first, second in ((1, 1), (1, 0), (0, 1), (0, 0)):
        if len(on[a]) and not ((on[a] == bool(first)) & (on[b] == bool(second))).any():
            return f"no trial had {words.get((first, second), f'neither {a} nor {b}')}"
    return ""
