"""Each gate passed and failed, by what it is told."""

from __future__ import annotations

import math

import pytest

from analysis.calibration import ece
from ssl_core.data.evidence import stop
from tune_jobs.promotion.gates import (
    Reloaded,
    Standing,
    beats_champion,
    calibration,
    leaks,
    reloads,
    weights,
    worst_class,
)

SIX = range(6)


def standing(name: str, scores: dict[int, float], **changes: str) -> Standing:
    return Standing(**{"name": name, "metric": "auroc", "fingerprint": "f", "images": "i", "scores": scores, **changes})


NEW, OLD = standing("new", {s: 0.9 + s / 1000 for s in SIX}), standing("old", {s: 0.8 + s / 900 for s in SIX})


def test_six_seeds_that_all_gain_beat_the_champion_and_not_the_other_way_round() -> None:
    gate = beats_champion(NEW, OLD)
    assert gate.passed
    assert gate.sentence.endswith("over 6 paired seeds, exact p 0.0312: better")
    assert gate.numbers["p"] == 2 / 2**6
    assert gate.numbers["effect"] == pytest.approx(0.1 + 15 / 6 * (1 / 1000 - 1 / 900))
    back = beats_champion(OLD, NEW)
    assert not back.passed
    assert ': worse; else give --force --reason "..."' in back.sentence
    assert back.forceable


def test_no_champion_no_need_to_beat_one() -> None:
    assert beats_champion(NEW, None).passed


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_few_seeds_never_beat_a_champion(seeds: int) -> None:
    few = {s: NEW.scores[s] for s in range(seeds)}
    gate = beats_champion(standing("new", few), OLD)
    assert not gate.passed
    assert f"needs more seeds: {seeds} seeds can never reach p < 0.05, at least 6" in gate.sentence


def test_equals_do_not_beat_one_another() -> None:
    gate = beats_champion(NEW, NEW)
    assert not gate.passed
    assert "no difference shown" in gate.sentence


@pytest.mark.parametrize(
    ("champion", "why"),
    [
        (standing("old", OLD.scores, fingerprint="other"), "other data (other, here f)"),
        (standing("old", OLD.scores, images="drop_last"), "other validation images"),
        (standing("old", OLD.scores, metric="f1"), "another metric (F1, here AUROC)"),
        (standing("old", {9: 0.5}), "no seed in common"),
        ("stage finetune-1 is not in runs/stages", "is not in runs/stages"),
    ],
)
def test_a_champion_of_another_kind_is_not_beaten_but_forced(champion: Standing | str, why: str) -> None:
    gate = beats_champion(NEW, champion)
    assert not gate.passed
    assert why in gate.sentence
    assert "--force --reason" in gate.sentence
    assert gate.forceable


def test_calibration_is_held_to_its_bound() -> None:
    labels, p = [1] * 5 + [0] * 5, [[0.6]] * 10
    import numpy as np

    error = ece(np.array(labels), np.array(p), "binary")
    assert error == pytest.approx(0.1)
    assert calibration(error, 0.11, 10).passed
    gate = calibration(error, 0.09, 10)
    assert not gate.passed
    assert not gate.forceable
    assert "0.1000 on 10 validation images, 0.09 is allowed; promotion.temperature" in gate.sentence
    assert not calibration(math.nan, 1.0, 0).passed


def test_the_worst_class_is_held_to_the_floor() -> None:
    assert worst_class([0.9, 0.5], ["well", "ill"], 0.5, "binary").passed
    gate = worst_class([0.9, 0.49], ["well", "ill"], 0.5, "binary")
    assert not gate.passed
    assert gate.sentence.startswith("worst class ill: recall 0.4900 on validation, at least 0.5 is asked for")
    assert "worst label ill: AUROC" in worst_class([0.9, 0.4], ["well", "ill"], 0.5, "multilabel").sentence
    unknown = worst_class([0.9, math.nan], ["well", "ill"], 0.0, "binary")
    assert not unknown.passed
    assert "class ill has no validation image" in unknown.sentence


def test_a_leak_stops_a_promotion_unless_it_is_accepted_by_name() -> None:
    found = [stop("group_overlap", 3, ("p1",), "3 patients are in two splits.")]
    gate = leaks(found, [])
    assert not gate.passed
    assert gate.sentence.startswith("group_overlap: 3 patients are in two splits.")
    accepted = leaks([], found)
    assert accepted.passed
    assert "group_overlap, which the study accepts by name" in accepted.sentence
    assert leaks([], []).passed
    assert not leaks(None, []).passed, "no audit is no clean audit"


def test_swapped_weights_have_another_digest() -> None:
    recorded = {"model.pt": "a" * 64, "predictions.npz": "b" * 64}
    assert weights(recorded, dict(recorded)).passed
    for found in ({**recorded, "model.pt": "c" * 64}, {"model.pt": "a" * 64}):
        gate = weights(recorded, found)
        assert not gate.passed
        assert "it was changed since" in gate.sentence
        assert not gate.forceable


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Reloaded(100, 2e-6, "cpu", "cpu"), "2e-06 on 100 validation images (1e-06 is allowed)"),
        (Reloaded(100, math.nan, "cpu", "cpu"), "not those that were evaluated"),
        (Reloaded(0, 0.0, "cpu", "cpu"), "0 validation images"),
        (Reloaded(100, 0.0, "cpu", "cpu", sources=(3, 0.2)), "0.2 on 3 original files"),
        (Reloaded(0, 0.0, "cpu", "cpu", sources=(48, 0.2)), "stored probabilities 0.2 on 48 original files (1e-06 is"),
        (Reloaded(0, 0.0, "cpu", "cpu", sources=(48, math.nan)), "not those that were evaluated"),
        (Reloaded(0, math.nan, "cpu", "cpu", error="No module named 'x'"), "No module named 'x'"),
    ],
)
def test_a_model_that_says_other_things_when_reloaded_does_not_pass(found: Reloaded, words: str) -> None:
    gate = reloads(found)
    assert not gate.passed
    assert words in gate.sentence
    assert not gate.forceable


def test_a_model_that_says_the_same_passes() -> None:
    assert reloads(Reloaded(100, 1e-6, "cpu", "cpu", sources=(3, 1e-9))).passed
    cropped = reloads(Reloaded(0, 0.0, "cpu", "cpu", sources=(48, 1e-9)))
    assert cropped.passed
    assert "validation images" not in cropped.sentence
    other = reloads(Reloaded(100, 1e-3, "NVIDIA H100", "cpu", tolerance=1e-2))
    assert other.passed
    assert "evaluated on NVIDIA H100, reloaded on cpu" in other.sentence
