"""What a study found, in at most five sentences made from its tables: who leads, how sure that is, at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from pandas import DataFrame

from analysis import leaders
from analysis.flags import noise_floor, not_ranked
from analysis.layout import levels
from analysis.names import arm_name, metric_name, number, percent
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
    cost: str = "",
) -> dict[str, str]:
    """The summary: at most five sentences, each under a word that says what it is about; empty tables add none.

    `tables` are tidy and hold `verdicts` as `judge` makes it. `missing` stages are named first: they limit the rest.
    `cost` is `costs.sentence`.
    """
    scores = _measured(tables["label_efficiency"], metric)
    linear = _measured(tables["linear"], metric)
    features = [
        _frozen(linear[linear["mode"] == "linear"], metric, baseline),
        _reuse(tables["reuse"], baseline),
        _distances(_measured(tables["ks"], "ks"), baseline),
    ]
    found = {
        "Studied": _setting(scores if len(scores) else linear, dataset, len(seeds), missing),
        "Scores": _leaders(scores, metric, baseline),
        "How sure": certainty(tables["verdicts"], metric=metric, baseline=baseline),
        "Features": _sentence(features),
        "Cost": cost,
    }
    return {about: sentence for about, sentence in found.items() if sentence}


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
            "needed to judge all comparisons at once; read the differences as directions, not as findings."
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


def _setting(table: DataFrame, dataset: str, seeds: int, missing: int) -> str:
    if table.empty:
        return f"No arm has been evaluated on {dataset} yet{_missing(missing)}."
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
        f"over {_count(seeds, 'seed')}{_missing(missing)}."
    )


def _missing(missing: int) -> str:
    if not missing:
        return ""
    verb = "is" if missing == 1 else "are"
    return f"; {_count(missing, 'stage')} {verb} missing, so what follows rests on a part of the study"


def _leaders(table: DataFrame, metric: str, baseline: str | None) -> str:
    """Who leads at each label fraction."""
    parts = []
    for fraction in levels(table, "label_fraction"):
        part = table[table["label_fraction"] == fraction]
        ranked = leaders.ranked(part, best="high")
        partly = "over the seeds that all arms have, " if ranked.notna().sum().sum() < len(part) else ""
        parts.append(f"with {percent(fraction)} of the labels, {partly}{leaders.lead(ranked, metric, baseline)}")
    return f"By mean test {metric_name(metric)}: {'; '.join(parts)}." if parts else ""


def _frozen(table: DataFrame, metric: str, baseline: str | None) -> str:
    if table.empty or table["arm"].nunique() < 2:
        return ""
    most = table[table["label_fraction"] == table["label_fraction"].max()]
    lead = leaders.lead(leaders.ranked(most, best="high"), metric, baseline)
    return f"with the encoder frozen and only a linear classifier trained, {lead}"


def _reuse(table: DataFrame, baseline: str | None) -> str:
    """Which arm's features fine-tuning on the fewest labels leaves most alike, over blocks whose CKA says something.

    By the first kernel of the table, the debiased linear one unless a study leaves it out.
    """
    table = table[table["value"].notna()]
    if table.empty or table["arm"].nunique() < 2:
        return ""
    kernel, fraction = levels(table, "metric")[0], levels(table, "label_fraction")[0]
    part = table[(table["metric"] == kernel) & (table["label_fraction"] == fraction)]
    flags = part["uninformative"].fillna(False).astype(bool).groupby(part["block"]).transform("any")
    part = part[~flags]  # a flagged number ranks nobody
    if part.empty:
        return f"at {percent(fraction)} of the labels no feature similarity (CKA) is informative"
    means = part.groupby(["arm", "seed"], sort=False)["value"].mean().reset_index()
    ranked = leaders.ranked(means, best="high")
    first = str(ranked.columns[0])
    other = baseline if baseline and baseline in ranked and baseline != first else str(ranked.columns[1])
    blocks = part["block"].nunique()
    return (
        f"fine-tuning on {percent(fraction)} of the labels leaves the features of {arm_name(first)} most alike "
        f"({metric_name(kernel)}: {number(leaders.mean(ranked, 0), kernel)} on average over {_count(blocks, 'block')}; "
        f"{arm_name(other)} {number(float(ranked[other].mean()), kernel)})"
    )


def flagged(table: DataFrame) -> str:
    """How many feature similarities say nothing, in a sentence; empty where all do."""
    count = int(table["uninformative"].fillna(False).sum()) if "uninformative" in table else 0
    if not count:
        return ""
    return (
        f"Of the {len(table)} feature similarities (CKA), {count} are uninformative, because unrelated features "
        "would score as high; they are shown, not ranked."
    )


def _distances(table: DataFrame, baseline: str | None) -> str:
    """Which arm's outputs on the smallest fraction come closest to the reference."""
    table = table[table["label_fraction"] < 1]
    if table.empty or table["arm"].nunique() < 2:
        return ""
    smallest = levels(table, "label_fraction")[0]
    ranked = leaders.ranked(table[table["label_fraction"] == smallest], best="low")
    if told := not_ranked(table, ranked.mean()):
        return f"with {percent(smallest)} of the labels {told}"
    first = str(ranked.columns[0])
    compared = [f"KS distance {number(leaders.mean(ranked, 0), 'ks')}"]
    if baseline and baseline in ranked and baseline != first:
        compared.append(f"{arm_name(baseline)} {number(float(ranked[baseline].mean()), 'ks')}")
    if (floor := noise_floor(table)) is not None:
        compared.append(f"its seeds differ by {number(floor, 'ks')} already")
    return (
        f"with {percent(smallest)} of the labels the outputs of {arm_name(first)} come closest to the best model "
        f"trained on all of them, {arm_name(table.iloc[0]['reference_arm'])} ({'; '.join(compared)})"
    )


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(filter(None, parts))
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _measured(table: DataFrame, metric: str) -> DataFrame:
    return table[(table["metric"] == metric) & table["value"].notna()]


def _count(number_of: int, noun: str) -> str:
    word = _WORDS[number_of] if number_of < len(_WORDS) else str(number_of)
    return f"{word} {noun}{'' if number_of == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
