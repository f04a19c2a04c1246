"""This study's numbers beside the paper's: which cells are of the same kind, and where the two protocols part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pandas import DataFrame

from analysis.facts import Facts
from analysis.names import arm_name
from analysis.published import DATASETS, KS_REFERENCE, TABLES, Published, published

COLUMNS = (
    *("dataset", "table", "arm", "paper_arm", "mode", "label_fraction", "block", "metric"),
    *("seeds", "value", "low", "high", "paper_low", "paper_high", "uninformative"),
    *("published", "published_low", "published_high", "printed", "printed_low", "printed_high", "difference", "note"),
)
BLOCKS = (1, 2, 3, 4)

#: What the paper states of every dataset's pretraining (sections 3.2 and 4.1), by the key in a study's YAML.
_STATED: Mapping[str, object] = {
    "encoder.arch": "resnet50",
    "moco.queue": 65_536,
    "moco.temperature": 0.07,
    "moco.momentum": 0.99,
    "moco.dim": 128,
    "mse.scale": 0.25,
    "mse.pool": "grid",
    "barlow.scale": 5e-5,
    "barlow.width": 2048,
    "barlow.layers": 3,
    "barlow.centred": False,
    "learning_rate": 0.3,
    "sgd_momentum": 0.9,
    "weight_decay": 1e-4,
}
#: And of each dataset (section 4.2): epochs, samples a batch, and the side of the images in pixels.
_STATED_OF: Mapping[str, tuple[int, int, int]] = {
    "cxr14": (50, 16, 1024),
    "eyepacs": (100, 32, 299),
    "idc": (75, 32, 256),
}


def kind(config: Mapping[str, Any] | None) -> str | None:
    """The paper's arm that a resolved pretraining is of by its losses; None where the paper has no such arm.

    The paper's arms have one block loss or none, on all four blocks. Encoder and settings do not enter: where they
    differ, `departures` says so.
    """
    if config is None:
        return "supervised"
    losses = {name: loss for name in ("mse", "barlow") if (loss := config.get(name)) is not None}
    if any(tuple(sorted(loss.get("blocks", ()))) != BLOCKS for loss in losses.values()):
        return None
    match tuple(losses):
        case ():
            return "moco"
        case (only,):
            return f"moco_{only}"
        case _:
            return None


def beside(tables: Mapping[str, DataFrame], facts: Facts) -> DataFrame:
    """One row for each cell that this study and the paper both measured; empty for another dataset than the paper's.

    A cell matches in dataset (by its source), kind of arm, mode, label fraction, block and metric; the paper's CKA is
    our `cka_authors`, its kernel. `value` is the mean over `seeds` runs; low, high (95% bootstrap over groups) and
    paper_low, paper_high (the paper's formula) are the ends of one run's interval, averaged over runs. `published...`
    are the paper's numbers in the units of our tables, `printed...` their characters; difference = ours - paper's.
    """
    source = facts.dataset.get("source")
    if source not in DATASETS:
        return DataFrame(columns=list(COLUMNS))
    kinds = {arm: of for arm, config in facts.arms.items() if (of := kind(config))}
    found: list[tuple[int, dict[str, object]]] = []
    by = ["arm", "mode", "label_fraction", "block", "metric"]
    cells = {_key(cell): (place, cell) for place, cell in enumerate(published()) if cell.dataset == source}
    for name in TABLES:
        measured = tables[name][tables[name]["value"].notna() & tables[name]["arm"].isin(list(kinds))]
        for _, runs in measured.groupby(by, sort=False, dropna=False):
            first = runs.iloc[0]
            block = None if pd.isna(first["block"]) else int(first["block"])
            fraction = round(float(first["label_fraction"]), 6)
            key = (name, kinds[first["arm"]], first["mode"], fraction, block, _paper_metric(first["metric"]))
            if key in cells:
                place, cell = cells[key]
                found.append((place, {"arm": first["arm"], **_row(cell, runs)}))
    rows = [row for _, row in sorted(found, key=lambda each: each[0])]
    return DataFrame(rows, columns=list(COLUMNS)).astype({"block": "Int64"})


def departures(facts: Facts) -> list[tuple[str, str, str]]:
    """(setting, this study's value, the paper's) wherever an arm of the paper's kind or the images differ from what
    the paper states. What the paper leaves open is not compared."""
    source = str(facts.dataset.get("source"))
    if source not in DATASETS:
        return []
    epochs, batch, side = _STATED_OF[source]
    stated = {**_STATED, "epochs": epochs, "batch_size": batch}
    found: dict[tuple[str, str, str], None] = {}
    if facts.dataset.get("size") not in (None, side):
        found[("image side in pixels", str(facts.dataset["size"]), str(side))] = None
    for config in facts.arms.values():
        if config is None or kind(config) is None:
            continue
        for key, paper in stated.items():
            ours = _setting(config, key)
            if ours is not None and ours != paper:
                found[(key, _text(ours), _text(paper))] = None
    return list(found)


def replicates(facts: Facts) -> bool:
    """Whether the study follows the paper's text, as far as the text goes."""
    return facts.protocol == "paper" and not facts.switches and not departures(facts)


def heading(facts: Facts) -> str:
    return "Beside the paper" if replicates(facts) else "Beside the paper: another protocol, not a replication"


def reading(table: DataFrame, facts: Facts, reference: str | None) -> list[str]:
    """What a reader must know before comparing, a string a paragraph; `reference` is the arm of our KS distances."""
    source = str(facts.dataset.get("source"))
    if replicates(facts):
        protocol = "This study follows the paper's text wherever the text says how."
    else:
        protocol = f"This study follows the protocol {facts.protocol}"
        if facts.switches:
            protocol += f", with {', '.join(f'{key} {value}' for key, value in facts.switches.items())}"
        if differing := departures(facts):
            where = "one setting" if len(differing) == 1 else f"{len(differing)} settings"
            protocol += f"; its images or its pretraining differ from what the paper states in {where}, listed below"
        protocol += ". A difference may come from that alone, and says nothing for or against the paper's numbers."
    said = [
        protocol,
        "The paper's interval, mean ± 1.96 sd / √replicates, shrinks with the number of replicates, so it is no "
        "confidence interval, and the widths that the paper prints do not follow from it. Compare it with our numbers "
        "under the same formula, never with our 95% bootstrap interval.",
    ]
    if source == "idc" and (table["metric"] == "f1").any():
        said.append(
            "F1 is that of the positive class, as the paper's text has it; its published code scores macro F1 instead."
        )
    if (table["table"] == "ks").any():
        theirs = KS_REFERENCE[source]
        if reference != theirs:
            said.append(
                f"The paper measures KS distances from {arm_name(theirs)} fine-tuned on all labels, this study from "
                f"{arm_name(reference) if reference else 'another reference'}."
            )
    return said


def _key(cell: Published) -> tuple[str, str, str, float, int | None, str]:
    return (cell.table, cell.arm, cell.mode, cell.label_fraction, cell.block, cell.metric)


def _paper_metric(metric: str) -> str:
    """Our metric in the paper's words. `cka` itself is no metric of ours, and must not match."""
    return "cka" if metric == "cka_authors" else metric if metric != "cka" else ""


def _row(cell: Published, runs: DataFrame) -> dict[str, object]:
    """`runs`: one row a seed."""
    columns = ("value", "low", "high", "paper_low", "paper_high")
    ours = {name: float(runs[name].mean()) if name in runs else float("nan") for name in columns}
    return {
        "dataset": cell.dataset,
        "table": cell.table,
        "paper_arm": cell.arm,
        "mode": cell.mode,
        "label_fraction": cell.label_fraction,
        "block": cell.block,
        "metric": cell.metric,
        "seeds": len(runs),
        **ours,
        "uninformative": "uninformative" in runs and bool(runs["uninformative"].fillna(False).any()),
        "published": cell.value,
        "published_low": cell.low,
        "published_high": cell.high,
        "printed": cell.printed,
        "printed_low": cell.printed_low,
        "printed_high": cell.printed_high,
        "difference": None if cell.value is None else ours["value"] - cell.value,
        "note": cell.note,
    }


def _setting(config: Mapping[str, Any], key: str) -> object:
    """An arm's setting as the paper would state it: one number for scales that are alike, and the learning rate that
    is used at this batch. None where the arm has none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Sequence) and not isinstance(value, str) and len(set(value)) == 1:
        return value[0]
    if key == "learning_rate" and value is not None and (per := config.get("learning_rate_batch")) is not None:
        return value * config["batch_size"] / per
    return value


def _text(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case int():
            return f"{value:,}"
        case list() | tuple():
            return ", ".join(map(_text, value))
        case _:
            return str(value)
