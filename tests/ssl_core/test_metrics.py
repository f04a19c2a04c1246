"""Scores against scikit-learn's, intervals against a plain loop of resampling."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from ssl_core import metrics
from ssl_core.config import Metric
from ssl_core.data.dataset import Task
from ssl_core.errors import DataError
from ssl_core.metrics import applicable, bootstrap, resamples, rows, score

CASES: list[tuple[Metric, Task]] = [
    ("auroc", "binary"),
    ("f1", "binary"),
    ("f1_macro", "binary"),
    ("auroc", "multiclass"),
    ("f1_macro", "multiclass"),
    ("auroc", "multilabel"),
    ("f1", "multilabel"),
]


def predictions(task: Task, n: int = 120, seed: int = 0, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that go with them somewhat; few decimals make many ties."""
    rng = np.random.default_rng(seed)
    match task:
        case "binary":
            labels = rng.integers(2, size=n)
            p = np.clip(0.3 * labels[:, None] + 0.7 * rng.random((n, 1)), 0, 1)
        case "multiclass":
            labels = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1])
            p = rng.dirichlet(np.ones(4), size=n) + 0.3 * np.eye(4)[labels]
            p = p / p.sum(axis=1, keepdims=True)
        case "multilabel":
            labels = (rng.random((n, 3)) < [0.5, 0.3, 0.15]).astype(np.uint8)
            p = 0.3 * labels + 0.7 * rng.random((n, 3))
    return labels, p if task == "multiclass" else np.round(p, decimals)


def reference(
    metric: Metric, labels: np.ndarray, p: np.ndarray, task: Task, weights: np.ndarray | None = None
) -> float:
    """scikit-learn's number."""
    match metric, task:
        case "auroc", "binary":
            return roc_auc_score(labels, p[:, 0], sample_weight=weights)
        case "auroc", "multiclass":  # each class against the rest, written out: weights may be zero for some images
            each = [roc_auc_score(labels == c, p[:, c], sample_weight=weights) for c in range(p.shape[1])]
            return float(np.mean(each))
        case "auroc", _:
            return roc_auc_score(labels, p, average="macro", sample_weight=weights)
        case "f1", "binary":
            return f1_score(labels, p[:, 0] > 0.5, sample_weight=weights)
        case "f1", _:
            return f1_score(labels, p > 0.5, average="macro", sample_weight=weights)
        case _, "binary":
            return f1_score(labels, p[:, 0] > 0.5, average="macro", sample_weight=weights)
        case _:
            return f1_score(labels, p.argmax(axis=1), average="macro", sample_weight=weights)


@pytest.mark.parametrize(("metric", "task"), CASES)
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learns_with_ties(metric: Metric, task: Task, seed: int) -> None:
    labels, p = predictions(task, seed=seed)
    assert score(metric, labels, p, task) == pytest.approx(reference(metric, labels, p, task), abs=1e-12)


@pytest.mark.parametrize(("metric", "task"), CASES)
def test_weighted_scores_equal_scikit_learns(metric: Metric, task: Task) -> None:
    labels, p = predictions(task, seed=7)
    weights = np.random.default_rng(1).exponential(size=len(labels))
    expected = reference(metric, labels, p, task, weights)
    assert score(metric, labels, p, task, weights=weights) == pytest.approx(expected, abs=1e-12)


def test_multiclass_auroc_equals_scikit_learns_one_vs_rest() -> None:
    labels, p = predictions("multiclass", seed=3)
    expected = roc_auc_score(labels, p, multi_class="ovr", average="macro")
    assert score("auroc", labels, p, "multiclass") == pytest.approx(expected, abs=1e-12)


def test_auroc_counts_pairs_and_half_of_ties() -> None:
    labels, p = np.array([0, 0, 1, 1]), np.array([[0.1], [0.6], [0.6], [0.4]])
    assert score("auroc", labels, p, "binary") == (1 + 1 + 0.5 + 0) / 4
    assert score("auroc", labels, np.full((4, 1), 0.7), "binary") == 0.5


def test_a_probability_of_one_half_is_not_called_positive() -> None:
    labels, p = np.array([1, 1, 0]), np.array([[0.5], [0.6], [0.2]])
    assert score("f1", labels, p, "binary") == pytest.approx(2 / 3)
    assert score("f1_macro", labels, p, "binary") == pytest.approx((2 / 3 + 2 / 3) / 2)


@pytest.mark.parametrize(("metric", "task"), CASES)
def test_scores_do_not_depend_on_the_order_of_images(metric: Metric, task: Task) -> None:
    labels, p = predictions(task)
    order = np.random.default_rng(5).permutation(len(labels))
    assert score(metric, labels[order], p[order], task) == pytest.approx(score(metric, labels, p, task), abs=1e-14)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_auroc_is_unchanged_by_monotone_transforms_and_mirrored_by_inversion(task: Task) -> None:
    labels, p = predictions(task)
    value = score("auroc", labels, p, task)
    assert score("auroc", labels, p**3, task) == value
    assert score("auroc", labels, 0.25 + p / 2, task) == value
    assert score("auroc", labels, 1 - np.round(p, 6), task) == pytest.approx(
        1 - score("auroc", labels, np.round(p, 6), task), abs=1e-12
    )


@pytest.mark.parametrize(("metric", "task"), CASES)
def test_a_whole_weight_repeats_an_image(metric: Metric, task: Task) -> None:
    labels, p = predictions(task)
    times = np.random.default_rng(2).integers(0, 4, size=len(labels))
    repeated = score(metric, np.repeat(labels, times, axis=0), np.repeat(p, times, axis=0), task)
    assert score(metric, labels, p, task, weights=times.astype(float)) == pytest.approx(repeated, abs=1e-12)


@pytest.mark.parametrize(("metric", "task"), CASES)
@pytest.mark.parametrize("chunk_replicates", [7, 10_000])
def test_bootstrap_equals_a_plain_loop_over_the_same_resamples_of_groups(
    metric: Metric, task: Task, chunk_replicates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, p = predictions(task, n=90)
    monkeypatch.setattr(metrics, "_CHUNK_BYTES", chunk_replicates * 8 * len(labels))
    groups = np.random.default_rng(4).integers(25, size=len(labels)).astype(str)  # of several sizes
    found = bootstrap(metric, labels, p, task, groups=groups, replicates=40, seed=11)
    names = np.unique(groups)
    values = []
    for draw in resamples(len(names), 40, 11):
        images = np.concatenate([np.flatnonzero(groups == names[g]) for g in draw])
        values.append(reference(metric, labels[images], p[images], task))
    low, high = np.percentile(values, [2.5, 97.5])
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(40)
    assert found.value == pytest.approx(reference(metric, labels, p, task), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert (found.paper_low, found.paper_high) == pytest.approx(
        (np.mean(values) - half, np.mean(values) + half), abs=1e-12
    )
    assert (found.n, found.replicates) == (90, 40)


def test_resamples_that_lack_a_class_are_drawn_again() -> None:
    rng = np.random.default_rng(0)
    labels, p = np.repeat([0, 0, 0, 0, 0, 1], 2), rng.random((12, 1))
    groups = np.repeat(list("abcdef"), 2)  # the only positives are in one group: a third of the draws lack it
    found = bootstrap("auroc", labels, p, "binary", groups=groups, replicates=30, seed=0)
    values = []
    for draw in resamples(6, 300, 0):
        if (draw == 5).any() and (draw != 5).any():
            images = np.concatenate([[2 * g, 2 * g + 1] for g in draw])
            values.append(roc_auc_score(labels[images], p[images, 0]))
        if len(values) == 30:
            break
    assert found.replicates == 30
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-12)


def test_an_interval_is_not_made_up_where_hardly_any_resample_holds_every_class() -> None:
    labels = np.eye(12, dtype=np.uint8)  # each label's one positive is its own group
    p = np.random.default_rng(0).random((12, 12))
    found = bootstrap("auroc", labels, p, "multilabel", groups=np.arange(12).astype(str), replicates=20, seed=0)
    assert found.value == pytest.approx(roc_auc_score(labels, p, average="macro"), abs=1e-12)
    assert np.isnan([found.low, found.high, found.paper_low, found.paper_high]).all()
    assert found.replicates < 20


def test_no_replicates_give_the_score_without_an_interval() -> None:
    labels, p = predictions("binary")
    found = bootstrap("auroc", labels, p, "binary", groups=np.arange(len(labels)).astype(str), replicates=0, seed=0)
    assert found.value == score("auroc", labels, p, "binary")
    assert np.isnan([found.low, found.high]).all()
    assert found.replicates == 0


def test_intervals_over_patients_are_wider_than_over_their_images_where_these_resemble_each_other() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(40), 10)
    labels = (np.arange(40) % 2)[patient]
    p = np.clip(0.35 + 0.2 * labels + 0.25 * rng.standard_normal(40)[patient] + 0.01 * rng.random(400), 0, 1)[:, None]
    by_patient = bootstrap("auroc", labels, p, "binary", groups=patient.astype(str), replicates=200, seed=0)
    by_image = bootstrap("auroc", labels, p, "binary", groups=np.arange(400).astype(str), replicates=200, seed=0)
    assert by_patient.high - by_patient.low > 2 * (by_image.high - by_image.low)


def test_a_seed_fixes_the_interval_and_another_changes_it() -> None:
    labels, p = predictions("binary", decimals=6)
    groups = np.arange(len(labels)).astype(str)
    a, b, c = (bootstrap("auroc", labels, p, "binary", groups=groups, replicates=50, seed=s) for s in (3, 3, 4))
    assert a == b
    assert a.low != c.low


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_accuracy_equals_scikit_learns_with_and_without_weights(task: Task) -> None:
    labels, p = predictions(task, seed=5)
    drawn = np.random.default_rng(1).exponential(size=len(labels))
    called = p.argmax(axis=1) if task == "multiclass" else (p > 0.5).astype(int).reshape(labels.shape)
    for weights in (None, drawn):
        columns = zip(labels.reshape(len(labels), -1).T, called.reshape(len(labels), -1).T, strict=True)
        expected = np.mean([accuracy_score(y, c, sample_weight=weights) for y, c in columns])
        assert score("accuracy", labels, p, task, weights=weights) == pytest.approx(expected, abs=1e-12)


def test_accuracy_needs_no_second_class_but_an_image_of_some_weight() -> None:
    labels, p = np.array([1, 1, 1]), np.array([[0.9], [0.5], [0.6]])
    assert score("accuracy", labels, p, "binary") == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="accuracy is undefined"):
        score("accuracy", labels, p, "binary", weights=np.zeros(3))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_accuracy_selects_and_is_never_reported(task: Task) -> None:
    labels, p = predictions(task)
    groups = np.arange(len(labels)).astype(str)
    assert "accuracy" not in applicable(task)
    with pytest.raises(DataError, match="metric accuracy is not defined"):
        rows(labels, p, task, groups=groups, metric="accuracy", replicates=5, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("metric", "task"), CASES)
def test_a_resample_of_images_takes_each_for_itself_whatever_its_group(metric: Metric, task: Task) -> None:
    labels, p = predictions(task)
    groups = np.repeat(["a", "b"], 60)
    found = bootstrap(metric, labels, p, task, groups=groups, replicates=25, seed=2, resample="images")
    values = [reference(metric, labels[draw], p[draw], task) for draw in resamples(len(labels), 25, 2)]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-12)
    assert found.low != bootstrap(metric, labels, p, task, groups=groups, replicates=25, seed=2).low


@pytest.mark.parametrize(("metric", "task"), CASES)
def test_the_papers_formula_may_take_the_spread_of_all_labels_scores_together(metric: Metric, task: Task) -> None:
    labels, p = predictions(task, n=90)
    groups = np.random.default_rng(4).integers(25, size=len(labels)).astype(str)
    about = {"groups": groups, "replicates": 30, "seed": 11}
    ours, theirs = (bootstrap(metric, labels, p, task, **about, paper_spread=s) for s in ("score", "labels"))  # type: ignore[arg-type]
    if task != "multilabel":  # one label: there is nothing to throw together
        assert theirs == ours
        return
    assert (theirs.value, theirs.low, theirs.high) == (ours.value, ours.low, ours.high)
    names, of_label = np.unique(groups), []
    for draw in resamples(len(names), 30, 11):
        images = np.concatenate([np.flatnonzero(groups == names[g]) for g in draw])
        of_label.append([reference(metric, labels[images, k], p[images, k : k + 1], "binary") for k in range(3)])
    half = 1.96 * np.std(of_label, ddof=1) / np.sqrt(30)
    mean = np.mean(of_label)
    assert (theirs.paper_low, theirs.paper_high) == pytest.approx((mean - half, mean + half), abs=1e-12)
    assert theirs.paper_high - theirs.paper_low > ours.paper_high - ours.paper_low


def test_rows_are_drawn_and_spread_as_asked() -> None:
    labels, p = predictions("multilabel")
    about = {"groups": np.repeat(["a", "b", "c"], 40), "replicates": 20, "seed": 1}
    for asked in ({"resample": "images"}, {"paper_spread": "labels"}, {"resample": "images", "paper_spread": "labels"}):
        row = rows(labels, p, "multilabel", metric="f1", **about, **asked)[0]  # type: ignore[arg-type]
        single = bootstrap("f1", labels, p, "multilabel", **about, **asked)  # type: ignore[arg-type]
        assert (row["low"], row["paper_low"]) == (single.low, single.paper_low)
        plain = rows(labels, p, "multilabel", metric="f1", **about)[0]  # type: ignore[arg-type]
        assert row["paper_low"] != plain["paper_low"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_rows_hold_every_metric_of_the_task_the_asked_one_first(task: Task) -> None:
    labels, p = predictions(task)
    groups = np.arange(len(labels)).astype(str)
    asked = applicable(task)[-1]
    table = rows(labels, p, task, groups=groups, metric=asked, replicates=20, seed=1)
    assert table[0]["metric"] == asked
    assert sorted(row["metric"] for row in table) == sorted(applicable(task))
    for row in table:
        assert set(row) == {"metric", "value", "low", "high", "paper_low", "paper_high", "n"}
        single = bootstrap(row["metric"], labels, p, task, groups=groups, replicates=20, seed=1)
        assert {k: getattr(single, k) for k in row if k != "metric"} == {k: v for k, v in row.items() if k != "metric"}


@pytest.mark.parametrize(
    ("metric", "labels", "task", "said"),
    [
        ("auroc", [1, 1, 1], "binary", "none of class 0"),
        ("f1", [0, 0, 0], "binary", "none of class 1"),
        ("auroc", [0, 1, 1], "multiclass", "none of class 2"),
        ("f1_macro", [0, 1, 1], "multiclass", "none of class 2"),
        ("auroc", [[0, 1, 1], [1, 1, 0], [0, 1, 0]], "multilabel", "none of anything but label 1"),
    ],
)
def test_a_score_without_every_class_is_refused(metric: Metric, labels: list, task: Task, said: str) -> None:
    p = np.full((3, 1 if task == "binary" else 3), 0.3)
    with pytest.raises(DataError, match=said):
        score(metric, np.array(labels), p, task)


def test_a_class_whose_images_have_no_weight_is_absent() -> None:
    labels, p = np.array([0, 1, 1]), np.array([[0.1], [0.2], [0.3]])
    with pytest.raises(DataError, match="none of class 0"):
        score("auroc", labels, p, "binary", weights=np.array([0.0, 1.0, 2.0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metric": "f1_macro", "task": "multilabel", "labels": np.zeros((4, 1), int)}, "use auroc or f1"),
        ({"metric": "f1", "task": "multiclass"}, "use auroc or f1_macro"),
        ({"probabilities": np.array([[0.1], [np.nan], [0.2], [0.3]])}, "diverged"),
        ({"probabilities": np.array([[-2.0], [3.0], [0.2], [0.3]])}, "from -2 to 3"),
        ({"probabilities": np.full((4, 2), 0.5)}, "expected \\(N, 1\\)"),
        ({"probabilities": np.full((3, 1), 0.5)}, "do not fit"),
        ({"labels": np.array([0, 1, 2, 1])}, "expected 0 to 1"),
        ({"labels": np.zeros((4, 1), int)}, "expected \\(N,\\)"),
        ({"labels": np.zeros(0, int), "probabilities": np.zeros((0, 1))}, "no images"),
        ({"weights": np.array([1.0, -1.0, 1.0, 1.0])}, "0 or more"),
        ({"weights": np.ones(3)}, "each of 4"),
    ],
)
def test_input_that_cannot_be_scored_is_refused_with_its_value(change: dict, said: str) -> None:
    given = {"metric": "auroc", "labels": np.array([0, 1, 0, 1]), "probabilities": np.full((4, 1), 0.5)}
    given |= {"task": "binary", "weights": None} | change
    with pytest.raises(DataError, match=said):
        score(**given)
