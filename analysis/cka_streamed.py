"""RBF CKA of so many images that their Gram matrices do not fit memory: one is held in 16 bits, one never as a whole.

Both kernels are computed in float32, some rows at a time. A constant may be taken off all off-diagonal values without
changing a centred matrix; taking off what most of them are near leaves small numbers, whose rounding is small. With
that, and sums in float64, CKA and its null come out as in `analysis.cka` to about 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

Array = NDArray[np.float64]
Narrow = NDArray[np.float32]
Order = NDArray[np.int64]

#: Rows of a kernel that are computed together; memory is 2 N^2 bytes and some of these rows.
ROWS = 256
_UNITS = 32767  # of the held matrix, to one: kernel values are at most 1, and so is their distance from another


def rbf(
    x: Narrow, y: Narrow, sigmas: tuple[float, float], orders: Sequence[Order], *, near: float, debiased: bool
) -> tuple[float, Array, tuple[float, float]]:
    """CKA of the kernels exp(-d^2 / 2 sigma^2) of features (N, C), which are overwritten, one sigma a side.

    Args:
        orders: permutations of the N rows of `y`.
        near: what most kernel values are near; any number gives the same up to rounding.

    Returns the value, the values under each permutation, and each side's mean off-diagonal kernel value.
    """
    n, diagonal = len(x), 0.0 if debiased else 1.0 - near
    held = np.empty((n, n), dtype=np.int16)
    l_rows, l_square = np.zeros(n), 0.0
    for start, block in _kernel(y, sigmas[1], near, diagonal):
        stop = start + len(block)
        l_square += _both_halves(block, block)
        _add_rows(l_rows, start, block)
        block *= _UNITS
        held[start:stop, start:] = np.rint(block, out=block)
        held[stop:, start:stop] = held[start:stop, stop:].T
    k_rows, k_square, cross = np.zeros(n), 0.0, np.zeros(1 + len(orders))
    everyone = [np.arange(n), *orders]
    with ThreadPoolExecutor(_threads()) as pool:  # numpy works outside Python's lock
        for start, block in _kernel(x, sigmas[0], near, diagonal):
            k_square += _both_halves(block, block)
            _add_rows(k_rows, start, block)
            cross += list(pool.map(partial(_with_held, held, start, block), everyone))

    def hsic(product: float, of_one: Array, of_other: Array) -> float:
        """<A, B> of centred matrices, from the sums of those that are not (Song et al. 2012, equation 5)."""
        m, pairs = (n - 2, (n - 1) * (n - 2)) if debiased else (n, n * n)
        return product - 2 / m * float(of_one @ of_other) + float(of_one.sum() * of_other.sum()) / pairs

    squares = hsic(k_square, k_rows, k_rows), hsic(l_square, l_rows, l_rows)
    norm = math.sqrt(max(squares[0], 0.0)) * math.sqrt(max(squares[1], 0.0))
    found = np.array([hsic(c, k_rows, l_rows[order]) for c, order in zip(cross, everyone, strict=True)])
    found = found / norm if norm > 0 else np.full(len(found), math.nan)
    means = [(rows.sum() - n * diagonal) / (n * (n - 1)) + near for rows in (k_rows, l_rows)]
    return float(found[0]), found[1:], (float(means[0]), float(means[1]))


def _kernel(x: Narrow, sigma: float, near: float, diagonal: float) -> Iterator[tuple[int, Narrow]]:
    """(start, rows from `start` on, each from column `start` on) of the kernel less `near`; its diagonal as given.

    Divides x by sigma in place.
    """
    if sigma > 0:
        x /= sigma
    half = np.square(x).sum(axis=1) / 2
    for start in range(0, len(x), ROWS):
        mine = slice(start, start + ROWS)
        if sigma > 0:
            block: Narrow = x[mine] @ x[start:].T
            block -= half[mine, None]
            block -= half[start:]
            np.exp(np.minimum(block, 0, out=block), out=block)
        else:
            block = np.zeros((len(half[mine]), len(x) - start), dtype=np.float32)
        block -= np.float32(near)
        np.fill_diagonal(block, diagonal)
        yield start, block


def _with_held(held: NDArray[np.int16], start: int, block: Narrow, order: Order) -> float:
    """The share of the block's rows in the inner product with the held matrix in that order of its rows and columns."""
    other = held[order[start : start + len(block)]].take(order[start:], axis=1)
    return _both_halves(block, other.astype(np.float32)) / _UNITS


def _threads() -> int:
    """As many as BLAS takes: that follows what this process was given."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)


def _both_halves(a: Narrow, b: Narrow) -> float:
    """The share of these rows in the inner product of two symmetric matrices, of which they are the upper half."""
    square = len(a)
    return 2 * float(_products(a, b)) - float(_products(a[:, :square], b[:, :square]))


def _products(a: Narrow, b: Narrow) -> Array:
    total: Array = np.einsum("ij,ij->i", a, b).sum(dtype=np.float64)
    return total


def _add_rows(rows: Array, start: int, block: Narrow) -> None:
    stop = start + len(block)
    rows[start:stop] += block.sum(axis=1, dtype=np.float64)
    rows[stop:] += block[:, len(block) :].sum(axis=0, dtype=np.float64)
