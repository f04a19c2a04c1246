"""What cannot be pretrained is refused before work starts, with the remedy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ssl_core.config import NO_AUGMENT, AugmentConfig, BarlowConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.errors import ConfigError
from ssl_core.feasibility import PAPER_QUEUE, check_pretrain, redundancy_floor, settle, settle_queue


def config(batch: int, queue: int, limit: float | None = 0.5, width: int | None = None) -> PretrainConfig:
    barlow = None if width is None else BarlowConfig(width=width)
    return PretrainConfig(moco=MocoConfig(queue=queue, queue_limit=limit), batch_size=batch, barlow=barlow)


@pytest.mark.parametrize(
    ("bad", "images", "workers", "message"),
    [
        (config(33, 4), 32, 1, "batch_size 33 exceeds the 32 training images.*use at most 32"),
        (config(8, 17), 32, 1, "moco.queue 17 exceeds 0.5 of the 32 training images; use at most 16"),
        (config(9, 4), 32, 5, "batch_size 9 is too small for 5 workers; use 10 or more"),
        (dataclasses.replace(config(4, 4), batch_norm="sync"), 32, 5, "too small for 5 workers; use 5 or more"),
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


@pytest.mark.parametrize(
    ("limit", "images", "batch", "queue"),
    [
        (0.5, 1000, 64, 448),  # 7 whole batches in 500
        (0.5, 1024, 64, 512),
        (0.5, 10**6, 256, PAPER_QUEUE),
        (0.5, 10**6, 100, 65500),
        (None, 1000, 64, PAPER_QUEUE),
        (0.25, 1000, 64, 192),
        (0.5, 40, 32, 20),  # no whole batch fits: as many keys as may be
        (0.5, 3, 2, 1),
        (0.01, 40, 32, 1),
    ],
)
def test_an_automatic_queue_is_whole_batches_within_the_limit(
    limit: float | None, images: int, batch: int, queue: int
) -> None:
    auto = PretrainConfig(moco=MocoConfig(queue_limit=limit), batch_size=batch)
    assert settle_queue(auto, images).moco == MocoConfig(queue=queue, queue_limit=limit)
    if queue > 1:
        assert check_pretrain(auto, images) == []  # it never breaks its own limit


@pytest.mark.parametrize(
    ("augment", "pool"),
    [
        (NO_AUGMENT, "grid"),
        (AugmentConfig(rotate=30, flip=0.5), "grid"),
        (AugmentConfig(crop=(1.0, 1.0)), "grid"),  # crops nothing off
        (AugmentConfig(crop=(0.4, 1.0)), "gap"),
    ],
)
def test_an_automatic_pooling_is_one_pixel_where_views_are_cropped(augment: AugmentConfig, pool: str) -> None:
    found = settle(PretrainConfig(mse=MseConfig(), augment=augment), 100)
    assert found.mse is not None
    assert (found.mse.pool, found.mse.scale, found.moco.queue) == (pool, "auto", 50)
    assert settle(found, 100) == found
    for kept in ("grid", "gap"):
        explicit = PretrainConfig(mse=MseConfig(pool=kept), augment=augment)  # type: ignore[arg-type]
        assert settle(explicit, 100).mse == explicit.mse
    assert settle(PretrainConfig(augment=augment), 100).mse is None


@pytest.mark.parametrize(
    ("changes", "channels", "words"),
    [
        ({"moco": MocoConfig(queue=101, queue_limit=None, mask="none")}, 3, "own stale key becomes a negative"),
        ({"moco": MocoConfig(queue=100, queue_limit=None, mask="none")}, 3, None),
        ({"moco": MocoConfig(queue=101, queue_limit=None, mask="image")}, 3, None),
        ({"mse": MseConfig(pool="grid"), "augment": AugmentConfig(crop=(0.4, 1.0))}, 3, "mse.pool to gap"),
        ({"mse": MseConfig(pool="grid"), "augment": AugmentConfig(flip=0.5)}, 3, None),
        ({"mse": MseConfig(), "augment": AugmentConfig(crop=(0.4, 1.0))}, 3, None),
        ({}, 1, "grey, so augment.saturation, augment.hue, augment.grey do nothing"),
        ({"augment": AugmentConfig(jitter=0)}, 1, "grey, so augment.grey does nothing"),
        ({"augment": AugmentConfig(saturation=0, grey=0)}, 1, "grey, so augment.hue does nothing"),
        ({"augment": AugmentConfig(saturation=0, hue=0, grey=0)}, 1, None),
        ({}, None, None),
    ],
)
def test_what_a_user_may_not_have_meant_is_said(
    changes: dict[str, object], channels: int | None, words: str | None
) -> None:
    arm = PretrainConfig(batch_size=32, **changes)  # type: ignore[arg-type]
    warnings = check_pretrain(arm, 100, 1, channels)
    assert len(warnings) == (words is not None)
    assert words is None or words in warnings[0]
