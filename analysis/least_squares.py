"""Least squares on a design that nobody balanced: effects with intervals, and a reason where there is none to give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.significance import ALPHA


def least_squares(
    y: NDArray[np.float64], base: Mapping[str, NDArray[np.float64]], wanted: Mapping[str, NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """Fit y [n] by the columns [n] of base and wanted: effect, low, high, df and reason of each wanted column.

    low, high: 95% t-interval on df degrees of freedom. effect is NaN, and reason says why, where the design cannot tell
    the coefficient apart; low and high alone are NaN where the fit is exact for want of rows.

    A coefficient can be told apart where no vector of the design's null space touches it; whatever solution least
    squares picks, such a coefficient is the same in all.
    """
    names, first = [*base, *wanted], len(base)
    x = np.column_stack([*base.values(), *wanted.values()])
    if not len(y):
        return [_unknown(0, "no completed trial has a block to switch")] * len(wanted)
    _, sizes, rows = np.linalg.svd(x, full_matrices=True)
    rank = int((sizes > sizes[0] * 1e-9).sum())
    null = rows[rank:]
    solution = np.linalg.lstsq(x, y, rcond=1e-9)[0]
    df = len(y) - rank
    spread = float(((y - x @ solution) ** 2).sum()) / df if df else math.nan
    inverse = np.linalg.pinv(x.T @ x, rcond=1e-12, hermitian=True)
    found = []
    for j in range(first, len(names)):
        touching = null[np.abs(null[:, j]) > 1e-7]
        if len(touching):
            others = np.abs(touching).max(axis=0) > 1e-7
            found.append(
                _unknown(df, _alias([n for k, n in enumerate(names) if others[k] and k != j], len(y), len(names)))
            )
            continue
        half = math.nan if not df else _quantile(df) * math.sqrt(spread * float(inverse[j, j]))
        effect = float(solution[j])
        reason = (
            "" if df else f"no interval: {len(y)} trials for {rank} coefficients leave nothing to judge the spread by"
        )
        found.append({"effect": effect, "low": effect - half, "high": effect + half, "df": df, "reason": reason})
    return found


def _quantile(df: int) -> float:
    from scipy.stats import t

    return float(t.ppf(1 - ALPHA / 2, df))


def _unknown(df: int, reason: str) -> dict[str, Any]:
    return {"effect": math.nan, "low": math.nan, "high": math.nan, "df": df, "reason": reason}


def _alias(others: Sequence[str], trials: int, coefficients: int) -> str:
    if trials < coefficients:
        return f"{trials} trials are too few for {coefficients} coefficients"
    return f"cannot be told apart from {', '.join(n for n in others if n != 'the mean') or 'the mean'}"
