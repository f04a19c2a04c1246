"""Digests, thumbnails and the search for near duplicates, on real digits and X-ray-like pictures."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ssl_core.data import likeness
from ssl_core.data.likeness import THUMB, candidates, describe, flat, near_duplicates

Pixels = NDArray[np.uint8]


def pictures(n: int, side: int = 64, seed: int = 0) -> Pixels:
    """(n, side, side, 1) that all look alike: one anatomy, and smooth differences between individuals."""
    rng = np.random.default_rng(seed)
    wave = np.arange(16)
    power = 1 / np.sqrt(1 + wave[:, None] ** 2 + wave**2)
    basis = np.cos(np.pi * wave[:, None] * (np.arange(side) + 0.5) / side)  # (16, side)
    parts = rng.normal(size=(n, 16, 16)) * power
    common = np.random.default_rng(99).normal(size=(16, 16)) * power * 3
    field = basis.T @ (parts + common) @ basis
    noise = rng.normal(scale=0.02, size=field.shape)
    return np.clip(128 + 12 * (field + noise), 0, 255).astype(np.uint8)[..., None]


def jpeg(image: Pixels) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def resized(image: Pixels) -> Pixels:
    side = len(image)
    small = Image.fromarray(image).resize((round(0.8 * side),) * 2, Image.Resampling.BILINEAR)
    return np.asarray(small.resize((side, side), Image.Resampling.BILINEAR))


def cropped(image: Pixels) -> Pixels:
    side = len(image)
    edge = 0.015 * side
    box = (edge, edge, side - edge, side - edge)
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box=box))


def shifted(image: Pixels) -> Pixels:
    return np.roll(image, 1, axis=1)


def brighter(image: Pixels) -> Pixels:
    return np.clip(image * 1.05 + 6, 0, 255).astype(np.uint8)


def gamma(image: Pixels) -> Pixels:
    return (255 * (image / 255) ** 1.1).astype(np.uint8)


@pytest.mark.parametrize("change", [jpeg, resized, cropped, shifted, brighter, gamma])
def test_altered_copies_are_found_and_nothing_else(change: Callable[[Pixels], Pixels]) -> None:
    images = pictures(300)
    copies = np.stack([change(image[..., 0]) for image in images[::5]])[..., None]  # (60, 64, 64, 1)
    thumbs = describe(np.concatenate([images, copies]))["thumb"]
    found = {tuple(pair) for pair in near_duplicates(thumbs).tolist()}
    true = {(5 * k, 300 + k) for k in range(60)}
    assert found <= true
    assert len(found) >= 0.95 * len(true)


def test_different_pictures_of_one_anatomy_are_no_copies_though_they_correlate() -> None:
    images = pictures(500)
    thumbs = describe(images)["thumb"]
    flattened = thumbs.reshape(500, -1).astype(float)
    assert np.median(np.corrcoef(flattened)[np.triu_indices(500, 1)]) > 0.7  # what a plain hash would look at
    assert len(near_duplicates(thumbs)) == 0


def test_the_order_of_rows_does_not_matter() -> None:
    images = pictures(200)
    images[150:160] = images[:10] // 2 + 60
    thumbs = describe(images)["thumb"]
    order = np.random.default_rng(3).permutation(200)
    straight = {frozenset(pair) for pair in near_duplicates(thumbs).tolist()}
    shuffled = {frozenset(order[pair].tolist()) for pair in near_duplicates(thumbs[order])}
    assert straight == shuffled == {frozenset((k, 150 + k)) for k in range(10)}


def test_only_pairs_of_two_splits_where_splits_are_given() -> None:
    images = pictures(100)
    images[50:54] = images[:4]
    splits = np.zeros(100, dtype=np.int8)
    splits[50:52] = 2
    found = near_duplicates(describe(images)["thumb"], splits)
    assert sorted(found.tolist()) == [[0, 50], [1, 51]]


def test_flat_thumbnails_are_left_out_whatever_their_number() -> None:
    rng = np.random.default_rng(0)
    thumbs = (200 + rng.integers(-1, 2, size=(20_000, THUMB, THUMB))).astype(np.uint8)
    assert flat(thumbs).all()
    assert near_duplicates(thumbs).shape == (0, 2)


def test_two_or_no_thumbnails_are_enough_to_ask() -> None:
    thumbs = describe(pictures(2))["thumb"]
    assert near_duplicates(thumbs[:0]).shape == (0, 2)
    assert near_duplicates(thumbs[:1]).shape == (0, 2)
    assert near_duplicates(thumbs[[0, 0]]).tolist() == [[0, 1]]


def distances(bits: NDArray[np.bool_]) -> NDArray[np.int64]:
    return (bits[:, None] != bits[None]).sum(axis=2)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 16), seed=st.integers(0, 1000), flips=st.integers(0, 30))
def test_bands_find_every_pair_within_the_guaranteed_radius(n: int, seed: int, flips: int) -> None:
    rng = np.random.default_rng(seed)
    bits = np.repeat(rng.random((1 + n // 2, 256)) < 0.5, 2, axis=0)[:n]
    for row in bits:
        row[rng.choice(256, flips // 2, replace=False)] ^= True
    apart = distances(bits)
    low, high = np.nonzero(np.triu(np.ones((n, n), dtype=bool), 1) & (apart < 256 // 12))
    near = set(zip(low.tolist(), high.tolist(), strict=True))
    found = {tuple(pair) for pair in candidates(bits).tolist()}
    assert near <= found
    assert all(apart[pair] <= 56 and pair[0] < pair[1] for pair in found)


@pytest.mark.parametrize("free", range(21))
def test_one_equal_band_is_enough_whichever_it_is(free: int) -> None:
    bits = np.zeros((2, 256), dtype=bool)
    bits[1, [12 * band + band % 12 for band in range(21) if band != free]] = True  # 20 bits, no two in one band
    assert candidates(bits).tolist() == [[0, 1]]
    assert candidates(bits, most=19).tolist() == []


def test_thousands_of_equal_hashes_give_each_row_a_few_pairs() -> None:
    pairs = candidates(np.zeros((3_000, 256), dtype=bool))
    assert len(pairs) <= 16 * 3_000
    assert len(np.unique(pairs)) == 3_000  # and none is left without


def test_digests_are_equal_where_shape_and_pixels_are() -> None:
    images = pictures(3)
    digest = describe(images)["digest"]
    assert digest.shape == (3, 16)
    assert digest.dtype == np.uint8
    assert len(np.unique(digest, axis=0)) == 3
    changed = images.copy()
    changed[0, 5, 5, 0] ^= 1
    assert (describe(changed)["digest"] == digest).all(axis=1).tolist() == [False, True, True]
    black, wide = np.zeros((1, 4, 9, 1), np.uint8), np.zeros((1, 9, 4, 1), np.uint8)
    assert (describe(black)["digest"] != describe(wide)["digest"]).any()


def test_a_view_with_gaps_is_described_as_its_copy() -> None:
    images = pictures(8)
    view = images[::2, ::-1]
    for key, values in describe(view).items():
        np.testing.assert_array_equal(values, describe(view.copy())[key])


@pytest.mark.parametrize("side", [64, 100, 33])
def test_thumbnails_are_means_of_areas(side: int) -> None:
    image = np.random.default_rng(side).integers(0, 256, size=(1, side, side, 3)).astype(np.uint8)
    grey = image[0].astype(float) @ [0.299, 0.587, 0.114]
    fine = np.repeat(np.repeat(grey, THUMB, axis=0), THUMB, axis=1)  # each pixel as 32 x 32, so that areas are whole
    means = fine.reshape(THUMB, side, THUMB, side).mean(axis=(1, 3))
    np.testing.assert_allclose(describe(image)["thumb"][0], means, atol=0.51)


@pytest.mark.parametrize("side", [32, 64, 1024])
def test_lines_that_divide_into_halves_are_averaged_without_rounding_as_by_weights(side: int) -> None:
    image = np.random.default_rng(side).integers(0, 256, size=(side, 40)).astype(np.uint8)
    exact = likeness._area(side).astype(np.float64) @ image
    np.testing.assert_array_equal(likeness._lines(image), exact)
    assert likeness._lines(image).dtype == np.float32


def test_images_below_32_pixels_still_have_a_thumbnail() -> None:
    assert describe(np.full((2, 8, 8, 1), 7, np.uint8))["thumb"].tolist() == [[[7] * THUMB] * THUMB] * 2
