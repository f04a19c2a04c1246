"""Which images of a dataset are the same picture, exactly or nearly: copies that were saved, resized or cropped again.

Medical images of one kind all look alike: the usual perceptual hashes call any two chest X-rays copies of each other.
So each thumbnail is compared by what sets it apart from its dataset: its low spatial frequencies, less their mean over
the dataset, each divided by its spread. Of those, what a small shift, stretch or contrast change would explain is taken
out (to first order, as in Lucas & Kanade, IJCAI 1981). Pairs to look at come from sign hashes (Charikar, STOC 2002) cut
into bands: copies agree in one band at least, and no step is quadratic in images.

Calibrated on the 5,808 real X-rays of the Kermany dataset (64 px); share of altered copies found at `LIKENESS`:

    JPEG quality 60 to 95, resized to 50-90% and back          1.00
    brightness 5%, contrast 10%, gamma 0.95 to 1.3, stretched  1.00
    cropped by 1, 2, 3% on each side                           1.00, 0.995, 0.93
    shifted by 1, 2% (the edge filled black)                   1.00, 0.985

Among 16.9 million pairs of its different images none is called alike: the likest, 0.91, may show one child twice. A
search of 112,120 made-up thumbnails with the spectrum of these takes 8 s on one core.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ssl_core.seeding import generator

THUMB = 32  # side of a thumbnail in pixels; images with a shorter side hold too little to tell copies from likes
LIKENESS = 0.92  # of two thumbnails that count as one picture; see the calibration above

_TRIM = 1  # outermost thumbnail pixels that are not looked at: what a shift fills in lies there
_SIDE = THUMB - 2 * _TRIM
_FLAT = 2.0  # grey levels of spread (standard deviation) below which a thumbnail shows nothing to compare
_HASH_WAVES = 8  # frequencies a side that are hashed: few, so that altered copies keep their bits
_WAVES = 14  # frequencies a side that decide: many, so that different pictures differ
_NOISE = 0.1  # of a coefficient, from rounding and compression, in units of the thumbnail's own spread
_PRIOR = 50  # images that the prior spectrum weighs as much as: it steadies small datasets
_FEW = 10  # images below which the dataset's mean is hardly taken off: it would be the images themselves
_BITS = 256
_ALIKE_BITS = 56  # most bits in which a pair worth a look differs: 99% of the altered copies above differ in fewer
_NEIGHBOURS = 96  # of a row in a band's order that it is compared with: bounds the work where thousands are alike
_NEAREST = 16  # rows that a row is looked at with in the end
_ROWS = 4096  # thumbnails worked on together
_PAIRS = 1 << 22  # pairs held before they are thinned out
_LOOKS = 1 << 18  # pairs looked at: hundreds of times what 112,120 different images need

_Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]  # lower rows, higher rows, bits apart

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as in Pillow


def describe(images: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """What the audit needs of packed images (n, H, W, C): `digest` (n, 16), of shape and pixels; `thumb` (n, 32, 32).

    Thumbnails are grey, each pixel the mean of its area. C is 1 or 3.
    """
    n, height, width, channels = images.shape
    digests = np.empty((n, 16), dtype=np.uint8)
    thumbs = np.empty((n, THUMB, THUMB), dtype=np.uint8)
    across = _area(width)
    shape = repr(images.shape[1:]).encode()
    for row, image in enumerate(images):
        image = np.ascontiguousarray(image)
        digest = blake2b(image.data, digest_size=16, person=shape[:16]).digest()
        digests[row] = np.frombuffer(digest, dtype=np.uint8)
        lines = _lines(image.reshape(height, -1)).reshape(THUMB, width, channels)
        grey = lines @ _GREY if channels == 3 else lines[..., 0]  # (32, W)
        thumbs[row] = np.rint(grey @ across.T).clip(0, 255)
    return {"digest": digests, "thumb": thumbs}


def _lines(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(height, m) averaged to (32, m)."""
    many = len(image) // THUMB
    if many * THUMB == len(image) and many.bit_count() == 1:  # sums and shares are exact, in whichever way
        sums: NDArray[np.uint32] = image.reshape(THUMB, many, -1).sum(axis=1, dtype=np.uint32)
        return sums.astype(np.float32) / np.float32(many)
    averaged: NDArray[np.float32] = _area(len(image)) @ image.astype(np.float32)
    return averaged


@lru_cache(maxsize=8)
def _area(side: int) -> NDArray[np.float32]:
    """(32, side): the weights with which `side` pixels are averaged to 32."""
    edges = np.linspace(0, side, THUMB + 1)
    pixels = np.arange(side)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    weights = overlap.clip(min=0)
    weights /= weights.sum(axis=1, keepdims=True)
    averaging: NDArray[np.float32] = weights.astype(np.float32)
    return averaging


def flat(thumbs: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which thumbnails (N, 32, 32) show too little to be compared: (N,)."""
    spreads = [_inner(thumbs[at : at + _ROWS]).std(axis=(1, 2)) for at in range(0, len(thumbs), _ROWS)]
    return np.concatenate(spreads) < _FLAT if spreads else np.zeros(0, dtype=bool)


def near_duplicates(thumbs: NDArray[np.uint8], splits: NDArray[np.int8] | None = None) -> NDArray[np.int64]:
    """Pairs of rows (P, 2), the lower first, whose thumbnails (N, 32, 32) show one picture; most alike first.

    With `splits` (N,) only pairs from two splits. Flat thumbnails are left out. Of thousands that are all alike not
    every pair is given, but each row's nearest. All N should belong to one dataset: what is common to all says nothing.
    """
    rows = np.flatnonzero(~flat(thumbs))
    nothing = np.zeros((0, 2), dtype=np.int64)
    if len(rows) < 2:
        return nothing
    mean, scale = _spectrum(thumbs, rows)
    directions = generator(0, "likeness").standard_normal((_HASH_WAVES**2, _BITS)).astype(np.float32)
    bits = np.empty((len(rows), _BITS), dtype=bool)
    for at in range(0, len(rows), _ROWS):
        waves = _waves(thumbs[rows[at : at + _ROWS]], _HASH_WAVES)
        bits[at : at + _ROWS] = _set_apart(waves, mean, scale) @ directions > 0
    pairs = rows[candidates(bits, None if splits is None else splits[rows])]  # (P, 2)
    alike = [_likeness(thumbs, pairs[at : at + _ROWS], mean, scale) for at in range(0, len(pairs), _ROWS)]
    likeness = np.concatenate(alike) if alike else np.zeros(0, dtype=np.float32)
    found = np.flatnonzero(likeness >= LIKENESS)
    return pairs[found[np.argsort(-likeness[found], kind="stable")]]


def candidates(
    bits: NDArray[np.bool_], splits: NDArray[np.int8] | None = None, *, most: int = _ALIKE_BITS
) -> NDArray[np.int64]:
    """Pairs of rows (P, 2), the lower first, whose hashes (N, 256) agree in a band and differ in `most` bits or fewer.

    Bands have log2(N) - 3 bits, 12 to 16. A pair that differs in fewer bits than there are bands agrees in one of them
    (the pigeonhole principle), so it is missed only if more than 96 rows share the band with it or 16 are nearer.
    """
    width = int(np.clip(round(np.log2(max(2, len(bits)))) - 3, 12, 16))
    words = np.packbits(bits, axis=1).view(np.uint64)  # (N, 4)
    held: list[_Pairs] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint16))]
    for band in range(bits.shape[1] // width):
        # The bits after the band order the rows inside it, so that a row's neighbours are its likes.
        key = np.packbits(np.roll(bits, -band * width, axis=1)[:, :64], axis=1).view(">u8")[:, 0].astype(np.uint64)
        order = np.argsort(key, kind="stable")
        bucket = key[order] >> np.uint64(64 - width)
        for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            here = np.flatnonzero(bucket[step:] == bucket[:-step])
            if not len(here):
                break
            a, b = order[here], order[here + step]
            if splits is not None:
                across = splits[a] != splits[b]
                a, b = a[across], b[across]
            apart = np.bitwise_count(words[a] ^ words[b]).sum(axis=1, dtype=np.uint16)
            close = apart <= most
            held.append((np.minimum(a, b)[close], np.maximum(a, b)[close], apart[close]))
            if sum(len(pairs[0]) for pairs in held[1:]) > _PAIRS:
                held = [_nearest(held)]
    low, high, _ = _nearest(held)
    return np.stack([low, high], axis=1)


def _nearest(held: list[_Pairs]) -> _Pairs:
    """The pairs, each once: of each lower row the nearest, and of all too many pairs each row's nearest first."""
    low, high, apart = (np.concatenate(part) for part in zip(*held, strict=True))
    order = np.lexsort((high, apart, low))
    low, high, apart = low[order], high[order], apart[order]
    if len(low):
        new = np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])]  # equal pairs are equally far: neighbours
        low, high, apart = low[new], high[new], apart[new]
    rank = np.arange(len(low)) - np.searchsorted(low, low)
    kept = np.flatnonzero(rank < _NEAREST)
    kept = np.sort(kept[np.argsort(rank[kept], kind="stable")[:_LOOKS]])
    return low[kept], high[kept], apart[kept]


def _inner(thumbs: NDArray[np.uint8]) -> NDArray[np.float32]:
    return thumbs[:, _TRIM : THUMB - _TRIM, _TRIM : THUMB - _TRIM].astype(np.float32)


@lru_cache(maxsize=2)
def _bases(waves: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Three (waves, side) matrices along one axis: the cosine transform (DCT-II), also of a shift and of a stretch."""
    at = np.arange(_SIDE)
    cosine = np.cos(np.pi * np.arange(waves)[:, None] * (2 * at + 1) / (2 * _SIDE)) * np.sqrt(2 / _SIDE)
    cosine[0] /= np.sqrt(2)
    shift = np.gradient(np.eye(_SIDE), axis=0)  # acts on a column of pixels
    stretch = ((at - (_SIDE - 1) / 2) / _SIDE)[:, None] * shift
    return cosine.astype(np.float32), (cosine @ shift).astype(np.float32), (cosine @ stretch).astype(np.float32)


def _waves(thumbs: NDArray[np.uint8], waves: int) -> NDArray[np.float32]:
    """(n, 5, waves^2): low frequencies of the standardised thumbnails, and their change by shifts and stretches."""
    pixels = _inner(thumbs)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    pixels /= pixels.std(axis=(1, 2), keepdims=True).clip(min=_FLAT)
    cosine, shift, stretch = _bases(waves)
    along = pixels @ np.concatenate([cosine, shift, stretch]).T  # (n, side, 3 waves)
    x = (cosine @ along).reshape(len(pixels), waves, 3, waves).swapaxes(1, 2)  # (n, 3, waves, waves)
    y = np.concatenate([shift, stretch]) @ along[..., :waves]  # (n, 2 waves, waves)
    return np.concatenate([x.reshape(len(pixels), 3, -1), y.reshape(len(pixels), 2, -1)], axis=1)


def _spectrum(thumbs: NDArray[np.uint8], rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean of the low frequencies over the dataset and what they are multiplied with, each (14, 14); pulled to a prior.

    The prior is the spectrum of natural images, whose power falls with the square of the frequency.
    """
    total, squares = np.zeros((2, _WAVES**2))
    for at in range(0, len(rows), _ROWS):
        values = _waves(thumbs[rows[at : at + _ROWS]], _WAVES)[:, 0].astype(np.float64)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
    n = len(rows)
    mean = total / n
    variance = (squares / n - mean**2).clip(min=0)
    wave = np.arange(_WAVES)
    prior = (1 / (1 + wave[:, None] ** 2 + wave**2)).ravel()
    prior[0] = 0  # thumbnails are standardised: their mean grey is 0
    prior *= max(float(variance[1:].sum()), 1e-6) / prior.sum()
    variance = (n * variance + _PRIOR * prior) / (n + _PRIOR)
    scale = 1 / np.sqrt(variance + _NOISE**2)
    scale[0] = 0
    square = (_WAVES, _WAVES)
    return (mean * n / (n + _FEW)).reshape(square).astype(np.float32), scale.reshape(square).astype(np.float32)


def _set_apart(
    waves: NDArray[np.float32], mean: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(n, 8 x 8): the hashed frequencies less the dataset's mean, less what small moves of the image explain."""
    few = slice(_HASH_WAVES)
    weight = scale[few, few].ravel()
    own = (waves[:, 0] - mean[few, few].ravel()) * weight
    return _less(own, waves[:, 1:] * weight)


def _likeness(
    thumbs: NDArray[np.uint8], pairs: NDArray[np.int64], mean: NDArray[np.float32], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(n,) of pairs (n, 2): 1 - |a - b|^2 / (|a|^2 + |b|^2), which is the correlation where the lengths are equal.

    a and b are weighted frequencies less the dataset's mean; a - b is less what shift, stretch and contrast explain.
    """
    first, second = (_waves(thumbs[pairs[:, side]], _WAVES) * scale.ravel() for side in (0, 1))
    moves = (first + second) * np.float32(0.5)  # (n, 5, 196): the picture itself stands for a change of contrast
    centre = mean.ravel() * scale.ravel()
    lengths = ((first[:, 0] - centre) ** 2).sum(axis=1) + ((second[:, 0] - centre) ** 2).sum(axis=1)
    rest = _less(first[:, 0] - second[:, 0], moves)
    likeness: NDArray[np.float32] = 1 - (rest**2).sum(axis=1) / lengths.clip(min=1e-6)
    return likeness


def _less(values: NDArray[np.float32], moves: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values (n, d) less their projection on each one's moves (n, m, d); nearly dependent moves are held back."""
    gram = moves @ moves.swapaxes(1, 2)  # (n, m, m)
    ridge = 1e-4 * np.trace(gram, axis1=1, axis2=2)[:, None, None] + 1e-6
    amount = np.linalg.solve(gram + ridge * np.eye(gram.shape[1], dtype=np.float32), moves @ values[..., None])
    rest: NDArray[np.float32] = values - (amount.swapaxes(1, 2) @ moves)[:, 0]
    return rest
