"""The reliability diagram: bins add up to the calibration error, and too few images say nothing."""

import numpy as np
import pandas as pd
import pytest

from analysis import calibration, reliability
from analysis.tables import Finished
from tests.analysis import report_fixture as fixture


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return reliability.measured(fixture.study(tmp_path_factory.mktemp("stages")), fixture.ARMS)


def predictions(task, n=400):
    noise = np.random.default_rng(3)
    match task:
        case "binary":
            return noise.integers(2, size=n), noise.random((n, 1))
        case "multiclass":
            p = noise.random((n, 4))
            return noise.integers(4, size=n), p / p.sum(axis=1, keepdims=True)
        case "multilabel":
            return noise.integers(2, size=(n, 3)), noise.random((n, 3))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_bins_hold_every_image_once_and_give_the_calibration_error(task):
    labels, p = predictions(task)
    n, stated, observed = calibration.reliability(labels, p, task, bins=7)
    assert n.sum() == labels.size
    error = np.nansum(n * np.abs(observed - stated)) / n.sum()
    if task == "multilabel":  # the error is averaged over labels, the bins are pooled: as if one label of all
        assert error == pytest.approx(calibration.ece(labels.ravel(), p.reshape(-1, 1), "binary", bins=7))
    else:
        assert error == pytest.approx(calibration.ece(labels, p, task, bins=7))


def test_an_empty_bin_has_no_share():
    n, stated, observed = calibration.reliability(np.array([1, 0]), np.array([[0.95], [0.05]]), "binary", bins=10)
    assert n.tolist() == [1, *[0] * 8, 1]
    assert np.isnan(stated[1:9]).all()
    assert observed[[0, 9]].tolist() == [0.0, 1.0]


def test_every_model_whose_weights_were_all_trained_is_measured_seed_by_seed(table):
    models = table.groupby(["arm", "label_fraction"])["seed"].nunique()
    assert len(models) == 4 * 3
    assert set(models) == {2}
    assert (table.groupby(["arm", "label_fraction", "seed"])["n"].sum() == fixture.N_TEST).all()


def test_an_arm_of_both_modes_is_shown_as_it_was_fine_tuned(tmp_path):
    stages = [s for s in fixture.study(tmp_path, arms=("moco",), seeds=(0,)) if s.kind == "finetune"]
    scratch = [Finished(s.kind, s.key, {**s.labels, "mode": "scratch"}, s.folder) for s in stages]
    both = reliability.measured([*scratch, *stages], ("moco",))
    assert both.equals(reliability.measured([s for s in stages if s.labels["mode"] == "full"], ("moco",)))


def test_bins_of_too_few_images_are_not_drawn():
    rows = [("a", 0.01, seed, b, n, 0.1 * b, 0.5) for seed in (0, 1) for b, n in ((0, 4), (1, 5), (2, 90))]
    table = pd.DataFrame(rows, columns=list(reliability.COLUMNS))
    scores = pd.DataFrame({"metric": ["ece"], "label_fraction": [0.01], "arm": ["a"], "value": [0.0321]})
    figure = reliability.reliability(table, scores, arms=("a",))
    (axes,) = figure.axes
    assert axes.lines[1].get_xdata().tolist() == pytest.approx([0.1, 0.2])
    assert "a: ECE 0.032" in axes.get_xlabel()


def test_strokes_span_the_seeds(table):
    part = table[(table["arm"] == "moco") & (table["label_fraction"] == 0.01)]
    figure = reliability.reliability(part, pd.DataFrame(columns=["metric", "label_fraction", "arm", "value"]))
    (strokes,) = figure.axes[0].collections
    spans = np.array([path.vertices[:, 1] for path in strokes.get_paths()])
    kept = part[part.groupby("bin")["n"].transform("mean") >= reliability.FEWEST].groupby("bin")["observed"]
    assert spans == pytest.approx(np.array([kept.min(), kept.max()]).T)


def test_the_alternative_text_says_what_was_stated_and_what_came_true(table):
    scores = pd.DataFrame({"metric": ["ece"], "label_fraction": [0.01], "arm": ["moco"], "value": [0.1234]})
    text = reliability.reliability_alt(table, scores)
    part = table[(table["arm"] == "moco") & (table["label_fraction"] == 0.01)]
    stated, observed = (np.average(part[name], weights=part["n"]) for name in ("stated", "observed"))
    assert f"MoCo at 1% states {stated:.2f}, {observed:.2f} came true, ECE 0.123;" in text
