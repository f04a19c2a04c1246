"""The paper's claims on the data of a study: a comparison a row, with this study's verdict and the paper's number.

No p-value is computed here. A claim's comparison is a row of verdicts.csv, so it belongs to the family that it has
there: all comparisons of one metric in its table. That family was fixed by the study before any claim was looked up,
and it is larger than a claim's own comparisons, so it errs towards "not shown"; and one comparison has one verdict on
the page. Each table and metric is a family of its own: over several claims, false findings add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
from pandas import DataFrame

from analysis.beside import kind
from analysis.claims import CLAIMS, Claim, Outcome
from analysis.description import differences
from analysis.facts import Facts
from analysis.names import SCORES, arm_name, percent
from analysis.published import DATASETS, published
from analysis.published_claims import compared

COLUMNS = (
    *("claim", "section", "table", "paper_arm", "arm", "against", "mode", "label_fraction", "block", "metric"),
    *("effect", "low", "high", "n", "p", "p_holm", "seeds_needed", "verdict", "outcome", "reason", "other_settings"),
    *("paper_effect", "paper_low", "paper_high", "paper_datasets"),
)
_OUTCOMES = get_args(Outcome)
_MODES = {"linear": "linear", "probing": "probe"}  # of the other tables: full, to which verdicts turn scratch
_KINDS = {
    "moco": "MoCo alone",
    "moco_mse": "the mean squared error on all four blocks as its only block loss",
    "moco_barlow": "the Barlow Twins loss on all four blocks as its only block loss",
    "supervised": "no pretraining",
}


def study_claims(tables: Mapping[str, DataFrame], facts: Facts) -> DataFrame:
    """claims.csv: every claim with each pair of this study's arms that it speaks of.

    Arms are those of the paper by their configuration (`paper_arm`), whatever their names. An arm is compared with the
    MoCo (for the last claim: untrained) arm that differs from it in the fewest settings besides the losses, a number
    that stands in `other_settings`. effect (arm less against, in the metric's unit), interval, p and verdict are
    those of `tables["verdicts"]`. outcome is `supported`, `contradicted`, `not shown`, `needs more seeds`,
    `uninformative` (flagged, so not ranked) or `not measured`, with a reason. paper_effect is the paper's own
    difference: of this dataset where it is one of the paper's and the score the same, else the mean over the paper's
    datasets, of which paper_low and paper_high are the lowest and highest; NaN where it has none.
    """
    kinds = {arm: of for arm, config in facts.arms.items() if (of := kind(config))}
    rows = [row for claim in CLAIMS for row in _rows(claim, tables, facts, kinds)]
    table = DataFrame(rows, columns=list(COLUMNS))
    whole = dict.fromkeys(("block", "n", "seeds_needed", "other_settings"), "Int64")
    return table.astype({**whole, "label_fraction": float, "effect": float, "p_holm": float})


def overall(outcomes: Sequence[str]) -> str:
    """Of several comparisons, flagged and unmeasured ones aside: supported if all are; partly if more are than are
    contradicted; contradicted if any is and no more are supported."""
    told = [o for o in outcomes if o not in ("uninformative", "not measured")]
    if not told:
        return "uninformative" if "uninformative" in outcomes else "not measured"
    supported, contradicted = told.count("supported"), told.count("contradicted")
    if supported == len(told):
        return "supported"
    if contradicted and contradicted >= supported:
        return "contradicted"
    if supported:
        return "partly"
    return "needs more seeds" if set(told) == {"needs more seeds"} else "not shown"


def of_claim(claim: Claim, table: DataFrame) -> str:
    """The outcome of a claim over its rows of `study_claims`. Of an `either` claim each cell counts by its best arm,
    and it is contradicted only where all its arms were measured."""
    rows = table[table["claim"] == claim.key]
    if not claim.either:
        return overall(rows["outcome"].tolist())
    cells = rows.groupby(["label_fraction", "block", "metric"], dropna=False, sort=False)["outcome"]
    found = overall([min(outcomes, key=_OUTCOMES.index) for _, outcomes in cells])
    return "not shown" if found == "contradicted" and (rows["outcome"] == "not measured").any() else found


def _rows(
    claim: Claim, tables: Mapping[str, DataFrame], facts: Facts, kinds: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    others = [arm for arm, of in kinds.items() if of == claim.against]
    for of in claim.arms:
        about = {"claim": claim.key, "section": claim.section, "table": claim.table, "paper_arm": of}
        arms = [arm for arm, own in kinds.items() if own == of]
        if not arms or not others:
            lacking = claim.against if not others else of
            reason = f"no arm of this study has {_KINDS[lacking]}" if lacking != "moco" else "no arm is MoCo alone"
            yield {**about, "outcome": "not measured", "reason": reason}
            continue
        for arm in arms:
            against = min(others, key=lambda other: (_settings_apart(facts, arm, other), other != facts.compared_with))
            pair = {**about, "arm": arm, "against": against, "other_settings": _settings_apart(facts, arm, against)}
            for cell in _cells(claim, tables[claim.table], facts, arm, against):
                paper = _paper(claim, of, cell, facts) if "metric" in cell else {}
                yield {**pair, **cell, **paper, **_judged(claim, tables["verdicts"], {**pair, **cell})}


def _settings_apart(facts: Facts, arm: str, other: str) -> int:
    """Settings besides the losses in which two pretrained arms differ."""
    return len(differences({name: facts.arms[name] for name in (arm, other)}))


def _cells(claim: Claim, table: DataFrame, facts: Facts, arm: str, against: str) -> Iterator[dict[str, Any]]:
    """mode, label_fraction, block and metric of the cells in which both arms were measured; or one row with a reason.

    `flagged`: a value of the cell, whichever arm's, is flagged as uninformative; `judge` ranks no such cell.
    """
    mode = _MODES.get(claim.table, "full")
    about = [
        _compares(str(metric), claim, facts) and str(of).replace("scratch", "full") == mode
        for metric, of in zip(table["metric"], table["mode"], strict=True)
    ]
    rows = table[np.array(about, dtype=bool) & table["value"].notna().to_numpy()]
    groups: Any = rows.groupby(["metric", "label_fraction", "block"], dropna=False, sort=True)
    found, excepted = 0, 0
    for (name, fraction, block), part in groups:
        place = None if pd.isna(block) else int(block)
        if claim.about(claim.table, float(fraction), place) and {arm, against} <= set(part["arm"]):
            if (_own(facts), round(float(fraction), 6), place) in claim.excepted:
                excepted += 1
                continue
            found += 1
            flagged = "uninformative" in part and bool(part["uninformative"].fillna(False).any())
            yield {"mode": mode, "label_fraction": fraction, "block": place, "metric": name, "flagged": flagged}
    if excepted and not found:
        yield {"mode": mode, "reason": f"“{claim.title}” is a claim from which the paper takes out {_own(facts)}"}
    elif not found:
        fractions = " and ".join(percent(f) for f in claim.fractions)
        missing = f"{arm_name(arm)} and {arm_name(against)} were not both measured with {fractions} of the labels"
        yield {"mode": mode, "reason": missing}


def _compares(metric: str, claim: Claim, facts: Facts) -> bool:
    """Whether a claim speaks of this measure: CKA of any kernel, the distance itself, else the study's score."""
    match claim.table:
        case "reuse":
            return metric.startswith("cka")
        case "ks":
            return metric == "ks"
        case _:
            return metric == facts.metric


def _judged(claim: Claim, judged: DataFrame, row: Mapping[str, Any]) -> dict[str, Any]:
    """Effect, interval, p-values and verdict from verdicts.csv, seen from `arm`, and the outcome."""
    if "metric" not in row:
        return {"outcome": "not measured"}
    same = (
        (judged["table"] == claim.table)
        & (judged["metric"] == row["metric"])
        & (judged["mode"] == row["mode"])
        & (judged["label_fraction"] == row["label_fraction"])
        & (judged["block"].isna() if row["block"] is None else judged["block"] == row["block"])
    )
    for found in judged[same].to_dict("records"):
        if (found["arm"], found["against"]) == (row["against"], row["arm"]):
            found = turned(found)
        if (found["arm"], found["against"]) == (row["arm"], row["against"]):
            kept = ("effect", "low", "high", "n", "p", "p_holm", "seeds_needed", "verdict")
            return {**{name: found[name] for name in kept}, "outcome": outcome(found["verdict"])}
    if row["flagged"]:
        return {"outcome": "uninformative", "reason": "flagged as uninformative, so not ranked"}
    return {"outcome": "not measured", "reason": "no seed in common"}


def outcome(verdict: str) -> Outcome:
    """What a verdict on the arm says of a claim that the arm is better."""
    match verdict.split(":")[0]:
        case "better":
            return "supported"
        case "worse":
            return "contradicted"
        case "no difference shown":
            return "not shown"
        case "needs more seeds":
            return "needs more seeds"
        case _:
            return "uninformative"


def turned(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """A comparison of verdicts.csv seen from the other arm."""
    verdict = {"better": "worse", "worse": "better"}.get(row["verdict"], row["verdict"])
    ends = {"effect": -row["effect"], "low": -row["high"], "high": -row["low"], "verdict": verdict}
    return {**row, "arm": row["against"], "against": row["arm"], **ends}


def _paper(claim: Claim, arm_kind: str, cell: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """The paper's own difference at this cell, in the units of our tables."""
    place = (round(float(cell["label_fraction"]), 6), cell["block"])
    found = {
        pair.arm.dataset: float(pair.difference / (100 if pair.arm.metric in SCORES else 1))
        for pair in compared(claim, published())
        if pair.difference is not None
        and pair.arm.arm == arm_kind
        and (pair.arm.label_fraction, pair.arm.block) == place
        if cell["metric"] not in SCORES or not _own(facts) or pair.arm.metric == cell["metric"]
    }
    if (own := _own(facts)) is not None:
        found = {dataset: value for dataset, value in found.items() if dataset == own}
    if not found:
        return {}
    values = list(found.values())
    mean = sum(values) / len(values)
    return {
        "paper_effect": mean,
        "paper_low": min(values),
        "paper_high": max(values),
        "paper_datasets": ", ".join(found),
    }


def _own(facts: Facts) -> str | None:
    """The paper's dataset that the study is on, if it is one."""
    source = facts.dataset.get("source")
    return str(source) if source in DATASETS else None
