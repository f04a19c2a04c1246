"""Splits keep groups whole and classes in proportion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.data.dataset import TEST, TRAIN, VAL
from ssl_core.data.splits import check_splits, make_splits
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
    """Labels, groups and splits."""
    return np.tile([0, 1], 6), np.repeat(ids(6), 2), np.repeat([TRAIN, VAL, TEST], 4).astype(np.int8)


def test_sound_splits_pass() -> None:
    labels, _, splits = good()
    check_splits(labels, splits)
    check_splits(np.stack([labels, 1 - labels], axis=1), splits)


def test_an_empty_split_is_refused() -> None:
    labels, _, splits = good()
    with pytest.raises(DataError, match="split val is empty"):
        check_splits(labels, np.where(splits == VAL, TRAIN, splits))


def test_a_split_of_one_class_is_refused_with_the_class_it_lacks() -> None:
    labels, _, splits = good()
    labels[splits == TEST] = 1
    with pytest.raises(DataError, match=r"split test has no image of class well \(it holds class sick alone\)"):
        check_splits(labels, splits, class_names=("well", "sick"))


def test_a_label_without_positives_or_negatives_in_a_split_is_refused() -> None:
    labels, _, splits = good()
    both = np.stack([labels, labels], axis=1)
    both[splits == VAL, 1] = 1
    with pytest.raises(DataError, match="split val has no image of label mass negative"):
        check_splits(both, splits, class_names=("effusion", "mass"))
