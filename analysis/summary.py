"""What a study found, in about five sentences made from its tables: who leads, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from pandas import DataFrame

from analysis.flags import not_ranked
from analysis.layout import levels
from analysis.names import SCORES, arm_name, metric_name, number, percent
from analysis.significance import verdicts

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def sentences(
    tables: Mapping[str, DataFrame],
    *,
    dataset: str,
    metric: str,
    baseline: str | None,
    seeds: Sequence[int],
    missing: int = 0,
) -> list[str]:
    """The summary, a string a sentence or two; a table that is empty adds none.

    `tables` are tidy and hold `verdicts` as `judge` makes it. `missing` stages are named first: they limit the rest.
    """
    scores = _measured(tables["label_efficiency"], metric)
    linear = _measured(tables["linear"], metric)
    found = [
        _setting(scores if len(scores) else linear, dataset, len(seeds)),
        _missing(missing),
        _leaders(scores, metric, baseline),
        certainty(tables["verdicts"], metric=metric, baseline=baseline),
        _frozen(linear[linear["mode"] == "linear"], metric, baseline),
        _distances(_measured(tables["ks"], "ks"), baseline),
        _reuse(tables["reuse"]),
    ]
    return [sentence for sentence in found if sentence]


def judge(tables: Mapping[str, DataFrame], baseline: str | None) -> DataFrame:
    """verdicts.csv: every comparison of arms in every table, `table` first.

    A CKA cell that is flagged uninformative for any arm or seed is left out: it is not ranked.
    """
    parts = []
    for name, table in tables.items():
        if name == "reuse" and len(table):
            cells = [table[c] for c in ("metric", "label_fraction", "block")]
            flagged = table["uninformative"].fillna(False).astype(bool).groupby(cells, dropna=False).transform("any")
            table = table[~flagged]
        judged = verdicts(table, baseline or "")
        judged.insert(0, "table", name)
        parts.append(judged)
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else parts[0]


def main_comparisons(judged: DataFrame, *, metric: str, baseline: str | None) -> DataFrame:
    """The comparisons that the page lists: the study's score, each arm against the baseline, Tables 1 and 2."""
    rows = judged[(judged["metric"] == metric) & judged["table"].isin(["label_efficiency", "linear"])]
    return rows[rows["against"] == baseline] if baseline in set(rows["against"]) else rows


def certainty(judged: DataFrame, *, metric: str, baseline: str | None) -> str:
    """How far the comparisons on label fractions can be trusted."""
    rows = main_comparisons(judged, metric=metric, baseline=baseline)
    rows = rows[rows["table"] == "label_efficiency"] if (rows["table"] == "label_efficiency").any() else rows
    if rows.empty:
        return ""
    versus = f"with {arm_name(baseline)}" if baseline and (rows["against"] == baseline).all() else "between arms"
    clear = rows[rows["verdict"].isin(["better", "worse"])]
    seeds, needed = int(rows["n"].max()), int(rows["seeds_needed"].max())
    if rows["verdict"].str.startswith("needs more seeds").all():
        return (
            f"{_count(seeds, 'seed').capitalize()} can never be significant: even if every seed agreed, the exact "
            f"paired test could not fall below p = {min(1.0, 2 / 2**seeds):.2g}, and at least {needed} seeds are "
            "needed to judge all comparisons at once. Read the differences as directions, not as findings."
        )
    if clear.empty:
        return (
            f"None of the {len(rows)} comparisons {versus} is significant after Holm's correction; "
            "that shows no difference, which is not the same as showing that there is none."
        )
    named = []
    for (arm, against, verdict), part in clear.groupby(["arm", "against", "verdict"], sort=False):
        at = _listed([percent(f) for f in levels(part, "label_fraction")])
        named.append(f"{arm_name(str(arm))} is {verdict} than {arm_name(str(against))} at {at}")
    return (
        f"{len(clear)} of {len(rows)} comparisons {versus} are significant after Holm's correction: {'; '.join(named)}."
    )


def _setting(table: DataFrame, dataset: str, seeds: int) -> str:
    if table.empty:
        return f"No arm has been evaluated on {dataset} yet."
    scratch = set(table.loc[table["mode"] == "scratch", "arm"]) - set(table.loc[table["mode"] != "scratch", "arm"])
    arms = levels(table, "arm")
    pretrained = _listed([arm_name(a) for a in arms if a not in scratch])
    reference = _listed([arm_name(a) for a in arms if a in scratch])
    fractions = _listed([percent(f) for f in levels(table, "label_fraction")])
    parts = []
    if pretrained:
        parts.append(f"encoders pretrained with {pretrained}")
    if reference:
        parts.append(f"{'with' if pretrained else ''} training from random weights ({reference})".strip())
    return (
        f"On {dataset}, this study compares {' '.join(parts)}, fine-tuned on {fractions} of the training labels, "
        f"over {_count(seeds, 'seed')}."
    )


def _missing(missing: int) -> str:
    if not missing:
        return ""
    verb = "is" if missing == 1 else "are"
    return f"{_count(missing, 'stage').capitalize()} {verb} missing, so what follows rests on a part of the study."


def _leaders(table: DataFrame, metric: str, baseline: str | None) -> str:
    """Who leads at each label fraction."""
    parts = []
    for fraction in levels(table, "label_fraction"):
        part = table[table["label_fraction"] == fraction]
        ranked = _ranked(part, best="high")
        partly = "over the seeds that all arms have, " if ranked.notna().sum().sum() < len(part) else ""
        parts.append(f"with {percent(fraction)} of the labels, {partly}{_lead(ranked, metric, baseline)}")
    return f"By mean test {metric_name(metric)}: {'; '.join(parts)}." if parts else ""


def _frozen(table: DataFrame, metric: str, baseline: str | None) -> str:
    if table.empty or table["arm"].nunique() < 2:
        return ""
    most = table[table["label_fraction"] == table["label_fraction"].max()]
    lead = _lead(_ranked(most, best="high"), metric, baseline)
    return f"With the encoder frozen and only a linear classifier trained, {lead}."


def _distances(table: DataFrame, baseline: str | None) -> str:
    """Which arm's outputs on the smallest fraction come closest to the reference."""
    table = table[table["label_fraction"] < 1]
    if table.empty:
        return ""
    smallest = levels(table, "label_fraction")[0]
    ranked = _ranked(table[table["label_fraction"] == smallest], best="low")
    reference = table.iloc[0]
    if told := not_ranked(table, ranked.mean()):
        return f"Fine-tuned on {percent(smallest)} of the labels, {told}."
    text = (
        f"Fine-tuned on {percent(smallest)} of the labels, {arm_name(ranked.columns[0])} gives output probabilities "
        f"closest to the best model trained on all labels ({arm_name(reference['reference_arm'])}): "
        f"KS distance {number(_mean(ranked, 0), 'ks')}"
    )
    if baseline and baseline in ranked and baseline != ranked.columns[0]:
        text += f", {arm_name(baseline)} {number(float(ranked[baseline].mean()), 'ks')}"
    floors = table["floor"].dropna()
    return text + (
        f"; seeds of that model differ by {number(float(floors.iloc[0]), 'ks')} already." if len(floors) else "."
    )


def _reuse(table: DataFrame) -> str:
    flagged = int(table["uninformative"].fillna(False).sum()) if "uninformative" in table else 0
    if not flagged:
        return ""
    return (
        f"Of the {len(table)} feature similarities (CKA), {flagged} are uninformative, because unrelated features "
        "would score as high; they are shown, not ranked."
    )


def _ranked(table: DataFrame, *, best: str) -> DataFrame:
    """Values by seed (rows) and arm (columns), the arm of best mean first; of the seeds that all arms have, if any."""
    runs = table.pivot(index="seed", columns="arm", values="value")[levels(table, "arm")]
    common = runs.dropna()
    runs = common if len(common) else runs
    order = runs.mean().sort_values(ascending=best == "low", kind="stable").index
    return runs[order]


def _lead(ranked: DataFrame, metric: str, baseline: str | None) -> str:
    """`MoCo + MSE leads with 66.0%, 5.5 points above MoCo (ahead in both seeds)`; compared over the seeds both have."""
    first = str(ranked.columns[0])
    value = number(_mean(ranked, 0), metric) + ("%" if metric in SCORES else "")
    if ranked.shape[1] == 1:
        return f"{arm_name(first)} alone was measured, with {value}"
    runner_up = str(ranked.columns[1])
    if number(_mean(ranked, 1), metric) == number(_mean(ranked, 0), metric):
        return f"{arm_name(first)} and {arm_name(runner_up)} are level at {value}"
    other = baseline if baseline and baseline in ranked and baseline != first else runner_up
    gaps = (ranked[first] - ranked[other]).dropna()
    leader = f"the baseline {arm_name(first)} itself leads" if first == baseline else f"{arm_name(first)} leads"
    if gaps.empty:
        return f"{leader} with {value}, no seed in common with {arm_name(other)}"
    side = "above" if gaps.mean() > 0 else "below"
    return (
        f"{leader} with {value}, {_points(abs(float(gaps.mean())), metric, signed=False)} {side} "
        f"{arm_name(other)} ({_agreement(int((gaps > 0).sum()), len(gaps))})"
    )


def _agreement(ahead: int, seeds: int) -> str:
    match seeds:
        case 1:
            return "one seed"
        case 2 if ahead == 2:
            return "ahead in both seeds"
        case _ if ahead == seeds:
            return f"ahead in all {seeds} seeds"
        case _:
            return f"ahead in {ahead} of {seeds} seeds"


def _points(difference: float, metric: str, *, signed: bool = True) -> str:
    """A difference of scores in percentage points, of other measures as it is."""
    text = number(difference, metric)
    sign = "+" if signed and difference > 0 and text.strip("0.") else ""
    return f"{sign}{text}{' points' if metric in SCORES else ''}"


def _mean(ranked: DataFrame, place: int) -> float:
    return float(ranked.iloc[:, place].mean())


def _measured(table: DataFrame, metric: str) -> DataFrame:
    return table[(table["metric"] == metric) & table["value"].notna()]


def _count(number_of: int, noun: str) -> str:
    word = _WORDS[number_of] if number_of < len(_WORDS) else str(number_of)
    return f"{word} {noun}{'' if number_of == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
