"""CKA against its dense formulas, its invariances, and what it reads on unrelated features."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from analysis import cka, cka_streamed
from ssl_core.errors import DataError


def rng(seed=0):
    return np.random.default_rng(seed)


def related(n=60, c=12, noise=0.5, seed=0):
    """Two feature sets of n images with c and c + 3 channels, the second a noisy linear map of the first."""
    draw = rng(seed)
    x = draw.normal(size=(n, c)) + 2.0
    y = x @ draw.normal(size=(c, c + 3)) + noise * draw.normal(size=(n, c + 3))
    return x.astype(np.float32), y.astype(np.float32)


def biased(k, l):  # noqa: E741
    """Gretton et al. 2005: tr(K H L H), normalised."""
    h = np.eye(len(k)) - 1 / len(k)

    def hsic(a, b):
        return np.trace(a @ h @ b @ h)

    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def debiased(k, l):  # noqa: E741
    """Song et al. 2012, equation 5, as printed: K and L without their diagonals."""
    n, one = len(k), np.ones(len(k))

    def hsic(a, b):
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        total = np.trace(a @ b) + (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * (one @ a @ b @ one)) / (n * (n - 3))

    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def gaussian(x, sigma):
    return np.exp(-(squareform(pdist(x.astype(np.float64))) ** 2) / (2 * sigma**2))


def linear(x, y, *, seed=0, permutations=1, **more):
    return cka.linear(x, y, permutations=permutations, rng=rng(seed), **more)


def rbf(x, y, *, bandwidth=0.8, permutations=1, **more):
    return cka.rbf(x, y, bandwidth=bandwidth, permutations=permutations, rng=rng(), **more)


def authors(x, y, *, sigma=0.8, sets=50, set_size=1000, permutations=20):
    return cka.authors(x, y, sigma=sigma, sets=sets, set_size=set_size, permutations=permutations, rng=rng())


# 12 and 15 channels, fewer than images (through C x C matrices) and more (through N x N)
@pytest.mark.parametrize("n", [60, 14, 10])
def test_linear_cka_equals_the_dense_formulas_whichever_side_is_smaller(n):
    x, y = related(n)
    k, l = (np.asarray(z, np.float64) @ z.T.astype(np.float64) for z in (x, y))  # noqa: E741
    assert linear(x, y, debiased=False).value == pytest.approx(biased(k, l), abs=1e-9)
    assert linear(x, y).value == pytest.approx(debiased(k, l), abs=1e-9)


def test_rbf_cka_equals_the_dense_formulas_with_the_median_distance_of_each_side():
    x, y = related()
    k, l = (gaussian(z, 0.8 * np.median(pdist(z.astype(np.float64)))) for z in (x, y))  # noqa: E741
    assert rbf(x, y).value == pytest.approx(debiased(k, l), abs=1e-9)
    assert rbf(x, y, debiased=False).value == pytest.approx(biased(k, l), abs=1e-9)
    off = [m[~np.eye(len(m), dtype=bool)].mean() for m in (k, l)]
    assert rbf(x, y).off_diagonal == pytest.approx(max(off, key=lambda m: abs(m - 0.5)), abs=1e-9)


def test_the_authors_cka_is_biased_with_an_absolute_sigma():
    x, y = (0.2 * z for z in related())
    found = authors(x, y)
    assert found.value == pytest.approx(biased(gaussian(x, 0.8), gaussian(y, 0.8)), abs=1e-6)
    assert (found.n, found.low, found.high) == (60, None, None)  # 60 images are one set


def test_the_authors_cka_is_the_mean_over_random_sets():
    x, y = (0.2 * z for z in related())
    found = authors(x, y, sets=30, set_size=20)
    draw, values = rng(), []
    for rows in [np.sort(draw.choice(60, 20, replace=False)) for _ in range(30)]:
        values.append(biased(gaussian(x[rows], 0.8), gaussian(y[rows], 0.8)))
    assert found.value == pytest.approx(np.mean(values), abs=1e-6)
    assert (found.low, found.high) == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-6)
    assert found.n == 20


@pytest.mark.parametrize("measure", [linear, rbf])
@pytest.mark.parametrize("debiased", [True, False])
def test_rotating_and_scaling_features_changes_nothing(measure, debiased):
    x, y = related()
    q, _ = np.linalg.qr(rng(1).normal(size=(12, 12)))
    assert measure(x, x @ q, debiased=debiased).value == pytest.approx(1, abs=1e-6)
    assert measure(x, 1e3 * x + 7, debiased=debiased).value == pytest.approx(1, abs=1e-5)
    moved = measure(x @ q * 0.01, y, debiased=debiased).value
    assert moved == pytest.approx(measure(x, y, debiased=debiased).value, abs=1e-5)
    swapped = measure(y, x, debiased=debiased).value
    assert swapped == pytest.approx(measure(x, y, debiased=debiased).value, abs=1e-9)


@pytest.mark.parametrize("measure", [linear, rbf])
def test_only_the_debiased_estimator_reads_zero_on_unrelated_features(measure):
    draws = [(rng(s).normal(size=(30, 40)), rng(s + 1000).normal(size=(30, 40))) for s in range(100)]
    unbiased = np.array([measure(x, y).value for x, y in draws])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / 10
    assert min(measure(x, y, debiased=False).value for x, y in draws) > 0.3


@pytest.mark.parametrize("n", [60, 14])
@pytest.mark.parametrize("debiased", [True, False])
def test_the_null_is_the_same_number_with_the_rows_of_one_side_permuted(n, debiased):
    x, y = related(n)
    draw = rng(5)
    permuted = [linear(x, y[draw.permutation(n)], debiased=debiased).value for _ in range(20)]
    found = linear(x, y, seed=5, permutations=20, debiased=debiased)
    assert found.null == pytest.approx(np.mean(permuted), abs=1e-9)
    assert found.null_high == pytest.approx(np.percentile(permuted, 95), abs=1e-9)


def test_the_rbf_null_is_the_same_number_with_the_rows_of_one_side_permuted():
    x, y = related(300)  # more rows than are gathered at a time
    assert rbf(x, y).null == pytest.approx(rbf(x, y[rng().permutation(300)]).value, abs=1e-9)


def test_the_authors_null_is_averaged_over_the_sets_like_the_value():
    x, y = (0.2 * z for z in related())
    found = authors(x, y, sets=3, set_size=20, permutations=2)
    draw = rng()
    sets = [np.sort(draw.choice(60, 20, replace=False)) for _ in range(3)]
    null = np.zeros(2)
    for rows in sets:
        for i in range(2):
            l = gaussian(y[rows[draw.permutation(20)]], 0.8)  # noqa: E741
            null[i] += biased(gaussian(x[rows], 0.8), l) / 3
    assert (found.null, found.null_high) == pytest.approx((null.mean(), np.percentile(null, 95)), abs=1e-6)


def test_the_authors_kernel_reads_one_on_unrelated_block_4_features_and_is_flagged():
    x, y = (np.maximum(rng(s).normal(size=(300, 2048)), 0).astype(np.float32) for s in (0, 1))
    found = authors(x, y)
    assert f"{found.value:.3f}" == "1.000"
    assert f"{found.null:.3f}" == "1.000"
    assert found.off_diagonal < 1e-6
    assert found.uninformative
    for believable in (linear(x, y, permutations=20), rbf(x, y, permutations=20)):
        assert abs(believable.value) < 0.02
        assert believable.uninformative  # no higher than chance


@pytest.mark.parametrize("measure", [linear, rbf])
def test_related_features_are_informative_and_unrelated_ones_are_not(measure):
    x, y = related(200)
    found = measure(x, y, permutations=20)
    assert found.value > 0.5
    assert found.null_high < 0.2
    assert not found.uninformative
    assert measure(x, y[rng(3).permutation(200)], permutations=200).value < 0.2
    assert not authors(0.2 * x, 0.2 * x).uninformative


def test_a_biased_value_that_is_mostly_chance_is_flagged_though_above_it():
    x, y = related(30, c=400, noise=60)
    found = linear(x, y, permutations=20, debiased=False)
    assert found.value > found.null_high
    assert found.null > 0.5 * found.value
    assert found.uninformative


@pytest.mark.parametrize(
    ("off_diagonal", "value", "flag"),
    [
        (0.5, 0.9, False),
        (1e-4, 0.9, True),
        (1 - 1e-12, 0.9, True),
        (None, 0.9, False),
        (0.5, 0.25, True),
        (0.5, 0.1, True),
    ],
)
def test_the_flag_rises_when_the_kernel_saturates_or_the_null_holds_half_of_the_value(off_diagonal, value, flag):
    found = cka.Similarity(value, None, None, 100, null=0.13, null_high=0.2, off_diagonal=off_diagonal)
    assert found.uninformative is flag


@pytest.mark.parametrize("measure", [linear, rbf])
def test_features_that_are_constant_up_to_rounding_have_no_cka(measure):
    x, _ = related()
    for constant in (np.full((60, 3), 0.1, np.float32), 0.1 + 1e-10 * x.astype(np.float64)):
        found = measure(x, constant)
        assert np.isnan(found.value)
        assert found.uninformative


@pytest.fixture
def many(monkeypatch):
    """More than 100 images are many, and are taken 64 at a time."""
    monkeypatch.setattr(cka, "MANY", 100)
    monkeypatch.setattr(cka_streamed, "ROWS", 64)


@pytest.mark.parametrize("measure", [linear, rbf])
@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("noise", [0.5, 20.0])
def test_many_images_have_the_cka_that_whole_matrices_give(measure, debiased, noise, many, monkeypatch):
    x, y = related(300, noise=noise)
    found = measure(x, y, permutations=5, debiased=debiased)
    monkeypatch.setattr(cka, "MANY", 300)
    whole = measure(x, y, permutations=5, debiased=debiased)
    for name in ("value", "null", "null_high"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), abs=1e-5)
    assert found.off_diagonal == pytest.approx(whole.off_diagonal, abs=1e-6)
    assert (found.n, found.low, found.high) == (300, None, None)


def test_many_images_of_which_one_side_is_constant_have_no_cka(many):
    x, _ = related(300)
    for measure in (linear, rbf):
        assert np.isnan(measure(x, np.ones((300, 3), np.float32)).value)


def test_the_median_distance_of_many_images_is_that_of_a_draw_of_them(many, monkeypatch):
    x, y = related(300)
    whole = rbf(x, y).value
    monkeypatch.setattr(cka, "_MEDIAN_OF", 150)
    drawn = rbf(x, y).value
    assert drawn != whole
    assert drawn == pytest.approx(whole, abs=0.01)


@pytest.mark.parametrize("n", [4, 5, 6, 61])  # 6, 10, 15, 1830 pairs
def test_the_median_distance_is_that_of_all_pairs(n):
    x, _ = related(n)
    centred = np.asarray(x, np.float64)
    found = cka._median_distance(cka._squared_distances(centred))
    assert found == pytest.approx(np.median(pdist(centred)), rel=1e-12)


def test_features_of_different_images_are_refused():
    x, y = related()
    with pytest.raises(DataError, match="same 4 or more images on both sides, got 60 and 59"):
        linear(x, y[:59])
    with pytest.raises(DataError, match="got 3 and 3"):
        linear(x[:3], y[:3])
