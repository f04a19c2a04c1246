"""Label fractions are nested and keep to every class's share, image by image and patient by patient."""

from __future__ import annotations

import gzip
import itertools
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.config import LabelsConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL
from ssl_core.data.labels import absent_outcomes, label_subset
from ssl_core.errors import DataError

LISTS = Path(__file__).parents[4] / "shared" / "data" / "splits"
BY_GROUP = LabelsConfig(unit="group")
RANDOM = LabelsConfig(draw="random")


def findings(n: int, shares: tuple[float, ...] = (0.2, 0.1, 0.15, 0.03, 0.01), seed: int = 0) -> np.ndarray:
    """Labels (n, L) that come together, as findings on an X-ray do."""
    rng = np.random.default_rng(seed)
    severity = rng.exponential(size=(n, 1))
    return (rng.random((n, len(shares))) < severity * shares).astype(np.uint8)


def patients(n: int, seed: int = 0) -> np.ndarray:
    """Patients (n,) with one to dozens of images each."""
    rng = np.random.default_rng(seed)
    return rng.choice(n // 3, size=n, p=rng.dirichlet(np.full(n // 3, 0.7))).astype(str)


# image by image


def train_only(n: int) -> np.ndarray:
    return np.full(n, TRAIN, dtype=np.int8)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 80), min_size=2, max_size=7),
    fraction=st.floats(0.005, 1),
    seed=st.integers(0, 3),
)
def test_each_class_is_within_one_of_its_share_once_every_class_has_a_share_of_one(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    n = round(fraction * len(labels))
    share = n * np.array(counts) / len(labels)
    if n < len(counts):
        with pytest.raises(DataError, match="too few"):
            label_subset(labels, train_only(len(labels)), fraction=fraction, seed=seed)
        return
    found = np.bincount(labels[label_subset(labels, train_only(len(labels)), fraction=fraction, seed=seed)])
    assert len(found) == len(counts)
    assert found.min() >= 1
    if share.min() >= 1:
        assert np.abs(found - share).max() < 1


def test_one_large_class_and_many_small_ones_keep_their_shares() -> None:
    """Where dealing by (k + 1/2) / n_c, the usual rule, gives the large class too much."""
    counts = np.array([1000] + [26] * 40)
    labels = np.repeat(np.arange(41), counts)
    for n in range(82, len(labels), 97):
        found = np.bincount(labels[label_subset(labels, train_only(len(labels)), fraction=n / len(labels), seed=0)])
        assert np.abs(found - n * counts / counts.sum()).max() < 1


@pytest.mark.parametrize("labels", [np.random.default_rng(0).integers(5, size=700), findings(700)], ids=["one", "many"])
def test_smaller_fractions_lie_inside_larger_ones(labels: np.ndarray) -> None:
    subsets = [label_subset(labels, train_only(700), fraction=f, seed=3) for f in (0.05, 0.06, 0.2, 0.5, 0.99, 1.0)]
    for smaller, larger in itertools.pairwise(subsets):
        assert np.isin(smaller, larger).all()
        assert len(smaller) < len(larger)


def test_each_label_is_within_one_of_its_share_and_combinations_keep_theirs() -> None:
    labels = findings(20_000)
    assert np.bincount(labels.sum(axis=1))[5] > 0  # rare, and must come nevertheless
    for fraction in (0.01, 0.06, 0.3):
        found = labels[label_subset(labels, train_only(20_000), fraction=fraction, seed=0)]
        assert np.abs(found.sum(axis=0) - fraction * labels.sum(axis=0)).max() < 1
        for k in range(6):  # images with k findings
            assert abs((found.sum(axis=1) == k).sum() - fraction * (labels.sum(axis=1) == k).sum()) < 3
        both = labels[:, 0] * labels[:, 2]
        assert abs((found[:, 0] * found[:, 2]).sum() - fraction * both.sum()) < 6


def test_only_training_rows_are_chosen_in_ascending_order_and_their_number_is_the_fraction() -> None:
    rng = np.random.default_rng(1)
    labels, splits = rng.integers(3, size=500), rng.integers(3, size=500).astype(np.int8)
    train = np.flatnonzero(splits == TRAIN)
    for fraction in (0.1, 0.33, 1.0):
        found = label_subset(labels, splits, fraction=fraction, seed=0)
        assert found.dtype == np.int64
        assert len(found) == round(fraction * len(train))
        assert (np.diff(found) > 0).all()
        assert np.isin(found, train).all()


def test_other_splits_do_not_change_the_choice() -> None:
    rng = np.random.default_rng(2)
    labels, splits = rng.integers(3, size=300), rng.integers(3, size=300).astype(np.int8)
    changed = np.where(splits == TRAIN, labels, (labels + 1) % 3)
    a, b = (label_subset(x, splits, fraction=0.2, seed=0) for x in (labels, changed))
    assert (a == b).all()


@pytest.mark.parametrize("labels", [np.repeat([0, 1], [290, 10]), findings(300)], ids=["one", "many"])
def test_a_seed_fixes_the_choice_and_another_changes_it(labels: np.ndarray) -> None:
    a, b, c = (label_subset(labels, train_only(300), fraction=0.2, seed=s) for s in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()


def test_every_image_of_a_class_is_about_equally_likely_to_be_chosen() -> None:
    labels = np.repeat([0, 1], [60, 20])
    chosen = np.zeros(80)
    for seed in range(400):
        chosen[label_subset(labels, train_only(80), fraction=0.25, seed=seed)] += 1
    assert np.abs(chosen / 400 - 0.25).max() < 0.11  # five standard deviations


def test_every_label_has_a_positive_and_a_negative_in_the_smallest_fraction() -> None:
    labels = np.zeros((400, 4), dtype=np.uint8)
    labels[:1, 0] = labels[5:9, 1] = labels[9:200, 2] = 1
    labels[:398, 3] = 1  # this one's negatives are rare
    with pytest.raises(DataError) as refused:
        label_subset(labels, train_only(400), fraction=0.0025, seed=0)
    smallest = float(re.search(r"smallest fraction that does is ([0-9.e-]+)", str(refused.value)).group(1))  # type: ignore[union-attr]
    found = labels[label_subset(labels, train_only(400), fraction=smallest, seed=0)]
    assert found.any(axis=0).all()
    assert (found == 0).any(axis=0).all()


@pytest.mark.parametrize("n", [40, 333, 4641, 78_468])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_fraction_that_a_refusal_names_works_and_one_image_less_does_not(n: int, classes: int) -> None:
    labels = np.arange(n) % classes
    with pytest.raises(DataError, match=f"keeps {classes - 1} of {n} training images") as refused:
        label_subset(labels, train_only(n), fraction=(classes - 1) / n, seed=0)
    smallest = float(re.search(r"does is ([0-9.e-]+) ", str(refused.value)).group(1))  # type: ignore[union-attr]
    found = label_subset(labels, train_only(n), fraction=smallest, seed=0)
    assert len(np.unique(labels[found])) == classes
    assert len(found) == classes


def test_a_class_without_training_images_is_no_reason_to_refuse() -> None:
    labels, splits = np.array([0, 1] * 20 + [2]), np.array([TRAIN] * 40 + [TEST], dtype=np.int8)
    assert len(label_subset(labels, splits, fraction=0.05, seed=0)) == 2
    several = np.stack([labels == 1, labels == 2], axis=1).astype(np.uint8)
    assert len(label_subset(several, splits, fraction=0.05, seed=0)) == 2


def test_counts_do_not_depend_on_the_order_of_images() -> None:
    order = np.random.default_rng(9).permutation(600)
    for labels in (np.random.default_rng(0).choice(4, size=600, p=[0.7, 0.2, 0.07, 0.03]), findings(600)):
        a, b = (x[label_subset(x, train_only(600), fraction=0.13, seed=2)] for x in (labels, labels[order]))
        assert sorted(a.tolist()) == sorted(b.tolist())


# what a subset lacks


def test_outcomes_that_a_subset_lacks_are_named() -> None:
    labels = np.array([0, 1, 2, 2])
    assert absent_outcomes(labels, np.array([0, 2]), ("a", "b", "c")) == ["class b"]
    assert absent_outcomes(labels, np.array([0, 1, 3])) == []
    several = np.array([[0, 1], [0, 1], [1, 0]], dtype=np.uint8)
    assert absent_outcomes(several, np.array([0, 1]), ("x", "y")) == ["label x positive", "label y negative"]


@pytest.mark.parametrize("unit", ["image", "group"])
def test_with_a_warning_as_many_classes_as_there_is_room_for_are_there_the_rarest_first(unit: str) -> None:
    labels = np.repeat(np.arange(5), [200, 9, 80, 3, 30])
    config, groups = LabelsConfig(unit=unit, missing="warn"), np.arange(len(labels)).astype(str)
    for n, classes in ((1, {3}), (2, {1, 3}), (3, {1, 3, 4}), (4, {1, 2, 3, 4}), (5, {0, 1, 2, 3, 4})):
        f = n / len(labels)
        found = label_subset(labels, train_only(len(labels)), fraction=f, seed=1, config=config, groups=groups)
        assert set(labels[found]) == classes
        assert len(absent_outcomes(labels, found)) == 5 - n


@pytest.mark.parametrize("unit", ["image", "group"])
def test_with_a_warning_rare_labels_come_first(unit: str) -> None:
    labels = np.zeros((300, 3), dtype=np.uint8)
    labels[:2, 0] = labels[10:30, 1] = labels[30:100, 2] = 1
    config, groups = LabelsConfig(unit=unit, missing="warn"), np.arange(300).astype(str)
    for n in (1, 2, 3):
        found = label_subset(labels, train_only(300), fraction=n / 300, seed=0, config=config, groups=groups)
        assert labels[found].any(axis=0).tolist() == [True, n > 1, n > 2]


def test_a_warning_changes_nothing_where_there_is_nothing_to_warn_of() -> None:
    labels = findings(700)
    warned = label_subset(labels, train_only(700), fraction=0.1, seed=0, config=LabelsConfig(missing="warn"))
    assert (warned == label_subset(labels, train_only(700), fraction=0.1, seed=0)).all()


# any images


def test_a_random_draw_takes_each_image_with_the_same_chance_and_classes_as_they_fall() -> None:
    labels = np.repeat([0, 1], [60, 20])
    chosen, ones = np.zeros(80), []
    for seed in range(400):
        rows = label_subset(labels, train_only(80), fraction=0.25, seed=seed, config=RANDOM)
        assert len(rows) == 20
        chosen[rows] += 1
        ones.append(labels[rows].sum())
    assert np.abs(chosen / 400 - 0.25).max() < 0.11  # five standard deviations
    hypergeometric = 20 * 0.25 * 0.75 * 60 / 79
    assert np.var(ones) == pytest.approx(hypergeometric, rel=0.35)  # a stratified draw has 5 each time


def test_a_random_draw_that_lacks_a_class_is_refused_naming_the_fraction_at_which_this_order_has_it() -> None:
    labels = (np.arange(400) == 7).astype(np.int64)
    with pytest.raises(DataError, match=r"keeps 4 of 400 .* too few to hold every class") as refused:
        label_subset(labels, train_only(400), fraction=0.01, seed=0, config=RANDOM)
    n = int(re.search(r"\((\d+) images\)", str(refused.value)).group(1))  # type: ignore[union-attr]
    warned = LabelsConfig(draw="random", missing="warn")
    before = label_subset(labels, train_only(400), fraction=(n - 1) / 400, seed=0, config=warned)
    assert absent_outcomes(labels, before) == ["class 1"]
    assert 7 in label_subset(labels, train_only(400), fraction=n / 400, seed=0, config=RANDOM)


# what seed and salt do, for every draw

DRAWS = [LabelsConfig(draw=d, unit=u, missing="warn") for d in ("stratified", "random") for u in ("image", "group")]


@pytest.mark.parametrize("config", DRAWS, ids=lambda c: f"{c.draw}-{c.unit}")
@pytest.mark.parametrize("labels", [np.random.default_rng(0).integers(5, size=700), findings(700)], ids=["one", "many"])
def test_every_draw_is_nested_fixed_by_its_seed_and_changed_by_another(
    labels: np.ndarray, config: LabelsConfig
) -> None:
    group = patients(700)

    def draw(fraction: float, **about: object) -> np.ndarray:
        return label_subset(
            labels, train_only(700), **{"seed": 3, "config": config, "groups": group, **about}, fraction=fraction
        )

    subsets = [draw(f) for f in (0.001, 0.01, 0.06, 0.2, 0.5, 0.9, 1.0)]
    for smaller, larger in itertools.pairwise(subsets):
        assert len(smaller)
        assert np.isin(smaller, larger).all()
        assert (np.diff(larger) > 0).all()
    assert (subsets[-1] == np.arange(700)).all()
    again, other = draw(0.2), draw(0.2, seed=4)
    salted = draw(0.2, config=LabelsConfig(draw=config.draw, unit=config.unit, missing="warn", salt="moco"))
    assert (again == subsets[3]).all()
    for changed in (other, salted):
        assert len(np.setdiff1d(changed, again)) > 20


def test_without_a_salt_it_does_not_matter_whether_arms_may_differ() -> None:
    labels = findings(500)
    a, b = (
        label_subset(labels, train_only(500), fraction=0.1, seed=0, config=LabelsConfig(per_arm=p))
        for p in (True, False)
    )
    assert (a == b).all()


# patient by patient


@settings(max_examples=60, deadline=None)
@given(
    of=st.lists(st.integers(0, 12), min_size=3, max_size=60),
    fraction=st.floats(0.001, 1),
    seed=st.integers(0, 3),
    draw=st.sampled_from(["stratified", "random"]),
    several=st.booleans(),
)
def test_groups_are_never_split_and_their_images_are_as_many_as_groups_allow(
    of: list[int], fraction: float, seed: int, draw: str, several: bool
) -> None:
    n, group = len(of), np.array(of).astype(str)
    labels = np.random.default_rng(seed).integers(2, size=(n, 2)).astype(np.uint8)
    labels = labels if several else labels[:, 0].astype(np.int64)
    config = LabelsConfig(draw=draw, unit="group", missing="warn")

    def subset(f: float) -> np.ndarray:
        return label_subset(labels, train_only(n), fraction=f, seed=seed, config=config, groups=group)

    found = subset(fraction)
    taken = set(group[found])
    assert taken
    assert len(found) == np.isin(group, list(taken)).sum()
    ends = {len(subset(k / n)) for k in range(1, n + 1)}  # every prefix that any fraction takes
    assert abs(len(found) - fraction * n) == pytest.approx(min(abs(e - fraction * n) for e in ends))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("many", [False, True])
def test_whole_groups_keep_class_counts_close_to_their_shares(seed: int, many: bool) -> None:
    labels = findings(6000) if many else np.random.default_rng(0).choice(3, size=6000, p=[0.6, 0.3, 0.1])
    group = patients(6000)
    columns = labels if many else np.eye(3, dtype=int)[labels]
    for fraction in (0.03, 0.1, 0.4):
        found = label_subset(labels, train_only(6000), fraction=fraction, seed=seed, config=BY_GROUP, groups=group)
        assert abs(len(found) - fraction * 6000) <= 6
        assert np.abs(columns[found].sum(axis=0) - fraction * columns.sum(axis=0)).max() < 7
        assert len(np.unique(group[found])) / (fraction * len(np.unique(group))) == pytest.approx(1, abs=0.35)


def test_large_groups_come_as_often_as_small_ones() -> None:
    sizes = np.repeat([20, 4, 1], [60, 200, 800])
    group = np.repeat(np.arange(1060), sizes)
    labels = (np.random.default_rng(0).random(len(group)) < 0.3).astype(np.int64)
    shares = [
        np.isin(np.flatnonzero(sizes == size), group[rows]).mean()
        for rows in (
            label_subset(
                labels, train_only(len(group)), fraction=0.2, seed=s, config=BY_GROUP, groups=group.astype(str)
            )
            for s in range(3)
        )
        for size in (20, 4, 1)
    ]
    assert np.abs(np.array(shares) - 0.2).max() < 0.06


def test_seeds_choose_other_groups_although_no_two_are_alike() -> None:
    rng = np.random.default_rng(0)
    group, labels = np.repeat(np.arange(40), 10), (rng.random(400) < np.repeat(rng.random(40), 10)).astype(np.int64)
    chosen = np.zeros(40)
    for seed in range(200):
        rows = label_subset(
            labels, train_only(400), fraction=0.25, seed=seed, config=BY_GROUP, groups=group.astype(str)
        )
        chosen[np.unique(group[rows])] += 1
    assert (chosen > 0).mean() > 0.9  # those unlike the rest come late
    assert chosen.max() / 200 < 0.8


def test_groups_do_not_depend_on_the_order_of_images_nor_on_other_splits() -> None:
    rng = np.random.default_rng(3)
    labels, group, splits = findings(900), patients(900), rng.choice(3, size=900, p=[0.8, 0.1, 0.1]).astype(np.int8)
    order = rng.permutation(900)
    a = label_subset(labels, splits, fraction=0.1, seed=5, config=BY_GROUP, groups=group)
    b = label_subset(labels[order], splits[order], fraction=0.1, seed=5, config=BY_GROUP, groups=group[order])
    assert np.isin(a, np.flatnonzero(splits == TRAIN)).all()
    assert set(order[b]) == set(a)
    elsewhere = splits != TRAIN
    c = label_subset(np.where(elsewhere[:, None], 1, labels), splits, fraction=0.1, seed=5, config=BY_GROUP,
                     groups=np.where(elsewhere, "x", group))  # fmt: skip
    assert (a == c).all()


def test_few_groups_that_cannot_hold_every_class_are_refused_with_the_fraction_that_does() -> None:
    group = np.repeat(np.arange(20), 5)
    labels = np.where(group < 3, 1, np.where(group < 6, 2, 0))
    with pytest.raises(DataError, match=r"keeps 5 of 100 .* does is 0\.15 \(15 images\)"):
        label_subset(labels, train_only(100), fraction=0.06, seed=0, config=BY_GROUP, groups=group.astype(str))
    found = label_subset(labels, train_only(100), fraction=0.15, seed=0, config=BY_GROUP, groups=group.astype(str))
    assert set(labels[found]) == {0, 1, 2}


def test_a_draw_by_group_without_groups_is_refused() -> None:
    with pytest.raises(DataError, match=r"labels\.unit is group and no groups were given"):
        label_subset(np.array([0, 1, 0, 1]), train_only(4), fraction=0.5, seed=0, config=BY_GROUP)


# the lists published with the paper's code


@pytest.fixture(scope="module")
def cxr14() -> tuple[np.ndarray, np.ndarray]:
    """Labels (78468, 14) and patients of the published training list."""
    path = LISTS / "cxr14_train.txt.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as file:
        rows = [line.split() for line in file]
    return np.array([row[1:] for row in rows]).astype(np.uint8), np.array([row[0].split("_")[0] for row in rows])


@pytest.mark.parametrize("seed", range(5))
def test_every_label_of_the_published_list_is_within_one_image_of_its_target(
    cxr14: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    labels, _ = cxr14
    assert labels.shape == (78_468, 14)
    began, inner = time.monotonic(), np.empty(0)
    for fraction in (0.01, 0.06):
        found = label_subset(labels, train_only(len(labels)), fraction=fraction, seed=seed)
        assert len(found) == round(fraction * len(labels))
        assert np.abs(labels[found].sum(axis=0) - fraction * labels.sum(axis=0)).max() < 1
        assert np.isin(inner, found).all()
        inner = found
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("seed", range(5))
def test_whole_patients_of_the_published_list_are_within_a_few_images_of_every_target(
    cxr14: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    labels, group = cxr14
    began, inner = time.monotonic(), np.empty(0)
    for fraction in (0.01, 0.06):
        found = label_subset(
            labels, train_only(len(labels)), fraction=fraction, seed=seed, config=BY_GROUP, groups=group
        )
        assert abs(len(found) - fraction * len(labels)) < 20  # half of the patient that would have come next
        assert np.abs(labels[found].sum(axis=0) - fraction * labels.sum(axis=0)).max() < 8
        assert np.isin(group, np.unique(group[found])).sum() == len(found)
        assert np.isin(inner, found).all()
        inner = found
    assert time.monotonic() - began < 20


# nothing to draw from


def test_a_fraction_of_no_training_images_is_refused() -> None:
    with pytest.raises(DataError, match="no training images"):
        label_subset(np.array([0, 1]), np.array([VAL, TEST], dtype=np.int8), fraction=1.0, seed=0)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="must lie in"):
        label_subset(np.array([0, 1]), train_only(2), fraction=fraction, seed=0)
