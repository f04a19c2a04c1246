"""Verdicts between arms. The unit is the seed, in which arms share labels, batches and first weights: so they pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ssl_core.errors import DataError

ALPHA = 0.05
LOWER_IS_BETTER = frozenset({"ks", "ece", "brier"})
_CELL = ["dataset", "mode", "label_fraction", "block", "metric"]
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

    Raises DataError if an arm has two values for one seed of a cell.
    """
    tidy = _tidy(table)
    order = sorted(tidy["arm"].unique(), key=lambda arm: arm != baseline)  # stable: then in the table's order
    rows: list[dict[str, Any]] = []
    for cell, part in tidy.groupby(_CELL, dropna=False, sort=False):
        arms = {arm: seeds.set_index("seed") for arm, seeds in part.groupby("arm", sort=False)}
        for against, arm in combinations([a for a in order if a in arms], 2):
            difference = (arms[arm]["value"] - arms[against]["value"]).dropna().to_numpy()
            about = {**dict(zip(_CELL, cell, strict=True)), "arm": arm, "against": against}
            flagged = bool(arms[arm]["uninformative"].any() or arms[against]["uninformative"].any())
            rows.append({**about, **_effect(difference), "uninformative": flagged})
    if not rows:
        return pd.DataFrame(columns=_COLUMNS)
    families = pd.DataFrame(rows).groupby(["dataset", "metric"], dropna=False, sort=False)
    judged = pd.concat([_judge(family) for _, family in families]).sort_index()
    return judged[[c for c in _COLUMNS if c not in _CELL or c in table.columns]]


def sign_flip(differences: NDArray[np.float64]) -> float:
    """Exact two-sided p-value, in (0, 1]: the share of all 2^n sign patterns whose |sum| reaches the observed one.

    Exact under the null that each difference is as likely to be negative as positive. Sums of the two halves are
    combined through sorting, so 40 seeds take 2^20 steps.
    """
    n = len(differences)
    left, right = _signed_sums(differences[: n // 2]), np.sort(_signed_sums(differences[n // 2 :]))
    # Sums of other orders differ in rounding; a tie must count as reached.
    reached = abs(float(differences.sum())) - 1e-9 * float(np.abs(differences).sum())
    above = len(right) - np.searchsorted(right, reached - left, side="left")
    below = np.searchsorted(right, -reached - left, side="right")
    return min(1.0, int((above + below).sum()) / 2.0**n)


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """Holm's step-down adjustment (Holm 1979): p-values that may be compared with alpha, in the order given."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def seeds_needed(comparisons: int) -> int:
    """The fewest seeds m with which the most extreme result is significant: 2 / 2^m x comparisons <= 0.05."""
    return math.ceil(math.log2(2 * comparisons / ALPHA))


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    tidy = table.reindex(columns=[*_CELL, "arm", "seed", "value", "uninformative"])
    tidy["uninformative"] = tidy["uninformative"].eq(True).fillna(False).astype(bool)
    tidy = tidy.astype({"value": float}).dropna(subset=["value"])
    mode = tidy["mode"].astype(object)
    only_scratch = (mode == "scratch") & ~tidy["arm"].isin(tidy.loc[mode == "full", "arm"])
    tidy["mode"] = mode.mask(only_scratch, "full")
    twice = tidy[tidy.duplicated([*_CELL, "arm", "seed"])]
    if len(twice):
        where = ", ".join(
            f"{k} {v}" for k, v in twice.iloc[0].drop(["value", "uninformative"]).items() if not pd.isna(v)
        )
        raise DataError(f"two values for {where}; give verdicts one value per arm and seed of a cell")
    return tidy


def _effect(differences: NDArray[np.float64]) -> dict[str, Any]:
    n = len(differences)
    effect = float(differences.mean()) if n else math.nan
    half = math.nan
    if n > 1:
        from scipy.stats import t

        half = float(t.ppf(1 - ALPHA / 2, n - 1)) * float(differences.std(ddof=1)) / math.sqrt(n)
    p = sign_flip(differences) if n else 1.0
    return {"effect": effect, "low": effect - half, "high": effect + half, "n": n, "p": p}


def _judge(family: pd.DataFrame) -> pd.DataFrame:
    adjusted = holm(family["p"].tolist())
    # Were every comparison as extreme as its seeds allow, would this one be significant? Holm is monotone in each p.
    reachable = holm([min(1.0, 2 / 2**n) for n in family["n"]]) <= ALPHA
    needed = seeds_needed(len(family))
    texts = []
    for (_, row), p, enough in zip(family.iterrows(), adjusted, reachable, strict=True):
        up = (row["effect"] > 0) != (row["metric"] in LOWER_IS_BETTER)
        if row["uninformative"]:
            texts.append("uninformative")
        elif not enough:
            texts.append(f"needs more seeds: {row['n']} seeds can never reach p < {ALPHA}, at least {needed}")
        elif p <= ALPHA:
            texts.append("better" if up else "worse")
        else:
            texts.append("no difference shown")
    return family.assign(p_holm=adjusted, seeds_needed=needed, verdict=texts)


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of `values` under all 2^n sign patterns, [2^n]."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums
