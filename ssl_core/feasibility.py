"""Whether a configuration fits its dataset and workers: pure functions of counts, to be asked before any work."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ssl_core.config import AugmentConfig, PretrainConfig
from ssl_core.errors import ConfigError

#: Keys that the paper queues (section 4.1): the most that `auto` takes.
PAPER_QUEUE = 65536


def settle(config: PretrainConfig, n_train: int) -> PretrainConfig:
    """The configuration with what each `auto` comes to, but for a scale's, which has to be measured."""
    return settle_pool(settle_queue(config, n_train))


def settle_queue(config: PretrainConfig, n_train: int) -> PretrainConfig:
    """The configuration with `moco.queue: auto` as a number of keys, whole batches where one fits."""
    if config.moco.queue != "auto":
        return config
    limit = config.moco.queue_limit
    most = PAPER_QUEUE if limit is None else max(1, min(PAPER_QUEUE, int(limit * n_train)))
    queue = most // config.batch_size * config.batch_size or most
    return dataclasses.replace(config, moco=dataclasses.replace(config.moco, queue=queue))


def settle_pool(config: PretrainConfig) -> PretrainConfig:
    """The configuration with `mse.pool: auto` as grid, or as gap where crops tell the views' geometries apart."""
    if config.mse is None or config.mse.pool != "auto":
        return config
    pool: Literal["grid", "gap"] = "gap" if _crops(config) else "grid"
    return dataclasses.replace(config, mse=dataclasses.replace(config.mse, pool=pool))


def _crops(config: PretrainConfig) -> bool:
    return config.augment.crop is not None and config.augment.crop[0] < 1


def check_pretrain(config: PretrainConfig, n_train: int, workers: int = 1, channels: int | None = None) -> list[str]:
    """Raise ConfigError where pretraining on `n_train` images cannot be; return warnings worth showing to the user.

    `channels` are the images', where they are known: 1 is grey.
    """
    config = settle(config, n_train)
    batch, limit, queue = config.batch_size, config.moco.queue_limit, config.moco.queue
    assert not isinstance(queue, str)
    if batch > n_train:
        raise ConfigError(
            f"batch_size {batch} exceeds the {n_train} training images, so no step would run; use at most {n_train}"
        )
    least = 2 if config.batch_norm == "worker" else 1
    if batch < least * workers:
        raise ConfigError(f"batch_size {batch} is too small for {workers} workers; use {least * workers} or more")
    if config.micro_batch == "auto" and workers > 1:
        raise ConfigError(
            "micro_batch auto is for one worker: others would wait for one that is out of memory; give a number"
        )
    if isinstance(config.micro_batch, int) and config.micro_batch < least * workers:
        raise ConfigError(
            f"micro_batch {config.micro_batch} is too small for {workers} workers; use {least * workers} or more"
        )
    if limit is not None and queue > limit * n_train:
        raise ConfigError(
            f"moco.queue {queue} exceeds {limit:g} of the {n_train} training images; "
            f"use at most {int(limit * n_train)}, or set moco.queue_limit to null"
        )
    return _warnings(config, n_train, channels)


def _warnings(config: PretrainConfig, n_train: int, channels: int | None) -> list[str]:
    """What a settled configuration may do and the user may not have meant."""
    warnings, batch, queue, augment = [], config.batch_size, config.moco.queue, config.augment
    assert not isinstance(queue, str)
    if queue > n_train and config.moco.mask == "none":
        warnings.append(
            f"moco.queue {queue} holds more than an epoch of the {n_train} training images: an image's own stale key "
            f"becomes a negative; use less than {n_train}, or set moco.mask to image or group"
        )
    if config.mse is not None and config.mse.pool == "grid" and _crops(config):
        warnings.append(
            f"mse.pool grid compares places in two views that augment.crop {augment.crop} cuts out differently; "
            "set mse.pool to gap, or augment.crop to null"
        )
    if channels == 1 and (idle := _colour_operations(augment)):
        warnings.append(
            f"the images are grey, so augment.{', augment.'.join(idle)} {'does' if len(idle) == 1 else 'do'} nothing"
        )
    if config.barlow is not None and config.barlow.width > batch:
        d = config.barlow.width
        warnings.append(
            f"barlow.width {d} exceeds batch_size {batch}: however good the features are, the redundancy sum of views "
            f"that agree stays above {redundancy_floor(d, batch):,.0f} and may drown the invariance term; "
            f"a width below {batch} has no such floor"
        )
    return warnings


def _colour_operations(augment: AugmentConfig) -> list[str]:
    """What is on and changes colour alone; brightness and contrast change grey images too."""
    jittered = {"saturation": augment.saturation, "hue": augment.hue} if augment.jitter else {}
    return [name for name, strength in {**jittered, "grey": augment.grey}.items() if strength]


def redundancy_floor(width: int, batch: int) -> float:
    """Floor d^2 / (N - 1) - d of Barlow's off-diagonal sum for d features of N samples (0 if that is negative).

    A centred correlation matrix of N samples has rank N - 1 at most, so where its d diagonal entries are 1 (the two
    views agree) its squares sum to d^2 / (N - 1) or more.
    """
    return max(0.0, width**2 / (batch - 1) - width)
