"""Scores by class and by group against scikit-learn, and what a bootstrap over groups must do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from analysis.calibration import ece
from analysis.model_calibration import draw, reliability
from analysis.strata import by_class, by_group

RNG = np.random.default_rng(0)


def multiclass(n: int = 200) -> tuple[Any, Any]:
    labels = RNG.integers(3, size=n)
    logits = RNG.normal(size=(n, 3)) + 2 * np.eye(3)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_classes_agree_with_scikit_learn() -> None:
    labels, p = multiclass()
    found = by_class(labels, p, "multiclass", groups=np.arange(200), names="abc", replicates=200, seed=1)
    recall = recall_score(labels, p.argmax(axis=1), average=None)
    for c, of in enumerate(found):
        assert (of.name, of.images) == ("abc"[c], int((labels == c).sum()))
        assert of.recall.value == pytest.approx(recall[c], abs=1e-12)
        assert of.auroc.value == pytest.approx(roc_auc_score(labels == c, p[:, c]), abs=1e-12)
        # the textbook's interval of a share, on as many images
        half = 1.96 * math.sqrt(recall[c] * (1 - recall[c]) / of.images)
        assert of.recall.high - of.recall.low == pytest.approx(2 * half, rel=0.25)
        assert of.auroc.low < of.auroc.value < of.auroc.high


def test_two_classes_have_specificity_and_sensitivity_and_one_auroc() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    p = np.array([[0.1], [0.5], [0.7], [0.9], [0.2]])
    well, ill = by_class(labels, p, "binary", groups=np.arange(5), names=["well", "ill"], replicates=20, seed=0)
    assert (well.recall.value, ill.recall.value) == (2 / 3, 1 / 2)
    assert well.auroc == ill.auroc
    assert well.auroc.value == pytest.approx(roc_auc_score(labels, p[:, 0]))


def test_a_label_that_nobody_has_is_no_number() -> None:
    labels = np.array([[0, 1], [0, 0], [0, 1]], dtype=np.uint8)
    p = np.full((3, 2), 0.4)
    absent, there = by_class(labels, p, "multilabel", groups=np.arange(3), names="xy", replicates=50, seed=0)
    assert absent.images == 0
    assert all(math.isnan(v) for e in (absent.recall, absent.auroc) for v in (e.value, e.low, e.high))
    assert (there.recall.value, there.auroc.value) == (0.0, 0.5)


def test_images_of_one_group_count_as_one() -> None:
    """Every image written ten times widens no interval's knowledge: groups are resampled."""
    labels, p = multiclass(60)
    once = by_class(labels, p, "multiclass", groups=np.arange(60), names="abc", replicates=100, seed=3)
    tenfold = by_class(
        np.repeat(labels, 10), np.repeat(p, 10, axis=0), "multiclass", groups=np.repeat(np.arange(60), 10), names="abc",
        replicates=100, seed=3,
    )  # fmt: skip
    for a, b in zip(once, tenfold, strict=True):
        assert (a.recall, a.auroc) == (b.recall, b.auroc)


def test_groups_count_once_however_many_images_they_have() -> None:
    labels = np.zeros(8, dtype=np.int64)
    p = np.array([[0.9]] * 6 + [[0.1]] * 2)  # six images of patient a are called wrong, one of b and of c right
    groups = np.array(["a"] * 6 + ["b", "c"])
    found = by_group(labels, p, "binary", groups=groups, replicates=200, seed=0)
    assert (found.groups, found.images, found.none_right) == (3, 8, 1)
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert found.worst_decile == pytest.approx(np.percentile([0, 1, 1], 10))
    assert [(s.name, s.groups, s.images, s.accuracy.value) for s in found.sizes] == [
        ("1 image", 2, 2, 1.0),
        ("6 or more images", 1, 6, 0.0),
    ]
    assert by_group(labels, p, "binary", groups=np.arange(8), replicates=2, seed=0).sizes == ()


def test_bins_hold_every_prediction_and_add_up_to_the_calibration_error(tmp_path: Path) -> None:
    labels, p = multiclass()
    bins = reliability(labels, p, "multiclass", bins=15)
    assert sum(b.n for b in bins) == 200
    gap = sum(b.n * abs(b.happened - b.confidence) for b in bins) / 200
    assert gap == pytest.approx(ece(labels, p, "multiclass", bins=15), abs=1e-12)
    for name in ("a.svg", "b.svg", "c.png"):
        draw({"validation": bins, "test": bins}, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
