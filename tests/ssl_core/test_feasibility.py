"""What cannot be pretrained is refused before work starts, with the remedy."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_core.config import BarlowConfig, MocoConfig, PretrainConfig
from ssl_core.errors import ConfigError
from ssl_core.feasibility import check_pretrain, redundancy_floor


def config(batch: int, queue: int, limit: float | None = 0.5, width: int | None = None) -> PretrainConfig:
    barlow = None if width is None else BarlowConfig(width=width)
    return PretrainConfig(moco=MocoConfig(queue=queue, queue_limit=limit), batch_size=batch, barlow=barlow)


@pytest.mark.parametrize(
    ("bad", "images", "workers", "message"),
    [
        (config(33, 4), 32, 1, "batch_size 33 exceeds the 32 training images.*use at most 32"),
        (config(8, 17), 32, 1, "moco.queue 17 exceeds 0.5 of the 32 training images; use at most 16"),
        (config(9, 4), 32, 2, "batch_size 9 cannot be shared by 2 workers; use a multiple of 2, 4 or more"),
        (config(4, 4), 32, 4, "use a multiple of 4, 8 or more"),
    ],
)
def test_what_cannot_be_is_refused(bad: PretrainConfig, images: int, workers: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_pretrain(bad, images, workers)


@pytest.mark.parametrize("good", [config(32, 16), config(32, 65536, None), config(32, 4, width=31)])
def test_what_fits_passes_without_a_warning(good: PretrainConfig) -> None:
    assert check_pretrain(good, 32) == []


def test_a_projector_wider_than_the_batch_is_warned_of_with_the_floor() -> None:
    (warning,) = check_pretrain(config(32, 4, width=2048), 64)
    assert "133,252" in warning  # the protocol's example


@pytest.mark.parametrize(("d", "n"), [(12, 5), (40, 9)])
def test_no_views_that_agree_get_below_the_floor_and_random_ones_come_near(d: int, n: int) -> None:
    rng = np.random.default_rng(0)
    sums = []
    for _ in range(200):
        C = np.corrcoef(rng.normal(size=(n, d)), rowvar=False)
        sums.append((C**2).sum() - d)
    assert min(sums) >= redundancy_floor(d, n)
    assert np.median(sums) < 1.6 * redundancy_floor(d, n)
    assert redundancy_floor(n - 1, n) == 0
