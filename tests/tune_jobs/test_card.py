"""The model card: what it must say, MLflow's limit, and names that are no markup."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from analysis.model_calibration import reliability
from analysis.strata import by_class, by_group
from tune_jobs.promotion.card import CardFacts, card, description
from tune_jobs.promotion.gates import Gate
from tune_jobs.promotion.measured import Calibration, Measured
from tune_jobs.promotion.registry import DESCRIPTION

MARKUP = "<img src=x onerror=alert(1)> [here](javascript:alert(1)) |*`"


def facts(classes: int = 3, **changes: Any) -> CardFacts:
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=120)
    p = rng.dirichlet(np.ones(classes), size=120) * 0.5 + 0.5 * np.eye(classes)[labels]
    names = [f"{MARKUP} {i}" if i == 0 else f"class {i}" for i in range(classes)]
    groups = np.arange(120) // 3
    drawn: dict[str, Any] = {"groups": groups, "replicates": 50, "seed": 0}
    bins = Calibration(0.1234, 0.4321, reliability(labels, p, "multiclass"), 120)
    measured = Measured(
        scores=[{"metric": "auroc", "value": 0.9, "low": 0.85, "high": None, "n": 120}],
        classes=by_class(labels, p, "multiclass", **drawn, names=names),
        groups=by_group(labels, p, "multiclass", **drawn),
        calibration={"validation": bins, "test": bins},
        replicates=50,
    )
    values: dict[str, Any] = {
        "model": "chest", "study": "wards", "question": MARKUP, "arm": "moco_mse", "seed": 3, "why": "it is the best",
        "mode": "full", "fraction": 0.06, "pretraining": "InfoNCE alone: plain MoCo.", "accepted": [f"{MARKUP} leak."],
        "dataset": {
            "name": MARKUP, "task": "multiclass", "class_names": names, "n": {"train": 900, "val": 120, "test": 120},
            "groups": {"train": 300, "val": 40, "test": 40}, "fingerprint": "f" * 64, "channels": 1, "size": 64,
            "splits": "made, seed 0",
        },
        "notes": [], "protocol": "recommended", "switches": {"a.b": MARKUP}, "seeds": {2: 0.8, 3: 0.9},
        "metric": "auroc", "measured": measured, "temperature": 1.0, "reason": MARKUP,
        "gates": [Gate("champion", False, MARKUP)], "exports": ["model.onnx"], "lineage": {"stage": "finetune-1"},
    }  # fmt: skip
    return CardFacts(**{**values, **changes})


def test_the_card_says_what_the_model_is_and_is_not_for() -> None:
    text = card(facts())
    for words in (
        "**Not for clinical use.**",
        "proper approval by the FDA",
        "AUROC | 0.900 | unknown | 120",
        "40 groups (patients, slides) with 120 test images",
        "Expected calibration error 0.1234",
        "**FAIL**, champion",
        "**Promoted by force.**",
        "fine-tuned on 6% of the training labels",
        "0.8000 (seed 2), 0.9000 (seed 3)",
        "models:/chest@champion",
        "| test | 120 | 40 |",
    ):
        assert words in text, words
    assert len(re.findall(r"^\| class \d", text, flags=re.MULTILINE)) == 2
    assert "temperature" not in text
    assert "divided by the temperature 1.5" in card(facts(temperature=1.5))
    assert "**Promoted by force.**" not in card(facts(reason=None))


def test_names_are_no_markup_in_a_card() -> None:
    text = card(facts())
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\[here\]?(?<!\\)\]\(", text)
    for row in re.findall(r"^\|.*\|$", text, flags=re.MULTILINE):  # a bar in a name opens no column
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 4, 5)


@pytest.mark.parametrize("classes", [2, 14, 60, 300])
def test_the_description_fits_mlflow_and_keeps_the_warning(classes: int) -> None:
    few = facts(classes)
    text = description(few)
    assert len(text) <= DESCRIPTION
    assert "**Not for clinical use.**" in text
    assert "## Test scores" in text
    assert "## Where it comes from" in text
    whole = card(few)
    assert text == whole or "The whole card is the file `card.md`" in text


def test_a_card_that_fits_is_shown_whole() -> None:
    short = dataclasses.replace(facts(2), switches={}, question="", notes=[], accepted=[], reason=None)
    gates = [Gate("leaks", True, "none")]
    short = dataclasses.replace(short, gates=gates)
    assert description(short) == card(short)
