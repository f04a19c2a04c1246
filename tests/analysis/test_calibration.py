"""ECE and Brier score against scikit-learn, by hand, and their invariances."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from analysis.calibration import brier, ece


def binary(n=500, seed=0):
    draw = np.random.default_rng(seed)
    p = draw.random((n, 1))
    return (draw.random(n) < p[:, 0] ** 2).astype(np.int64), p


def multiclass(n=400, c=5, seed=0):
    draw = np.random.default_rng(seed)
    p = draw.dirichlet(np.full(c, 0.5), n)
    return np.array([draw.choice(c, p=row) for row in p]), p


def multilabel(n=300, k=4, seed=0):
    draw = np.random.default_rng(seed)
    p = draw.random((n, k)).astype(np.float32)
    return (draw.random((n, k)) < p).astype(np.uint8), p


def by_bins(happened, confidence, bins):
    """Guo et al. 2017, equation 3, a bin at a time."""
    total = 0.0
    for b in range(bins):
        last = b == bins - 1
        inside = (confidence >= b / bins) & ((confidence < (b + 1) / bins) | last)
        if inside.any():
            total += inside.sum() / len(confidence) * abs(happened[inside].mean() - confidence[inside].mean())
    return total


def test_binary_ece_equals_scikit_learns_calibration_curve_weighted_by_bin():
    labels, p = binary()
    true, predicted = calibration_curve(labels, p[:, 0], n_bins=10)
    counts = np.histogram(p, bins=10, range=(0, 1))[0]
    assert ece(labels, p, "binary", bins=10) == pytest.approx((counts / 500 * abs(true - predicted)).sum(), abs=1e-12)


@pytest.mark.parametrize("bins", [2, 15])
def test_ece_equals_its_formula_for_each_task(bins):
    labels, p = binary()
    assert ece(labels, p, "binary", bins=bins) == pytest.approx(by_bins(labels, p[:, 0], bins), abs=1e-12)
    labels, p = multiclass()
    expected = by_bins(p.argmax(1) == labels, p.max(1), bins)
    assert ece(labels, p, "multiclass", bins=bins) == pytest.approx(expected, abs=1e-12)
    labels, p = multilabel()
    expected = np.mean([by_bins(labels[:, k], p[:, k].astype(np.float64), bins) for k in range(4)])
    assert ece(labels, p, "multilabel", bins=bins) == pytest.approx(expected, abs=1e-12)


def test_ece_of_hand_made_answers():
    sure, split = np.ones((4, 1)), np.full((4, 1), 0.5)
    assert ece(np.array([1, 1, 1, 1]), sure, "binary") == 0
    assert ece(np.array([0, 0, 0, 0]), sure, "binary") == 1
    assert ece(np.array([0, 1, 0, 1]), split, "binary") == 0
    assert ece(np.array([0, 0, 0, 1]), split, "binary") == pytest.approx(0.25)


def test_ece_does_not_depend_on_the_order_of_images():
    labels, p = multiclass()
    order = np.random.default_rng(1).permutation(len(labels))
    assert ece(labels[order], p[order], "multiclass") == pytest.approx(ece(labels, p, "multiclass"), abs=1e-12)


def test_brier_equals_scikit_learns():
    labels, p = binary()
    assert brier(labels, p, "binary") == pytest.approx(brier_score_loss(labels, p[:, 0]), abs=1e-12)
    labels, p = multiclass()
    whole = brier_score_loss(labels, p, labels=np.arange(5), scale_by_half=False)
    assert brier(labels, p, "multiclass") == pytest.approx(whole, abs=1e-12)
    labels, p = multilabel()
    each = [brier_score_loss(labels[:, k], p[:, k].astype(np.float64)) for k in range(4)]
    assert brier(labels, p, "multilabel") == pytest.approx(np.mean(each), abs=1e-12)


def test_two_classes_score_twice_the_binary_brier():
    labels, p = binary()
    assert brier(labels, np.hstack([1 - p, p]), "multiclass") == pytest.approx(2 * brier(labels, p, "binary"))
