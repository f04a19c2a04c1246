"""A dataset small enough to train on in a test, and one thread: on a shared machine two only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset, pixel_statistics


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Real 8 px digits, 72: the classes 0, 1 and 2 in turn; 40 train, 16 validate, 16 test. Two images a group."""
    from sklearn.datasets import load_digits

    source = load_digits()
    rows = np.concatenate([np.flatnonzero(source.target == c)[:24] for c in range(3)]).reshape(3, 24).T.ravel()
    images = np.round(source.images[rows, :, :, None] / 16 * 255).astype(np.uint8)
    splits = np.repeat(np.array([TRAIN, VAL, TEST], dtype=np.int8), (40, 16, 16))
    mean, std = pixel_statistics(images, np.flatnonzero(splits == TRAIN))
    return Dataset(
        name="toy digits",
        images=images,
        labels=source.target[rows].astype(np.int64),
        splits=splits,
        groups=np.array([f"patient{i // 2}" for i in range(72)]),
        ids=np.array([f"image{i}" for i in range(72)]),
        class_names=("zero", "one", "two"),
        task="multiclass",
        mean=mean,
        std=std,
        fingerprint="toy",
    )
