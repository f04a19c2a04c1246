"""Pretraining by one worker, in the process that was given the stage.

Ray Train would start five more processes for it, seconds each on a small machine, and what they do for it is done here
with less: a checkpoint in the stage's training folder, a note of each attempt. Ray's task is tried again where its
process is lost. It hears of no notice that its node is about to be taken away, and must not run twice at once, as it
may where the network between nodes is cut.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssl_core.errors import CheckpointError
from tune_jobs.attempts import Attempts, Pulse
from tune_jobs.failures import one_line
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import CHECKPOINT, LEAVES, Evaluator, Report, opened, pretrain_config

log = logging.getLogger(__name__)


def pretrain_alone(
    stage: Stage,
    store: Store,
    work: Path,
    demand: Demand,
    report: Report,
    device: str,
    *,
    evaluator: Evaluator | None = None,
    resumed: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Pretrain here, from the last checkpoint that an attempt before left; encoder and metrics are in `work` then.

    `resumed` is called with the whole epochs in that checkpoint, then `report` with each epoch's metrics, those of the
    evaluation among them. Returns what the manifest should say, as `tune_jobs.train.train` does.
    """
    from ssl_core import devices
    from ssl_core.pretraining import pretrain

    config, target, folder = pretrain_config(stage), devices.choose(device), store.train_folder(stage)
    attempts = Attempts(folder)
    folder.mkdir(parents=True, exist_ok=True)
    memory = devices.PeakMemory(target)
    dataset = opened(store.find("data", stage.inputs["data"]))
    epochs, steps = _take_up(folder)
    path = folder / CHECKPOINT
    pulse = Pulse(attempts.begin(path.stat().st_mtime if path.exists() else None, workers=1))
    try:
        if resumed:
            resumed(epochs)
        pretrain(
            config,
            dataset,
            folder,
            _Reporter(report, pulse),
            checkpoint_seconds=demand.checkpoint_seconds,
            device=target,
            evaluate=evaluator(config, dataset, target) if evaluator else None,
        )
        for leaf in LEAVES:
            shutil.copy2(folder / leaf, work / leaf)  # moved, they would be lost to a kill before they are published
    except Exception as error:
        attempts.ended(one_line(error))
        raise
    return {"resumed_epoch": epochs, "resumed_step": steps, "peak_memory": memory.read(), **attempts.facts()}


class _Reporter:
    """Hands an epoch's metrics on, and shows that the attempt is alive."""

    def __init__(self, report: Report, pulse: Pulse) -> None:
        self._report, self._pulse = report, pulse

    def metrics(self, values: Mapping[str, float]) -> None:
        self._report(dict(values))

    def checkpoint(self, path: Path) -> None:
        del path  # it is where the next attempt looks for it

    def urgent(self) -> bool:
        self._pulse.beat()
        return False


def _take_up(folder: Path) -> tuple[int, int]:
    """Put the checkpoint that got furthest where training looks for it; its whole epochs and steps, 0 without one.

    Ray Train's are there where the same stage was begun on a cluster. Damaged ones are passed over, for one less far.
    """
    from ssl_core.resume import position

    own, found = folder / CHECKPOINT, {}
    for path in sorted([own, *folder.glob(f"checkpoint_*/{CHECKPOINT}")]):
        try:
            found[path] = position(path)
        except CheckpointError as error:
            log.warning("%s; passing it over", error)
            if path == own:
                own.unlink()
    if not found:
        return 0, 0
    furthest = max(found, key=lambda path: (found[path], path == own))
    if furthest != own:
        taken = own.with_suffix(".taken")
        shutil.copy2(furthest, taken)
        taken.replace(own)
    return found[furthest]
