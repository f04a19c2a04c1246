"""What the encoder is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_core import augment
from ssl_core.batches import Batches, statistics
from ssl_core.config import NO_AUGMENT, AugmentConfig
from ssl_core.data.dataset import Dataset
from ssl_core.initialisation import random_generator

ROWS = np.array([5, 3, 60])
AUGMENT = AugmentConfig(crop=(0.3, 0.8), flip=0.5)


@pytest.fixture
def given(digits: Dataset) -> Batches:
    return Batches(digits, (0.4,), (0.2,), torch.device("cpu"))


def test_plain_images_are_the_rows_pixels_normalised(given: Batches, digits: Dataset) -> None:
    expected = (digits.images[ROWS].transpose(0, 3, 1, 2) / 255 - 0.4) / 0.2
    np.testing.assert_allclose(given.plain(ROWS).numpy(), expected, atol=1e-6)


def test_views_without_augmentation_are_the_plain_images(given: Batches) -> None:
    for view in given.views(ROWS, NO_AUGMENT, random_generator(0, "views"), 2):
        torch.testing.assert_close(view, given.plain(ROWS), rtol=0, atol=1e-6)


def test_views_follow_the_generator_and_differ_from_each_other(given: Batches) -> None:
    first, second = given.views(ROWS, AUGMENT, random_generator(0, "views", 1), 2)
    again, _ = given.views(ROWS, AUGMENT, random_generator(0, "views", 1), 2)
    other, _ = given.views(ROWS, AUGMENT, random_generator(0, "views", 2), 2)
    assert torch.equal(first, again)
    for i in range(len(ROWS)):
        assert not torch.equal(first[i], second[i])
        assert not torch.equal(first[i], other[i])


def test_views_are_the_augmentations_normalised(given: Batches, digits: Dataset) -> None:
    (view,) = given.views(ROWS, AUGMENT, random_generator(0, "views"), 1)
    pixels = torch.from_numpy(digits.images[ROWS]).permute(0, 3, 1, 2)
    drawn = augment.draw(AUGMENT, 3, 1, 8, random_generator(0, "views"))
    torch.testing.assert_close(view, (augment.apply(pixels, drawn) - 0.4) / 0.2, rtol=1e-5, atol=1e-5)


def test_a_workers_views_are_its_part_of_the_global_batchs(given: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = given.views(ROWS, AUGMENT, random_generator(0, "views"), 2)
    monkeypatch.setattr("ssl_core.batches.share", lambda n: slice(1, n))
    part = given.views(ROWS, AUGMENT, random_generator(0, "views"), 2)
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-6, atol=1e-6)


def test_normalising_is_by_the_training_set_or_not_at_all(digits: Dataset) -> None:
    assert statistics(digits, True) == (digits.mean, digits.std)
    assert statistics(digits, False) == ((0.0,), (1.0,))
