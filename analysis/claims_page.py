"""The report's section on the paper's claims: what each says, what this study's data say of it, what the paper's do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas import DataFrame

from analysis.claims import CLAIMS, Claim
from analysis.facts import Facts
from analysis.names import SCORES, arm_name, number, percent
from analysis.page import p_value, signed
from analysis.published import DATASETS, TABLES
from analysis.published_claims import average_gain, own_support
from analysis.published_flags import Flag, check
from analysis.search_tables import TextTable
from analysis.study_claims import of_claim, overall
from analysis.tables import markdown_text

_NONE = "–"
_KERNELS = {"cka_linear": "linear CKA", "cka_rbf": "RBF CKA", "cka_authors": "authors’ CKA"}
_COLUMNS = [
    *(("Arm", False), ("Against", False), ("Difference", True), ("95% interval", True), ("Seeds", True)),
    *(("p, Holm", True), ("This study", False), ("Paper", True)),
]


@dataclass(frozen=True, kw_only=True)
class ClaimsSection:
    """What the template draws. Without a `table` nothing was measured that a claim speaks of; `reading` says why."""

    reading: tuple[str, ...]
    said: tuple[tuple[str, str], ...]  # of each claim its title, and what the paper says and shows
    table: TextTable | None
    notes: tuple[str, ...]
    flags: tuple[Flag, ...]  # in the paper's own tables

    def markdown(self) -> str:
        """The section of report.md."""
        parts = ["## The paper's claims", *map(markdown_text, self.reading)]
        parts += (
            ["\n".join(f"- **{markdown_text(t)}.** {markdown_text(text)}" for t, text in self.said)]
            if self.said
            else []
        )
        parts += [self.table.markdown()] if self.table else []
        parts += [_bullets(self.notes)] if self.notes else []
        if self.flags:
            parts += ["What does not fit in the paper's own tables:", _bullets(map(flag_text, self.flags))]
        return "\n\n".join(parts)


def section(table: DataFrame, tables: Mapping[str, DataFrame], facts: Facts, dataset: str) -> ClaimsSection:
    """The section from `table`, the study's claims as `study_claims` makes them."""
    measured = table["outcome"] != "not measured"
    reasons = table.loc[~measured & table["reason"].notna()]
    notes = [f"Not measured: {reason}." for reason in dict.fromkeys(reasons["reason"])]
    if not measured.any():
        lacking = [reason for reason in reasons["reason"] if reason.startswith("no arm")]
        why = _listed(lacking) or "no two arms that they compare have been tested alike yet"
        said = f"Nothing that this study measured speaks to the paper's claims: {why}."
        return ClaimsSection(reading=(said,), said=(), table=None, notes=(), flags=())
    groups = {}
    for claim in CLAIMS:
        rows = table[table["claim"] == claim.key]
        groups[f"{claim.title}: {of_claim(claim, table)}"] = list(_rows(rows))
    points = ", scores in percentage points" if (table["metric"].isin(SCORES)).any() else ""
    shown = TextTable(
        "claims",
        f"Each claim with the verdict of this study{points}.",
        "Difference: arm less the other, mean over paired seeds; of several blocks or fractions, lowest to highest. "
        "Supported: better with p ≤ 0.05 after Holm's correction; contradicted: worse with p ≤ 0.05; not shown: "
        "neither; partly: some cells supported, fewer contradicted; uninformative: flagged numbers, which are not "
        "ranked. The paper's CKA is that of its own kernel. Cells (blocks, label fractions) are in tables/claims.csv.",
        _COLUMNS,
        groups,
        wraps=True,
    )
    return ClaimsSection(
        reading=tuple(_reading(table, tables, facts, dataset)),
        said=tuple(map(_said, CLAIMS)),
        table=shown,
        notes=tuple(notes),
        flags=tuple(check()),
    )


def flag_text(flag: Flag) -> str:
    """`Table 5, against the claim: idc at 1%: ...`."""
    return f"Table {flag.number}, {flag.kind}: {flag.text}."


def _reading(table: DataFrame, tables: Mapping[str, DataFrame], facts: Facts, dataset: str) -> Iterator[str]:
    source = facts.dataset.get("source")
    if source in DATASETS:
        yield (
            f"The column Paper holds the paper's own difference on this dataset ({source}). Where this study differs "
            "from the paper's protocol, a difference of findings may come from that."
        )
    else:
        yield (
            f"{dataset} is none of the paper's datasets ({_listed(DATASETS)}). The column Paper therefore holds the "
            "mean of its differences on those, with the lowest and the highest; a claim that is not supported here is "
            "not thereby refuted there, nor the other way round."
        )
    yield (
        "Each outcome is the comparison's verdict in verdicts.csv, adjusted over its whole family, which is all "
        "comparisons of one measure in its table: no claim gets a milder test than its neighbours. Each family holds "
        "its chance of a false finding at 0.05, so over all claims together it is higher."
    )
    yield _averages(table, tables, dataset)


def _averages(table: DataFrame, tables: Mapping[str, DataFrame], dataset: str) -> str:
    """The abstract's average gains, as Table 2 gives them and as this study does in the same way."""
    words = []
    for key, fraction in (("gain_1", 0.01), ("gain_6", 0.06)):
        gain = average_gain(fraction)
        text = f"{gain.relative:.2f}% ({gain.points:.2f} points) with {percent(fraction)} of the labels"
        words.append((text, _own_gain(table[table["claim"] == key], tables)))
    said = (
        "The paper's average gains of 5% and 2% are relative, and take the loss that did better on the test images of "
        f"each dataset: {_listed([text for text, _ in words])}."
    )
    ours = [f"{own} with {percent(f)}" for (_, own), f in zip(words, (0.01, 0.06), strict=True) if own]
    return f"{said} Computed in that way, which flatters, {dataset} gives {_listed(ours)}." if ours else said


def _own_gain(rows: DataFrame, tables: Mapping[str, DataFrame]) -> str:
    """`8.2% (4.9 points, MoCo + MSE)`: the study's best loss over MoCo, over the seeds that both have."""
    rows = rows[rows["effect"].notna() & rows["metric"].isin(SCORES)]
    if rows.empty:
        return ""
    best = rows.sort_values("effect", kind="stable").iloc[-1]
    scores = tables["label_efficiency"]
    same = (scores["metric"] == best["metric"]) & (scores["label_fraction"] == best["label_fraction"])
    runs = scores[same & scores["mode"].eq("full")].pivot(index="seed", columns="arm", values="value")
    base = runs[[best["arm"], best["against"]]].dropna()[best["against"]].mean()
    share = 100 * best["effect"] / base
    sign = "−" if share < 0 else ""
    return f"{sign}{abs(share):.2f}% ({number(best['effect'], best['metric'])} points, {arm_name(best['arm'])})"


def _said(claim: Claim) -> tuple[str, str]:
    own = own_support(claim)
    count = len(own.overlapping) if claim.significant else 0
    overlap = f", {count} of them with intervals that overlap" if count else ""
    number_of = TABLES.index(claim.table) + 1
    shows = f"In its Table {number_of}, {own.held} of {own.of} comparisons are as claimed{overlap}."
    return claim.title, f"{claim.says} ({claim.section[:1].upper()}{claim.section[1:]}.) {shows}"


def _rows(rows: DataFrame) -> Iterator[list[str]]:
    """A row for each arm and measure, over all its cells."""
    for _, part in rows.groupby(["paper_arm", "arm", "metric"], dropna=False, sort=False):
        first = part.iloc[0]
        arm = first["paper_arm"] if pd.isna(first["arm"]) else first["arm"]
        if pd.isna(first["metric"]):
            yield [arm_name(str(arm)), *[_NONE] * 5, "not measured", _NONE]
            continue
        metric = str(first["metric"])
        head = arm_name(str(arm)) + (f", {_KERNELS.get(metric, metric)}" if metric.startswith("cka") else "")
        apart = int(first["other_settings"])
        differs = (
            f" ({apart} other setting{'' if apart == 1 else 's'} differ{'s' if apart == 1 else ''})" if apart else ""
        )
        known = part[part["effect"].notna()]
        yield [
            head,
            arm_name(first["against"]) + differs,
            _span(known["effect"].tolist(), metric),
            _interval(part),
            _range(known["n"].astype(int).tolist()),
            p_value(float(known["p_holm"].iloc[0])) if len(part) == len(known) == 1 else _NONE,
            _outcome(part),
            _paper(part, metric),
        ]


def _outcome(part: DataFrame) -> str:
    """One cell: its outcome; several: the outcome over all, and how many have which."""
    outcomes = part["outcome"].tolist()
    most = part["seeds_needed"].max()
    words = {"needs more seeds": f"needs at least {most} seeds"}
    if len(outcomes) == 1:
        return str(words.get(outcomes[0], outcomes[0]))
    counts = {words.get(each, each): outcomes.count(each) for each in dict.fromkeys(outcomes)}
    if len(counts) == 1:
        return f"{next(iter(counts))} in all {len(outcomes)}"
    prefix = "partly: " if overall(outcomes) == "partly" else ""
    tally = ", ".join(f"{each} in {n}" for each, n in counts.items())
    return f"{prefix}{tally}"


def _interval(part: DataFrame) -> str:
    row = part.iloc[0]
    if len(part) > 1 or pd.isna(row["low"]):
        return _NONE
    return f"{signed(row['low'], row['metric'])} to {signed(row['high'], row['metric'])}"


def _paper(part: DataFrame, metric: str) -> str:
    """The paper's difference at one cell, with its range over datasets; of several cells the lowest to the highest."""
    known = part[part["paper_effect"].notna()]
    if len(known) != 1:
        return _span(known["paper_effect"].tolist(), metric)
    row = known.iloc[0]
    spread = f" ({_span([row['paper_low'], row['paper_high']], metric)})" if "," in row["paper_datasets"] else ""
    return f"{signed(row['paper_effect'], metric)}{spread}"


def _span(values: list[float], metric: str) -> str:
    if not values:
        return _NONE
    ends = dict.fromkeys((signed(min(values), metric), signed(max(values), metric)))
    return " to ".join(ends)


def _range(values: list[int]) -> str:
    return "–".join(map(str, sorted({min(values), max(values)}))) if values else _NONE


def _listed(words: Any) -> str:
    words = list(dict.fromkeys(words))
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _bullets(sentences: Any) -> str:
    return "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences)
