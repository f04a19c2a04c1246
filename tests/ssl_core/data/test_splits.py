"""Splits keep groups whole and classes in proportion; label fractions are nested and keep to every class's share."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.data.dataset import TEST, TRAIN, VAL
from ssl_core.data.splits import check_splits, label_subset, make_splits
from ssl_core.errors import DataError

SHARES = {TRAIN: 0.7, VAL: 0.15, TEST: 0.15}


def ids(n: int) -> np.ndarray:
    return np.arange(n).astype(str)


def split(labels: np.ndarray, groups: np.ndarray, *, seed: int = 0, **shares: float) -> np.ndarray:
    return make_splits(labels, groups, seed=seed, **{"validation": 0.15, "test": 0.15, **shares})


def findings(n: int, shares: tuple[float, ...] = (0.2, 0.1, 0.15, 0.03, 0.01), seed: int = 0) -> np.ndarray:
    """Labels (n, L) that come together, as findings on an X-ray do."""
    rng = np.random.default_rng(seed)
    severity = rng.exponential(size=(n, 1))
    return (rng.random((n, len(shares))) < severity * shares).astype(np.uint8)


# splits


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(20, 120), min_size=2, max_size=6), seed=st.integers(0, 5))
def test_without_groups_every_class_is_within_two_images_of_its_share_of_every_split(
    counts: list[int], seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    found = split(labels, ids(len(labels)), seed=seed)
    for s, share in SHARES.items():
        assert np.abs(np.bincount(labels[found == s]) - share * np.array(counts)).max() < 2
        assert abs((found == s).sum() - share * len(labels)) < 2


def test_a_group_is_never_in_two_splits_and_shares_are_kept_with_groups_of_many_sizes() -> None:
    rng = np.random.default_rng(0)
    group = rng.choice(300, size=3000, p=rng.dirichlet(np.full(300, 0.5)))  # some patients have hundreds of images
    labels = (rng.random(300) < 0.3).astype(int)[group]
    found = split(labels, group.astype(str))
    for g in np.unique(group):
        assert len(set(found[group == g])) == 1
    for s, share in SHARES.items():
        assert abs((found == s).mean() - share) < 0.01
        assert abs(labels[found == s].sum() / labels.sum() - share) < 0.02


def test_large_groups_are_spread_over_the_splits_as_small_ones_are() -> None:
    sizes = np.repeat([50, 5, 1], [40, 100, 400])
    group = np.repeat(np.arange(len(sizes)), sizes)
    found = split((group % 2).astype(int), group.astype(str))
    of_group = found[np.unique(group, return_index=True)[1]]
    for size in (50, 5, 1):
        assert abs((of_group[sizes == size] == TEST).mean() - 0.15) < 0.06


def test_several_labels_keep_their_shares_in_every_split() -> None:
    labels = findings(2000)
    found = split(labels, ids(2000))
    for s, share in SHARES.items():
        assert np.abs(labels[found == s].sum(axis=0) - share * labels.sum(axis=0)).max() < 3


@pytest.mark.parametrize("seed", range(10))
def test_a_class_of_three_patients_has_one_in_every_split(seed: int) -> None:
    labels = np.array([0] * 60 + [1] * 60 + [2] * 7)
    groups = np.concatenate([ids(120), ["a"] * 4 + ["b"] * 2 + ["c"]])
    found = split(labels, groups, seed=seed)
    for s in (TRAIN, VAL, TEST):
        assert set(labels[found == s]) == {0, 1, 2}


@pytest.mark.parametrize("seed", range(5))
def test_several_scarce_labels_are_each_in_every_split(seed: int) -> None:
    labels = np.zeros((100, 4), dtype=np.uint8)
    labels[:3, 0] = labels[2:5, 1] = labels[[0, 4, 6], 2] = labels[6:10, 3] = 1  # 3, 3, 3 and 4 positives, overlapping
    found = split(labels, ids(100), seed=seed)
    for s in (TRAIN, VAL, TEST):
        assert labels[found == s].any(axis=0).all()


def test_a_class_of_two_patients_cannot_be_in_three_splits() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    groups = np.concatenate([ids(30), np.repeat(["a", "b"], 5)])
    with pytest.raises(DataError, match=r"class sick occurs in 2 groups .* too few .* train, val, test"):
        make_splits(labels, groups, validation=0.15, test=0.15, seed=0, class_names=("well", "sick"))


def test_scarce_labels_that_fit_no_deal_are_named() -> None:
    labels = np.zeros((100, 3), dtype=np.uint8)
    labels[[0, 1, 2], 0] = labels[[0, 1, 3], 1] = labels[[2, 3, 4], 2] = (
        1  # 2 and 3 share a split, and both meet label 2
    )
    with pytest.raises(
        DataError, match=r"no way was found to have .*label c positive in each of the splits train, val, test"
    ):
        make_splits(labels, ids(100), validation=0.15, test=0.15, seed=0, class_names=("a", "b", "c"))


def test_a_share_of_zero_leaves_its_split_out() -> None:
    labels = np.tile([0, 1], 50)
    found = split(labels, ids(100), test=0.0)
    assert set(found) == {TRAIN, VAL}
    assert (found == VAL).sum() == pytest.approx(15, abs=1)


def test_a_seed_fixes_the_splits_and_another_changes_them() -> None:
    labels = np.tile([0, 1, 2], 60)
    a, b, c = (split(labels, ids(180), seed=s) for s in (1, 1, 2))
    assert a.dtype == np.int8
    assert (a == b).all()
    assert (a != c).any()


def test_every_image_is_about_equally_likely_to_test() -> None:
    labels = np.tile([0, 1], 20)
    tested = np.mean([split(labels, ids(40), seed=s) == TEST for s in range(400)], axis=0)
    assert np.abs(tested - 0.15).max() < 0.09  # five standard deviations


# given splits


def good() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.tile([0, 1], 6), np.repeat(ids(6), 2), np.repeat([TRAIN, VAL, TEST], 4).astype(np.int8)


def test_sound_splits_pass() -> None:
    check_splits(*good())
    labels, groups, splits = good()
    check_splits(np.stack([labels, 1 - labels], axis=1), groups, splits)


def test_an_empty_split_is_refused() -> None:
    labels, groups, splits = good()
    with pytest.raises(DataError, match="split val is empty"):
        check_splits(labels, groups, np.where(splits == VAL, TRAIN, splits))


def test_a_split_of_one_class_is_refused_with_the_class_it_lacks() -> None:
    labels, groups, splits = good()
    labels[splits == TEST] = 1
    with pytest.raises(DataError, match=r"split test has no image of class well \(it holds class sick alone\)"):
        check_splits(labels, groups, splits, class_names=("well", "sick"))


def test_a_label_without_positives_or_negatives_in_a_split_is_refused() -> None:
    labels, groups, splits = good()
    both = np.stack([labels, labels], axis=1)
    both[splits == VAL, 1] = 1
    with pytest.raises(DataError, match="split val has no image of label mass negative"):
        check_splits(both, groups, splits, class_names=("effusion", "mass"))


def test_a_group_in_two_splits_is_refused_by_name() -> None:
    labels, groups, splits = good()
    groups = groups.copy()
    groups[groups == "5"] = "1"
    groups[groups == "4"] = "0"
    with pytest.raises(DataError, match=r"2 groups are in more than one split, e\.g\. 0, 1;"):
        check_splits(labels, groups, splits)


def test_the_last_group_in_two_splits_is_seen() -> None:
    labels, groups, splits = good()
    splits[-1], splits[-2] = TRAIN, TEST
    with pytest.raises(DataError, match=r"1 group is .* e\.g\. 5;"):
        check_splits(labels, groups, splits)


# label fractions


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


def test_a_fraction_of_no_training_images_is_refused() -> None:
    with pytest.raises(DataError, match="no training images"):
        label_subset(np.array([0, 1]), np.array([VAL, TEST], dtype=np.int8), fraction=1.0, seed=0)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="must lie in"):
        label_subset(np.array([0, 1]), train_only(2), fraction=fraction, seed=0)
