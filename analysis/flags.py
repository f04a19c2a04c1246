"""Which numbers rank nobody: a KS distance from a reference that knows nothing, or a lead within the noise floor, or
one without a floor to hold it against.

CKA brings its own flag (see `cka.Similarity`). A flagged number is shown with a mark, and is never bold, never the one
that leads, never better or worse than another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

from analysis.names import arm_name, number


def flag_weak_reference(tables: Mapping[str, DataFrame]) -> dict[str, DataFrame]:
    """The tidy tables with `uninformative` set in ks: whether the reference is not shown to be better than chance.

    That is so where the 95% bootstrap interval of its test AUROC, in label_efficiency, reaches 0.5 or below. Closeness
    to such a model is no merit. Where its AUROC was not measured nothing is flagged.
    """
    ks = tables["ks"]
    if not {"reference_arm", "reference_seed"} <= set(ks):
        return dict(tables)
    known = _not_better_than_chance(tables["label_efficiency"])
    weak = [
        (row["reference_arm"], row["reference_seed"]) in known if row["metric"] == "ks" else None
        for row in ks.to_dict("records")
    ]
    return {**tables, "ks": ks.assign(uninformative=pd.array(weak, dtype="boolean"))}


def _not_better_than_chance(scores: DataFrame) -> set[tuple[Any, Any]]:
    """(arm, seed) of models trained on all labels whose AUROC may be 0.5."""
    rows = scores[(scores["metric"] == "auroc") & (scores["label_fraction"] == 1) & (scores["low"] <= 0.5)]
    return set(zip(rows["arm"], rows["seed"], strict=True))


def noise_floor(table: DataFrame) -> float | None:
    """KS distance between seeds of the reference itself; None where it has one seed, so that nobody knows."""
    floors = table["floor"].dropna() if "floor" in table else table["value"].iloc[:0]
    return float(floors.mean()) if len(floors) else None


def unranked(table: DataFrame) -> bool:
    """Whether any of these numbers is flagged, so that none of them leads."""
    return "uninformative" in table and bool(table["uninformative"].fillna(False).any())


def not_ranked(table: DataFrame, means: Series[float]) -> str:
    """Why no arm is called the closest to the reference, in words; empty where one is.

    `table` holds KS distances; `means` those of the arms that are compared, by arm, the closest first.
    """
    reference = arm_name(table.iloc[0]["reference_arm"])
    if unranked(table):
        return (
            f"no arm is called closest to the best model trained on all labels ({reference}): that model itself is not "
            "shown to be better than chance"
        )
    floor = noise_floor(table)
    if len(means) < 2 or (floor is not None and means.iloc[1] - means.iloc[0] > floor):
        return ""
    if floor is None:
        return (
            f"no arm is called closest to the best model trained on all labels ({reference}): that model has one seed, "
            "so by how much its own seeds differ is not known"
        )
    first, second = (arm_name(str(arm)) for arm in means.index[:2])
    values = " and ".join(number(float(value), "ks") for value in means.iloc[:2])
    return (
        f"{first} and {second} give output probabilities equally close to the best model trained on all labels "
        f"({reference}): KS distances {values}, no further apart than the {number(floor, 'ks')} between seeds of "
        "that model"
    )
