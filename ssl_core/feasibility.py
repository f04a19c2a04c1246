"""Whether a configuration fits its dataset and workers: pure functions of counts, to be asked before any work."""

from __future__ import annotations

import dataclasses

from ssl_core.config import PretrainConfig
from ssl_core.errors import ConfigError

#: Keys that the paper queues (section 4.1): the most that `auto` takes.
PAPER_QUEUE = 65536


def settle_queue(config: PretrainConfig, n_train: int) -> PretrainConfig:
    """The configuration with `moco.queue: auto` as a number of keys, whole batches where one fits."""
    if config.moco.queue != "auto":
        return config
    limit = config.moco.queue_limit
    most = PAPER_QUEUE if limit is None else max(1, min(PAPER_QUEUE, int(limit * n_train)))
    queue = most // config.batch_size * config.batch_size or most
    return dataclasses.replace(config, moco=dataclasses.replace(config.moco, queue=queue))


def check_pretrain(config: PretrainConfig, n_train: int, workers: int = 1) -> list[str]:
    """Raise ConfigError where pretraining on `n_train` images cannot be; return warnings worth showing to the user."""
    config = settle_queue(config, n_train)
    batch, limit, queue = config.batch_size, config.moco.queue_limit, config.moco.queue
    assert not isinstance(queue, str)
    if batch > n_train:
        raise ConfigError(
            f"batch_size {batch} exceeds the {n_train} training images, so no step would run; use at most {n_train}"
        )
    if batch % workers or batch // workers < 2:
        raise ConfigError(
            f"batch_size {batch} cannot be shared by {workers} workers; "
            f"use a multiple of {workers}, {2 * workers} or more"
        )
    if limit is not None and queue > limit * n_train:
        raise ConfigError(
            f"moco.queue {queue} exceeds {limit:g} of the {n_train} training images; "
            f"use at most {int(limit * n_train)}, or set moco.queue_limit to null"
        )
    warnings = []
    if config.barlow is not None and config.barlow.width > batch:
        d = config.barlow.width
        warnings.append(
            f"barlow.width {d} exceeds batch_size {batch}: however good the features are, the redundancy sum of views "
            f"that agree stays above {redundancy_floor(d, batch):,.0f} and may drown the invariance term; "
            f"a width below {batch} has no such floor"
        )
    return warnings


def redundancy_floor(width: int, batch: int) -> float:
    """Floor d^2 / (N - 1) - d of Barlow's off-diagonal sum for d features of N samples (0 if that is negative).

    A centred correlation matrix of N samples has rank N - 1 at most, so where its d diagonal entries are 1 (the two
    views agree) its squares sum to d^2 / (N - 1) or more.
    """
    return max(0.0, width**2 / (batch - 1) - width)
