"""What a pretraining's checkpoint says before it is gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_core import checkpoint, distributed
from ssl_core.config import PretrainConfig
from ssl_core.errors import CheckpointError


def position(path: Path) -> tuple[int, int]:
    """(whole epochs, steps in all) that the checkpoint at `path` holds; (0, 0) where there is no file.

    Raises CheckpointError if it is damaged, or of an earlier version.
    """
    if not path.exists():
        return 0, 0
    payload = read(path)
    return payload["epoch"], payload["step"]


def read(path: Path, expect: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `save` wrote, maybe under the configuration that is expected."""
    payload = checkpoint.load(path, expect=expect)
    if "step" not in payload:
        raise CheckpointError(f"{path} is of an earlier version, which saved at epochs only; delete it to start anew")
    return payload


def other_workers(path: Path, before: int, config: PretrainConfig) -> str:
    """What it changes that another number of workers than wrote `path` goes on from it."""
    now, size = distributed.world(), config.batch_size
    text = f"{path} was written with workers = {before}, this run has {now}"
    if config.batch_norm == "sync":
        return f"{text}: batches, losses and queue stay as they are; results differ by rounding alone"
    return (
        f"{text}: batch norm now sees about {size // now} samples of a batch of {size} at once, not {size // before}, "
        "and starts from the mean of the workers' running statistics; under batch_norm sync results would not depend "
        "on the number of workers"
    )
