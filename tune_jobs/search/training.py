"""How a trial pretrains: in its own process, or with Ray Train's workers where it has several.

Either way a training that was killed goes on from its checkpoint, and its evaluations are in its curve before anybody
hears of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_jobs.search.curve import Evaluations
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import Report, Work

if TYPE_CHECKING:
    import torch

    from analysis.config import ProbeConfig
    from ssl_core.config import PretrainConfig
    from ssl_core.data.dataset import Dataset
    from ssl_core.encoder import Encoder
    from ssl_core.pretraining import Evaluate


def training(demand: Demand, evaluations: Evaluations | None) -> Work:
    """How the trial trains: here, or with Ray Train's workers where there are several."""
    evaluator = ScoreWhenDue(evaluations.score, evaluations.due) if evaluations else None
    do = _train_here if demand.workers == 1 else _train_with_workers
    return partial(do, evaluations=evaluations, evaluator=evaluator)


def _train_with_workers(
    stage: Stage,
    store: Store,
    work: Path,
    demand: Demand,
    progress: Report,
    device: str,
    *,
    evaluations: Evaluations | None,
    evaluator: ScoreWhenDue | None,
) -> dict[str, Any]:
    """Pretrain with Ray Train's workers, from their last checkpoint; what the manifest should say.

    Of the first seed each epoch's metrics, worker 0's evaluation among them, come back here.
    """
    from tune_jobs.search.workers import pretrain_with_workers

    del device  # each worker has its own
    data = store.find("data", stage.inputs["data"])
    return pretrain_with_workers(stage, store, data, work, demand, progress, evaluations, evaluator)


def _train_here(
    stage: Stage,
    store: Store,
    work: Path,
    demand: Demand,
    progress: Report,
    device: str,
    *,
    evaluations: Evaluations | None,
    evaluator: ScoreWhenDue | None,
) -> dict[str, Any]:
    """Pretrain in this process, from the checkpoint that a killed trial left; what the manifest should say."""
    from tune_jobs.alone import pretrain_alone

    def report(values: Mapping[str, Any]) -> None:
        progress(values)
        if evaluations:
            evaluations.add(values)

    resumed = evaluations.replay if evaluations else None
    return pretrain_alone(stage, store, work, demand, report, device, evaluator=evaluator, resumed=resumed)


@dataclass(frozen=True)
class ScoreWhenDue:
    """Scores the encoder on validation after the epochs that are due. Made in the trial, used where it trains."""

    score: ProbeConfig
    due: Callable[[int], bool]

    def __call__(self, config: PretrainConfig, dataset: Dataset, device: torch.device) -> Evaluate:
        from analysis.selection import evaluation

        measure = evaluation(dataset, self.score, device, normalise=config.normalise)

        def evaluate(encoder: Encoder, epoch: int) -> Mapping[str, float]:
            return measure(encoder, epoch) if self.due(epoch) else {}

        return evaluate
