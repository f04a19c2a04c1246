"""What a downstream run sees and is scored on, as functions of its configuration."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest

from ssl_core.config import NO_AUGMENT, AugmentConfig, FinetuneConfig, LabelsConfig
from ssl_core.data.dataset import TEST, VAL, Dataset
from ssl_core.downstream import (
    augmentation,
    batch_stream,
    check_scored,
    evaluation_steps,
    samples,
    scored_rows,
    selects_by,
)
from ssl_core.errors import DataError


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (4, 4), (3, 4), (2, 64), (1, 1)])
def test_every_batch_is_full_and_every_sample_is_seen_equally_often(n: int, size: int) -> None:
    rows, full = np.arange(100, 100 + n), min(size, n)
    steps = n * 3
    seen = list(islice(batch_stream(rows, size, 0), steps))
    assert {len(batch) for batch in seen} == {full}
    stream = np.concatenate(seen)
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == rows.tolist()
    if n > 3:
        assert stream[:n].tolist() != stream[n : 2 * n].tolist()  # each epoch has its own order


@pytest.mark.parametrize(
    ("steps", "evaluations", "expected"),
    [(10, 2, [5, 10]), (3, 20, [1, 2, 3]), (7, 3, [2, 5, 7]), (1, 1, [1])],
)
def test_evaluations_are_spread_and_include_the_end(steps: int, evaluations: int, expected: list[int]) -> None:
    assert evaluation_steps(steps, evaluations) == expected


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_small_augment_replaces_the_views_of_small_fractions_alone(fraction: float) -> None:
    given = AugmentConfig(crop=(0.4, 1.0), rotate=30.0, flip=0.3)
    assert augmentation(FinetuneConfig(augment=given, fraction=fraction)) == given
    flip = augmentation(FinetuneConfig(augment=given, fraction=fraction, small_augment="flip"))
    assert flip == (given if fraction == 1 else dataclasses.replace(NO_AUGMENT, flip=0.5))


@pytest.mark.parametrize(("batch", "kept"), [(16, 16), (10, 10), (5, 15), (15, 15), (17, 16), (100, 16)])
@pytest.mark.parametrize("split", [VAL, TEST])
def test_an_incomplete_last_batch_is_left_out_but_never_the_whole_split(
    digits: Dataset, batch: int, kept: int, split: int
) -> None:
    rows = digits.rows(split)  # 16
    assert scored_rows(FinetuneConfig(batch_size=batch), digits, split).tolist() == rows.tolist()
    found = scored_rows(FinetuneConfig(batch_size=batch, drop_last=True), digits, split)
    assert found.tolist() == rows[:kept].tolist()


def test_a_split_kept_whole_against_drop_last_is_said(digits: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    check_scored(FinetuneConfig(batch_size=16, drop_last=True), digits)
    check_scored(FinetuneConfig(batch_size=17), digits)
    assert not caplog.messages
    check_scored(FinetuneConfig(batch_size=17, drop_last=True), digits)
    assert caplog.messages == [
        "16 validation images fill no batch of 17; drop_last keeps them",
        "16 test images fill no batch of 17; drop_last keeps them",
    ]


def test_a_class_that_only_the_dropped_images_hold_is_missed_before_training(digits: Dataset) -> None:
    labels = digits.labels.copy()
    first = digits.rows(VAL)[:10]
    labels[first] = labels[first] % 2
    lacking = dataclasses.replace(digits, labels=labels)
    check_scored(FinetuneConfig(batch_size=10), lacking)
    with pytest.raises(DataError, match="validation split of toy digits: auroc is undefined on these 10 images"):
        check_scored(FinetuneConfig(batch_size=10, drop_last=True), lacking)


def test_the_best_is_told_by_the_reported_metric_unless_another_score_is_named() -> None:
    assert selects_by(FinetuneConfig(metric="f1_macro")) == "f1_macro"
    assert selects_by(FinetuneConfig(metric="f1_macro", select="accuracy")) == "accuracy"


@pytest.mark.parametrize(
    ("labels", "absent"),
    [
        (np.array([0, 1, 2, 2]), ["class b"]),
        (np.array([2, 2, 1, 0]), []),
        (np.array([[0, 0, 1], [1, 1, 1], [0, 1, 0], [0, 1, 0]], dtype=np.uint8), ["label a positive"]),
    ],
)
def test_samples_say_how_labels_were_drawn_and_which_class_they_lack(labels: np.ndarray, absent: list[str]) -> None:
    ids, rows = np.array(["w", "x", "y", "z"]), np.array([0, 2, 3])
    drawn = LabelsConfig(draw="random", unit="group", missing="warn")
    assert samples(drawn, 0.1, 3, rows, ids=ids, labels=labels, class_names=("a", "b", "c")) == {
        "fraction": 0.1,
        "seed": 3,
        "draw": "random",
        "unit": "group",
        "absent": absent,
        "ids": ["w", "y", "z"],
    }
