"""Verdicts between arms. The unit is the seed, in which arms share labels, batches and first weights: so they pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ssl_core.errors import DataError

ALPHA = 0.05
LOWER_IS_BETTER = frozenset({"ks", "ece", "brier"})
_CELL = ["dataset", "mode", "label_fraction", "block", "metric"]
_AT_ONCE = 11  # seeds up to which the patterns of many comparisons are summed together
_CHUNK = 4096  # comparisons: 4096 x 2^10 sums of 8 bytes
_COLUMNS = [*_CELL, "arm", "against", "effect", "low", "high", "n", "p", "p_holm", "seeds_needed", "verdict"]


def verdicts(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Every arm against the baseline and against every other arm, in each cell of a tidy table.

    `table` has one row per arm, seed and cell: columns arm, seed, metric, value, and those of dataset, mode,
    label_fraction and block that apply. An arm that is only trained from scratch is compared, under mode "full", with
    arms whose weights are all fine-tuned: the same training from other weights.

    Differences are paired by seed, over the seeds both arms have; NaN counts as missing. Per comparison:

    - effect: mean of value(arm) - value(against), in the metric's unit; low, high: its 95% t-interval over seeds, not
      adjusted for the number of comparisons (NaN for fewer than two seeds);
    - n: common seeds; p: exact two-sided sign-flip permutation p-value; p_holm: Holm-adjusted over the family, which is
      all comparisons of one metric (and dataset) in the table;
    - seeds_needed: the smallest m with 2 / 2^m x family <= 0.05, below which no effect can be significant;
    - verdict: "better" or "worse" (p_holm <= 0.05; the arm, in the metric's own direction), "no difference shown",
      "needs more seeds: ...", or "uninformative" where a value is flagged so (a saturated CKA: seeds cannot help).
      Of KS distances, "uninformative: within the noise floor" where arms differ by no more than `floor`, a column that
      such a table has: the distance between seeds of the reference itself.

    Raises DataError if an arm has two values for one seed of a cell.
    """
    tidy = _tidy(table)
    pairs = _pairs(tidy, baseline)
    if pairs.empty:
        return pd.DataFrame(columns=_COLUMNS)
    judged = _judge(pairs)
    return judged[[c for c in _COLUMNS if c not in _CELL or c in table.columns]]


def sign_flip(differences: NDArray[np.float64]) -> float:
    """Exact two-sided p-value, in (0, 1]: the share of all 2^n sign patterns whose |sum| reaches the observed one.

    Exact under the null that a difference and its negative are equally likely, seed by seed, as they are where two arms
    differ in nothing but their names, whatever the noise. Arms whose noise has different skews break it. Sums of the
    two halves are combined through sorting, so 40 seeds take 2^20 steps.
    """
    n = len(differences)
    left, right = _signed_sums(differences[: n // 2]), np.sort(_signed_sums(differences[n // 2 :]))
    reached = float(_reached(differences))
    above = len(right) - np.searchsorted(right, reached - left, side="left")
    below = np.searchsorted(right, -reached - left, side="right")
    return min(1.0, int((above + below).sum()) / 2.0**n)


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """Holm's step-down adjustment (Holm 1979): p-values that may be compared with alpha, in the order given."""
    return _holm(np.asarray(p, dtype=np.float64), np.zeros(len(p), dtype=np.int64))


def seeds_needed(comparisons: int) -> int:
    """The fewest seeds m with which the most extreme result is significant: 2 / 2^m x comparisons <= 0.05."""
    return math.ceil(math.log2(2 * comparisons / ALPHA))


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    tidy = table.reindex(columns=[*_CELL, "arm", "seed", "value", "uninformative", "floor"])
    tidy["uninformative"] = tidy["uninformative"].eq(True).fillna(False).astype(bool)
    tidy = tidy.astype({"value": float, "floor": float}).dropna(subset=["value"])
    mode = tidy["mode"].astype(object)
    only_scratch = (mode == "scratch") & ~tidy["arm"].isin(tidy.loc[mode == "full", "arm"])
    tidy["mode"] = mode.mask(only_scratch, "full")
    twice = tidy[tidy.duplicated([*_CELL, "arm", "seed"])]
    if len(twice):
        where = ", ".join(
            f"{k} {v}" for k, v in twice.iloc[0].drop(["value", "uninformative", "floor"]).items() if not pd.isna(v)
        )
        raise DataError(f"two values for {where}; give verdicts one value per arm and seed of a cell")
    return tidy


def _pairs(tidy: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Every comparison of two arms in a cell: the cell, arm, against, effect, low, high, n, p, uninformative.

    Rows are in the order of cells, in each the baseline's comparisons first. All are computed together, as arrays
    [cells, arms, seeds]: a study has hundreds of comparisons, and its simulation a hundred thousand.
    """
    found = tidy.groupby(_CELL, dropna=False, sort=False)
    cell = found.ngroup().to_numpy()
    first = tidy.loc[~tidy.duplicated(_CELL), _CELL].to_numpy(dtype=object).tolist()
    heads = pd.DataFrame([[math.nan if pd.isna(v) else v for v in row] for row in first], columns=_CELL)
    arm, arms = pd.factorize(tidy["arm"])
    seed, seeds = pd.factorize(tidy["seed"])
    values = np.full((len(heads), len(arms), len(seeds)), np.nan)
    values[cell, arm, seed] = tidy["value"]
    flagged = np.zeros(values.shape[:2], dtype=bool)
    np.logical_or.at(flagged, (cell, arm), tidy["uninformative"].to_numpy())
    there = ~np.isnan(values).all(axis=2)
    floors = found["floor"].max().to_numpy()
    order = sorted(range(len(arms)), key=lambda i: arms[i] != baseline)  # stable: then in the table's order
    parts = []
    for place, (against, other) in enumerate(combinations(order, 2)):
        rows = np.flatnonzero(there[:, against] & there[:, other])
        part = heads.iloc[rows].assign(arm=arms[other], against=arms[against])
        part = part.assign(**_effects(values[rows, other] - values[rows, against]), cell=rows, place=place)
        part = part.assign(uninformative=flagged[rows, against] | flagged[rows, other], floor=floors[rows])
        parts.append(part)
    if not parts:
        return pd.DataFrame()
    pairs = pd.concat(parts).sort_values(["cell", "place"], kind="stable", ignore_index=True)
    return pairs.drop(columns=["cell", "place"])


def _effects(differences: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """effect, low, high, n and p of comparisons by their differences [comparisons, seeds], NaN where a seed lacks."""
    there = ~np.isnan(differences)
    n = there.sum(axis=1)
    effect, half = (np.full(len(n), np.nan) for _ in range(2))
    p = np.ones(len(n))
    for count in np.unique(n[n > 0]).tolist():
        rows = n == count
        d = differences[rows][there[rows]].reshape(-1, count)
        effect[rows], p[rows] = d.mean(axis=1), _sign_flips(d)
        if count > 1:
            from scipy.stats import t

            half[rows] = t.ppf(1 - ALPHA / 2, count - 1) * d.std(axis=1, ddof=1) / math.sqrt(count)
    return {"effect": effect, "low": effect - half, "high": effect + half, "n": n, "p": p}


def _sign_flips(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """`sign_flip` of each row [comparisons, n]. Of few seeds all patterns at once; one half mirrors the other."""
    n = differences.shape[1]
    if n > _AT_ONCE:
        return np.array([sign_flip(row) for row in differences])
    signs = np.array(list(product((1.0, -1.0), repeat=n - 1)))  # (2^(n-1), n-1) after the first, which stays
    p = np.empty(len(differences))
    for start in range(0, len(p), _CHUNK):
        d = differences[start : start + _CHUNK]
        sums = np.abs(d[:, :1] + d[:, 1:] @ signs.T)
        p[start : start + _CHUNK] = (sums >= _reached(d)[:, None]).mean(axis=1)
    return p


def _reached(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """|sum| over seeds (the last axis) that a sign pattern has to reach. Sums of other orders differ in rounding, and
    a tie must count as reached."""
    reached: NDArray[np.float64] = np.abs(differences.sum(axis=-1)) - 1e-9 * np.abs(differences).sum(axis=-1)
    return reached


def _holm(p: NDArray[np.float64], family: NDArray[np.integer]) -> NDArray[np.float64]:
    """Holm's adjustment of each family's p-values, families given as numbers from 0."""
    order = np.lexsort((p, family))  # stable
    of, sizes = family[order], np.bincount(family)
    rank = np.arange(len(p)) - (np.cumsum(sizes) - sizes)[of]  # within the family, from 0
    stepped = np.minimum(p[order] * (sizes[of] - rank), 1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = np.concatenate([np.maximum.accumulate(part) for part in np.split(stepped, np.cumsum(sizes)[:-1])])
    return adjusted


def _judge(pairs: pd.DataFrame) -> pd.DataFrame:
    family = pairs.groupby(["dataset", "metric"], dropna=False, sort=False).ngroup().to_numpy()
    adjusted = _holm(pairs["p"].to_numpy(), family)
    # Were every comparison as extreme as its seeds allow, would this one be significant? Holm is monotone in each p.
    reachable = _holm(np.minimum(1.0, 2.0 / 2.0 ** pairs["n"].to_numpy()), family) <= ALPHA
    needed = np.array([seeds_needed(size) for size in np.bincount(family).tolist()])[family]
    up = (pairs["effect"] > 0) != pairs["metric"].isin(LOWER_IS_BETTER)
    within = (pairs["metric"] == "ks") & (pairs["effect"].abs() <= pairs["floor"])
    told = zip(pairs["uninformative"], reachable, adjusted <= ALPHA, within, up, pairs["n"], needed, strict=True)
    texts = [_verdict(*row) for row in told]
    return pairs.assign(p_holm=adjusted, seeds_needed=needed, verdict=texts)


def _verdict(flagged: bool, reachable: bool, clear: bool, within: bool, up: bool, n: int, needed: int) -> str:
    if flagged:
        return "uninformative"
    if not reachable:
        return f"needs more seeds: {n} seeds can never reach p < {ALPHA}, at least {needed}"
    if clear and within:
        return "uninformative: within the noise floor"
    if clear:
        return "better" if up else "worse"
    return "no difference shown"


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of `values` under all 2^n sign patterns, [2^n]."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums
