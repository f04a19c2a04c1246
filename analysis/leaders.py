"""Who leads, by how much and in how many seeds, in the words of the summary."""

from __future__ import annotations

from pandas import DataFrame

from analysis.layout import levels
from analysis.names import SCORES, arm_name, number


def ranked(table: DataFrame, *, best: str) -> DataFrame:
    """Values by seed (rows) and arm (columns), the arm of best mean first; of the seeds that all arms have, if any.

    `table` has one row an arm and seed; `best` is "high" or "low".
    """
    runs = table.pivot(index="seed", columns="arm", values="value")[levels(table, "arm")]
    common = runs.dropna()
    runs = common if len(common) else runs
    order = runs.mean().sort_values(ascending=best == "low", kind="stable").index
    return runs[order]


def lead(runs: DataFrame, metric: str, baseline: str | None) -> str:
    """`MoCo + MSE leads with 66.0%, 5.5 points above MoCo (ahead in both seeds)`; compared over the seeds both have.

    `runs` as `ranked` gives them.
    """
    first = str(runs.columns[0])
    value = number(mean(runs, 0), metric) + ("%" if metric in SCORES else "")
    if runs.shape[1] == 1:
        return f"{arm_name(first)} alone was measured, with {value}"
    runner_up = str(runs.columns[1])
    if number(mean(runs, 1), metric) == number(mean(runs, 0), metric):
        return f"{arm_name(first)} and {arm_name(runner_up)} are level at {value}"
    other = baseline if baseline and baseline in runs and baseline != first else runner_up
    gaps = (runs[first] - runs[other]).dropna()
    leader = f"the baseline {arm_name(first)} itself leads" if first == baseline else f"{arm_name(first)} leads"
    if gaps.empty:
        return f"{leader} with {value}, no seed in common with {arm_name(other)}"
    side = "above" if gaps.mean() > 0 else "below"
    return (
        f"{leader} with {value}, {points(float(gaps.mean()), metric)} {side} "
        f"{arm_name(other)} ({agreement(int((gaps > 0).sum()), len(gaps))})"
    )


def agreement(ahead: int, seeds: int) -> str:
    match seeds:
        case 1:
            return "one seed"
        case 2 if ahead == 2:
            return "ahead in both seeds"
        case _ if ahead == seeds:
            return f"ahead in all {seeds} seeds"
        case _:
            return f"ahead in {ahead} of {seeds} seeds"


def points(difference: float, metric: str) -> str:
    """The size of a difference: of scores in percentage points, of other measures as it is."""
    return f"{number(abs(difference), metric)}{' points' if metric in SCORES else ''}"


def mean(runs: DataFrame, place: int) -> float:
    return float(runs.iloc[:, place].mean())
