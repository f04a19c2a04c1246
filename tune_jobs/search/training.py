"""How a trial pretrains: in its own process, or with Ray Train's workers where it has several.

Either way a training that was killed goes on from its checkpoint, and its evaluations are in its curve before anybody
hears of them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_core.config import PretrainConfig
from ssl_core.errors import CheckpointError
from tune_jobs.search.curve import Evaluations
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import LEAVES, Report, Work, opened, typed

if TYPE_CHECKING:
    from ssl_core.encoder import Encoder
    from ssl_core.pretraining import Evaluate

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"


def training(demand: Demand, evaluations: Evaluations | None) -> Work:
    """How the trial trains: here, or with Ray Train's workers where there are several."""
    return partial(_train_here if demand.workers == 1 else _train_with_workers, evaluations=evaluations)


def _train_with_workers(
    stage: Stage,
    store: Store,
    work: Path,
    demand: Demand,
    progress: Report,
    device: str,
    *,
    evaluations: Evaluations | None,
) -> dict[str, Any]:
    """Pretrain with Ray Train's workers, from their last checkpoint; what the manifest should say.

    Of the first seed each epoch's metrics, worker 0's evaluation among them, come back here.
    """
    from tune_jobs.search.workers import pretrain_with_workers

    del device  # each worker has its own
    data = store.find("data", stage.inputs["data"])
    return pretrain_with_workers(stage, store, data, work, demand, progress, evaluations)


def _train_here(
    stage: Stage,
    store: Store,
    work: Path,
    demand: Demand,
    progress: Report,
    device: str,
    *,
    evaluations: Evaluations | None,
) -> dict[str, Any]:
    """Pretrain in this process, from the checkpoint that a killed trial left; what the manifest should say."""
    from analysis.selection import evaluation
    from ssl_core import devices
    from ssl_core.pretraining import pretrain

    config, dataset = typed(PretrainConfig, stage.config), opened(store.find("data", stage.inputs["data"]))
    target = devices.choose(device)
    folder = store.train_folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    resumed, steps = _resumed(folder / CHECKPOINT)
    evaluate: Evaluate | None = None
    if evaluations:
        measure, due = evaluation(dataset, evaluations.score, target, normalise=config.normalise), evaluations.due

        def evaluate(encoder: Encoder, epoch: int) -> Mapping[str, float]:
            return measure(encoder, epoch) if due(epoch) else {}

        evaluations.replay(resumed)
    memory = devices.PeakMemory(target)
    pretrain(
        config,
        dataset,
        folder,
        _Reporter(progress, evaluations),
        checkpoint_seconds=demand.checkpoint_seconds,
        device=target,
        evaluate=evaluate,
    )
    for leaf in LEAVES:
        shutil.copy2(folder / leaf, work / leaf)  # moved, they would be lost to a kill before they are published
    return {"resumed_epoch": resumed, "resumed_step": steps, "peak_memory": memory.read()}


@dataclass(frozen=True)
class _Reporter:
    """Hands an epoch's metrics to whoever watches, and its evaluation to the search."""

    progress: Report
    evaluations: Evaluations | None

    def metrics(self, values: Mapping[str, float]) -> None:
        self.progress(dict(values))
        if self.evaluations:
            self.evaluations.add(values)

    def checkpoint(self, path: Path) -> None:
        del path  # it is where the next call looks for it

    def urgent(self) -> bool:
        return False


def _resumed(path: Path) -> tuple[int, int]:
    """Whole epochs and steps in the checkpoint, 0 where there is none; a damaged one is removed to start anew."""
    from ssl_core.resume import position

    try:
        return position(path)
    except CheckpointError as error:
        log.warning("%s; starting anew", error)
        path.unlink()
        return 0, 0
