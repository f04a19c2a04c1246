"""Centred kernel alignment between two feature sets of the same images (paper section 3.4.1), each with its null.

CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al. 2019, equation 4). With the right centring, every
HSIC below is a plain inner product of two centred Gram matrices, so CKA is the cosine between them:

- biased: A = H K H with H = I - 11'/N, and HSIC = <A, B> / (N-1)^2 (Gretton et al. 2005);
- debiased: A = K without its diagonal, "U-centred" so that each row sums to zero off the diagonal, and
  HSIC_1 = <A, B> / (N (N-3)) (Song et al. 2012, equation 5, rearranged). Its mean is zero for unrelated features.

A value means something only against what unrelated features would read: the null is the same number with the rows of
one side permuted. Features are float [N, C], rows are images.

Up to `MANY` images all numbers are float64, and memory is three N x N matrices, 1.5 GiB. Of more images the null of the
linear kernel and the whole of the RBF kernel are computed in float32, which moves CKA by about 1e-6, and sigma follows
the median distance within a draw of them: all 22,432 test images of ChestX-ray14, 2048 features each, take 2 GiB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis import cka_streamed
from ssl_core.errors import DataError

Array = NDArray[np.float64]
#: CKA with the rows of the second feature set taken in the given order, or as they are.
Alignment = Callable[[NDArray[np.int64] | None], float]

#: Unrelated features reading more than this share of the value: the kernel answers, not the features.
NULL_SHARE = 0.5
#: Mean off-diagonal kernel values outside this range: K is the identity, or constant up to rounding.
OFF_DIAGONAL = (1e-3, 1 - 1e-9)
#: Images whose N x N matrices, and so sums in float64, fit the memory that a comparison may take.
MANY = 8192
_MEDIAN_OF = 4096  # images whose pairwise distances tell the median of more than `MANY`
_CHUNK = 256  # rows gathered at a time under a permutation


@dataclass(frozen=True)
class Similarity:
    """A CKA value beside what tells whether it can be believed.

    `low` and `high` are the 2.5th and 97.5th percentile over random sets of images, None where there is one set.
    `null` and `null_high` are the mean and the 95th percentile under permutation. `off_diagonal` is the mean
    off-diagonal kernel value, of the side further from 1/2; None for a linear kernel, which has no bandwidth and so
    cannot saturate. NaN: undefined, because one side's features or kernel are constant.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    null: float
    null_high: float
    off_diagonal: float | None

    @property
    def uninformative(self) -> bool:
        """Whether the value is undefined, no higher than chance, mostly chance, or of a saturated kernel."""
        low, high = OFF_DIAGONAL
        saturated = self.off_diagonal is not None and not low <= self.off_diagonal <= high
        return saturated or not (self.value > self.null_high and self.null <= NULL_SHARE * self.value)


def linear(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    permutations: int,
    rng: np.random.Generator,
    debiased: bool = True,
) -> Similarity:
    """CKA of the linear kernel: invariant to orthogonal maps and isotropic scaling of either side."""
    _check(x, y)
    if max(x.shape[1], y.shape[1]) < len(x):
        align = _feature_alignment(_centred(x), _centred(y), debiased=debiased)
    else:
        align = _gram_alignment(*(side @ side.T for side in map(_centred, (x, y))), debiased=debiased)
    null = np.array([align(rng.permutation(len(x))) for _ in range(permutations)])
    return _similarity(np.array([align(None)]), null, len(x), None)


def rbf(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    bandwidth: float,
    permutations: int,
    rng: np.random.Generator,
    debiased: bool = True,
) -> Similarity:
    """CKA of the kernel exp(-d^2 / 2 sigma^2), sigma = `bandwidth` x the side's own median pairwise distance."""
    _check(x, y)
    orders = [rng.permutation(len(x)) for _ in range(permutations)]
    if len(x) > MANY:
        return _streamed(x, y, orders, bandwidth, debiased=debiased)
    distances = (_squared_distances(_centred(side)) for side in (x, y))
    kernels = [_gaussian(d, bandwidth * _median_distance(d)) for d in distances]
    off_diagonal = _furthest(_off_diagonal(k) for k in kernels)
    align = _gram_alignment(*kernels, debiased=debiased)
    null = np.array([align(order) for order in orders])
    return _similarity(np.array([align(None)]), null, len(x), off_diagonal)


def authors(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    sigma: float,
    sets: int,
    set_size: int,
    permutations: int,
    rng: np.random.Generator,
) -> Similarity:
    """CKA as the paper's authors ran it: biased, absolute sigma, mean over random sets of `set_size` images.

    Where the images are no more than one set, that set is all of them, once. The null permutes within each set and is
    averaged over the sets like the value.
    """
    _check(x, y)
    n, size = len(x), min(set_size, len(x))
    draws = [np.sort(rng.choice(n, size, replace=False)) for _ in range(sets)] if size < n else [np.arange(n)]
    values, null, off_diagonal = np.empty(len(draws)), np.zeros(permutations), np.zeros(2)
    kernel_of = [_kernel_of_sets(_centred(side), sigma, len(draws) * size**2) for side in (x, y)]
    for i, rows in enumerate(draws):
        kernels = [of(rows) for of in kernel_of]
        off_diagonal += [_off_diagonal(k) / len(draws) for k in kernels]
        align = _gram_alignment(*kernels, debiased=False)
        values[i] = align(None)
        null += [align(rng.permutation(size)) / len(draws) for _ in range(permutations)]
    return _similarity(values, null, size, _furthest(off_diagonal))


def _kernel_of_sets(x: Array, sigma: float, pairs: int) -> Callable[[NDArray[np.int64]], Array]:
    """The kernel of any set of rows. Sets of so many `pairs` in all share what they can: all pairs, where those are
    fewer.
    """
    if len(x) ** 2 > pairs:
        return lambda rows: _gaussian(_squared_distances(x[rows]), sigma)
    whole = _gaussian(_squared_distances(x), sigma)
    return lambda rows: _submatrix(whole, rows, rows)


def _streamed(
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    orders: Sequence[NDArray[np.int64]],
    bandwidth: float,
    *,
    debiased: bool,
) -> Similarity:
    """`rbf` of more than `MANY` images."""
    n = len(x)
    some = np.linspace(0, n - 1, min(n, _MEDIAN_OF)).astype(np.int64)

    def narrowed(features: NDArray[np.floating]) -> tuple[NDArray[np.float32], float]:
        """One side's centred features, and its sigma: in float64 two sides would take more than all the rest."""
        centred = _centred(features)
        return centred.astype(np.float32), bandwidth * _median_distance(_squared_distances(centred[some]))

    (x, sigma_x), (y, sigma_y) = narrowed(x), narrowed(y)
    value, null, means = cka_streamed.rbf(
        x,
        y,
        (sigma_x, sigma_y),
        orders,
        near=math.exp(-0.5 / bandwidth**2),  # the kernel of the median distance
        debiased=debiased,
    )
    return _similarity(np.array([value]), null, n, _furthest(means))


def _similarity(values: Array, null: Array, n: int, off_diagonal: float | None) -> Similarity:
    low, high = np.percentile(values, [2.5, 97.5]).tolist() if len(values) > 1 else (None, None)
    mean, null_high = float(null.mean()), float(np.percentile(null, 95))
    return Similarity(float(values.mean()), low, high, n, mean, null_high, off_diagonal)


def _check(x: NDArray[np.floating], y: NDArray[np.floating]) -> None:
    if len(x) != len(y) or len(x) < 4:
        raise DataError(f"CKA needs the same 4 or more images on both sides, got {len(x)} and {len(y)}")


def _centred(x: NDArray[np.floating]) -> Array:
    """In float64, with each column's mean taken off."""
    wide = np.asarray(x, dtype=np.float64)
    moved = wide - wide.mean(axis=0)  # no kernel changes by it, but rounding does
    # Features arrive as float32: a spread below its resolution is rounding, and its direction would be noise.
    return moved if _furthest_from_0(moved) > 1e-7 * _furthest_from_0(wide) else np.zeros_like(moved)


def _furthest_from_0(x: Array) -> float:
    return max(float(x.max()), -float(x.min()))


def _squared_distances(x: Array) -> Array:
    """Between all pairs of rows, [N, N]."""
    d = x @ x.T
    norms = d.diagonal().copy()
    d *= -2
    d += norms[:, None]
    d += norms[None, :]
    np.maximum(d, 0, out=d)
    np.fill_diagonal(d, 0)
    return d


def _median_distance(squared: Array) -> float:
    """Over pairs of different images."""
    n = len(squared)
    pairs, end = np.empty(n * (n - 1) // 2), 0
    for i in range(n - 1):
        pairs[end : (end := end + n - 1 - i)] = squared[i, i + 1 :]
    middle = (len(pairs) - 1) // 2, len(pairs) // 2  # the same where the pairs are odd in number
    pairs.partition(middle)
    return float(np.sqrt(pairs[list(middle)]).mean())


def _gaussian(squared: Array, sigma: float) -> Array:
    """exp(-d^2 / 2 sigma^2), in place; sigma 0, where most features coincide, gives the limit: the identity."""
    if sigma == 0:
        return np.eye(len(squared))
    squared *= -0.5 / sigma**2
    return np.exp(squared, out=squared)


def _submatrix(matrix: Array, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
    return matrix[rows].take(columns, axis=1)  # several times as fast as to pick the pairs one by one


def _off_diagonal(kernel: Array) -> float:
    n = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))


def _furthest(means: Iterable[float]) -> float:
    return float(max(means, key=lambda m: abs(m - 0.5)))


def _centre(kernel: Array, *, debiased: bool) -> Array:
    """The matrix whose inner products are HSIC, in place."""
    n = len(kernel)
    if debiased:
        np.fill_diagonal(kernel, 0)
    rows, total = kernel.sum(axis=1), kernel.sum()
    kernel -= rows[:, None] / (n - 2 if debiased else n)
    kernel -= rows[None, :] / (n - 2 if debiased else n)
    kernel += total / ((n - 1) * (n - 2) if debiased else n * n)
    if debiased:
        np.fill_diagonal(kernel, 0)
    return kernel


def _gram_alignment(k: Array, l: Array, *, debiased: bool) -> Alignment:  # noqa: E741 (K and L are the paper's names)
    """CKA of two Gram matrices, which are overwritten. A permuted kernel is its centred matrix permuted."""
    a, b = _centre(k, debiased=debiased), _centre(l, debiased=debiased)
    norm = math.sqrt(float(np.vdot(a, a))) * math.sqrt(float(np.vdot(b, b)))

    def align(order: NDArray[np.int64] | None) -> float:
        if order is None:
            cross = float(np.vdot(a, b))
        else:
            starts = range(0, len(a), _CHUNK)
            parts = (np.vdot(a[i : i + _CHUNK], _submatrix(b, order[i : i + _CHUNK], order)) for i in starts)
            cross = float(sum(parts))
        return cross / norm if norm > 0 else math.nan

    return align


def _feature_alignment(x: Array, y: Array, *, debiased: bool) -> Alignment:
    """The same for K = XX', L = YY' of centred features, through C x C instead of N x N matrices.

    <K, L> = |X'Y|^2, and as K1 = 0 the sums in HSIC_1 that leave out the diagonal are sums over the diagonal alone.
    """
    n = len(x)
    dx, dy = np.square(x).sum(axis=1), np.square(y).sum(axis=1)  # diagonals of K and L

    def hsic(p: NDArray[np.floating], q: NDArray[np.floating], dp: Array, dq: Array) -> float:
        product = float(np.square(p.T @ q).sum(dtype=np.float64))
        if debiased:
            product += float(dp.sum() * dq.sum() / ((n - 1) * (n - 2)) - n / (n - 2) * (dp @ dq))
        return product

    norm = math.sqrt(max(hsic(x, x, dx, dx), 0.0)) * math.sqrt(max(hsic(y, y, dy, dy), 0.0))
    value = hsic(x, y, dx, dy)
    if n > MANY:
        x, y = x.astype(np.float32), y.astype(np.float32)

    def align(order: NDArray[np.int64] | None) -> float:
        cross = value if order is None else hsic(x, y[order], dx, dy[order])
        return cross / norm if norm > 0 else math.nan

    return align
