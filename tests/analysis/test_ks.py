"""KS distance against scipy, and the choice of reference, floor and rows over real prediction files."""

import csv
import json

import numpy as np
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics import brier_score_loss

from analysis import ks
from analysis.calibration import ece
from analysis.config import KsConfig
from analysis.ks import KsModel
from ssl_core.errors import DataError

N = 300  # more points than a curve may hold


def samples(n=200, m=150, k=3, decimals=None):
    draw = np.random.default_rng(0)
    p, q = draw.beta(2, 5, (n, k)), draw.beta(3, 4, (m, k))
    return (p, q) if decimals is None else (p.round(decimals), q.round(decimals))


@pytest.mark.parametrize("decimals", [None, 1])  # 1: many ties within and between the samples
def test_the_distance_equals_scipys_for_each_output(decimals):
    p, q = samples(decimals=decimals)
    expected = [ks_2samp(p[:, k], q[:, k], method="asymp").statistic for k in range(3)]
    assert ks.distance(p, q) == pytest.approx(expected, abs=1e-12)


def test_the_distance_is_symmetric_and_unchanged_by_order_and_by_monotone_maps():
    p, q = samples()
    expected = ks.distance(p, q)
    assert ks.distance(q, p) == pytest.approx(expected, abs=1e-12)
    assert ks.distance(p[::-1], np.random.default_rng(1).permuted(q, axis=0)) == pytest.approx(expected, abs=1e-12)
    assert ks.distance(p**3, q**3) == pytest.approx(expected, abs=1e-12)
    assert (ks.distance(p, p) == 0).all()
    assert (ks.distance(p, p + 2) == 1).all()


def test_outputs_that_differ_in_number_are_refused():
    p, q = samples()
    with pytest.raises(DataError, match=r"\(200, 3\) and \(150, 2\)"):
        ks.distance(p, q[:, :2])


def model(folder, arm, seed, fraction, *, skill, mode="full", ids=None, task="binary", val_skill=None):
    """A fine-tuned model whose files hold probabilities that know the labels as well as `skill` says."""
    path = folder / f"{arm}-{seed}-{mode}-{fraction}"
    path.mkdir()
    draw = np.random.default_rng([len(arm), seed, int(fraction * 100)])
    arrays = {}
    for split, strength in (("val", skill if val_skill is None else val_skill), ("test", skill)):
        names = np.array([f"{split}{i}" for i in range(N)])
        if task == "binary":
            labels = np.arange(N) % 2
            signal = labels[:, None]
        elif task == "multiclass":
            labels = np.arange(N) % 3
            signal = np.eye(3)[labels]
        else:
            labels = np.stack([np.arange(N) % 2, np.arange(N) // 2 % 2], axis=1).astype(np.uint8)
            signal = labels
        noisy = np.exp(strength * signal + draw.normal(size=signal.shape))
        p = noisy / (noisy.sum(1, keepdims=True) if task == "multiclass" else 1 + noisy)
        arrays |= {
            f"{split}_ids": names if ids is None else ids(names),
            f"{split}_groups": names,
            f"{split}_labels": labels,
            f"{split}_probabilities": p.astype(np.float32),
        }
    np.savez(path / "predictions.npz", val_score=0.5, **arrays)
    return KsModel(arm, seed, mode, fraction, path)


def probabilities(m, split="test"):
    with np.load(m.folder / "predictions.npz") as file:
        return file[f"{split}_probabilities"].astype(np.float64)


@pytest.fixture
def study(tmp_path):
    """Two arms, two seeds, two fractions; the best on validation is arm mse, seed 1."""
    found = {}
    for arm, base in (("moco", 0.3), ("mse", 2.0)):
        for seed in (0, 1):
            found[arm, seed, 1.0] = model(tmp_path, arm, seed, 1.0, skill=base + seed)
            found[arm, seed, 0.01] = model(tmp_path, arm, seed, 0.01, skill=base / 2)
    return found


def by_key(rows, metric="ks"):
    return {(r["arm"], r["seed"], r["label_fraction"]): r for r in rows if r["metric"] == metric}


def test_every_model_is_compared_with_the_best_full_model_on_validation(study, tmp_path):
    rows = ks.compare(KsConfig(), list(study.values()), tmp_path)
    reference = ("mse", 1, 1.0)
    assert {(r["reference_arm"], r["reference_seed"]) for r in rows} == {("mse", 1)}
    found = by_key(rows)
    assert set(found) == set(study) - {reference}
    target = probabilities(study[reference])[:, 0]
    for key, row in found.items():
        expected = ks_2samp(probabilities(study[key])[:, 0], target, method="asymp").statistic
        assert row["value"] == pytest.approx(expected, abs=1e-12)
        assert row["n"] == N
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


def test_every_model_and_the_reference_have_calibration_rows(study, tmp_path):
    rows = ks.compare(KsConfig(calibration_bins=10), list(study.values()), tmp_path)
    brier = by_key(rows, "brier")
    assert set(brier) == set(by_key(rows, "ece")) == set(study)
    for key, row in brier.items():
        expected = brier_score_loss(np.arange(N) % 2, probabilities(study[key])[:, 0])
        assert row["value"] == pytest.approx(expected, abs=1e-12)
        assert row["floor"] is None
        gap = ece(np.arange(N) % 2, probabilities(study[key]), "binary", bins=10)
        assert by_key(rows, "ece")[key]["value"] == pytest.approx(gap, abs=1e-12)


def test_the_floor_is_the_distance_between_seeds_of_the_references_arm(study, tmp_path):
    more = model(tmp_path, "mse", 2, 1.0, skill=1.0)
    rows = ks.compare(KsConfig(), [*study.values(), more], tmp_path)
    target = probabilities(study["mse", 1, 1.0])
    twins = [ks.distance(probabilities(m), target)[0] for m in (study["mse", 0, 1.0], more)]
    for row in by_key(rows).values():
        assert row["floor"] == pytest.approx(np.mean(twins), abs=1e-12)
        assert row["floor_note"] is None


def test_one_seed_has_no_floor_and_says_so(study, tmp_path):
    rows = ks.compare(KsConfig(), [m for m in study.values() if m.seed == 1], tmp_path)
    for row in by_key(rows).values():
        assert row["floor"] is None
        assert row["floor_note"] == "mse has one seed at label fraction 1, so chance alone cannot be measured"


def test_the_reference_is_chosen_on_validation_even_where_test_disagrees(tmp_path):
    models = [
        model(tmp_path, "a", 0, 1.0, skill=0.0, val_skill=9.0),
        model(tmp_path, "b", 0, 1.0, skill=9.0, val_skill=1.0),
        model(tmp_path, "c", 0, 0.06, skill=9.0, val_skill=30.0),
    ]
    assert ks.compare(KsConfig(), models, tmp_path)[0]["reference_arm"] == "a"


def test_the_reference_is_chosen_on_the_metric_that_is_asked_for(tmp_path):
    ranks, calls = (model(tmp_path, arm, 0, 1.0, skill=s) for arm, s in (("ranks", 3.0), ("calls", 2.0)))
    with np.load(ranks.folder / "predictions.npz") as file:
        arrays = dict(file)
    arrays["val_probabilities"] = arrays["val_probabilities"] / 4  # the same order, and no positive called
    np.savez(ranks.folder / "predictions.npz", **arrays)
    for metric, best in (("auroc", "ranks"), ("f1", "calls")):
        assert ks.compare(KsConfig(metric=metric), [ranks, calls], tmp_path)[0]["reference_arm"] == best


def test_a_tie_goes_to_the_first_arm_and_seed_whatever_the_order_given(tmp_path):
    models = [model(tmp_path, arm, seed, 1.0, skill=60.0) for arm, seed in [("b", 0), ("a", 2), ("a", 1), ("c", 0)]]
    for order in (models, models[::-1]):
        row = ks.compare(KsConfig(), order, tmp_path)[0]
        assert (row["reference_arm"], row["reference_seed"]) == ("a", 1)


@pytest.mark.parametrize(("task", "outputs", "metric"), [("multiclass", 3, "f1_macro"), ("multilabel", 2, "auroc")])
def test_outputs_are_averaged(tmp_path, task, outputs, metric):
    models = [model(tmp_path, arm, 0, 1.0, skill=s, task=task) for arm, s in (("a", 1.0), ("b", 3.0))]
    (row,) = by_key(ks.compare(KsConfig(metric=metric), models, tmp_path)).values()
    p, q = (probabilities(m) for m in models)
    expected = [ks_2samp(p[:, k], q[:, k], method="asymp").statistic for k in range(outputs)]
    assert row["value"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert row["arm"] == "a"


def test_the_curves_hold_the_distance_in_at_most_201_points(study, tmp_path):
    rows = by_key(ks.compare(KsConfig(), list(study.values()), tmp_path))
    curves = {}
    with (tmp_path / "curves.csv").open() as file:
        for line in csv.DictReader(file):
            key = (line["arm"], int(line["seed"]), float(line["label_fraction"]))
            point = tuple(float(line[c]) for c in ("x", "cdf", "reference_cdf"))
            curves.setdefault(key, []).append(point)
    assert set(curves) == set(rows)
    for key, points in curves.items():
        x, cdf, reference = np.array(points).T
        assert abs(cdf - reference).max() == pytest.approx(rows[key]["value"], abs=1e-12)
        assert len(x) <= 201
        assert (np.diff(x) > 0).all()
        assert (np.diff(cdf) >= 0).all()
        assert cdf[-1] == reference[-1] == 1


def test_models_tested_on_other_images_are_refused_with_the_first_difference(study, tmp_path):
    def swapped(names):
        names = names.copy()
        names[[3, 4]] = names[[4, 3]]
        return names

    other = model(tmp_path, "odd", 0, 0.06, skill=1.0, ids=swapped)
    with pytest.raises(DataError, match=r"mse-1-full-1.0 and .*odd.* at row 3: test3 against test4"):
        ks.compare(KsConfig(), [*study.values(), other], tmp_path)


def test_without_a_model_of_all_labels_there_is_no_reference(study, tmp_path):
    with pytest.raises(DataError, match=r"fractions \[0.01\]; add label fraction 1.0"):
        ks.compare(KsConfig(), [m for m in study.values() if m.label_fraction < 1], tmp_path)


def test_probabilities_that_are_not_finite_are_refused(study, tmp_path):
    broken = study["moco", 0, 0.01].folder / "predictions.npz"
    with np.load(broken) as file:
        arrays = dict(file)
    arrays["test_probabilities"][5] = np.nan
    np.savez(broken, **arrays)
    with pytest.raises(DataError, match=r"moco-0-full-0.01 holds test probabilities that are NaN"):
        ks.compare(KsConfig(), list(study.values()), tmp_path)
