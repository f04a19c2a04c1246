"""A trial: pretrain an arm under each of the search's seeds, score the encoders on validation, say so.

Each pretraining is a stage of the store, as each scoring is: what is there already is taken, what a killed trial left
half-way is gone on with, and an ablation of the same arm and seed finds both.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from analysis.config import ProbeConfig
from ssl_core.config import PretrainConfig
from ssl_core.errors import IntermocoError
from tune_jobs.plan import as_config, pretrain_stage
from tune_jobs.search.config import SchedulerConfig
from tune_jobs.search.curve import Curve, Evaluations
from tune_jobs.search.training import training
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.study import Resources
from tune_jobs.work import Report, opened, perform, typed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What all trials of a search share."""

    root: str  # of the stage store
    data: str  # key of the stage that holds the packed dataset
    resources: Resources
    demand: Demand  # of a trial, settled for the cluster
    score: ProbeConfig  # its seed is replaced by that of the pretraining
    curves: Path  # folder of the trainings' curves
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)  # decides when a trial is evaluated
    facts: Mapping[str, Any] = field(default_factory=dict)  # join the manifests (git commit, ...)


def score_stage(pretrained: Stage, score: ProbeConfig, demand: Demand) -> Stage:
    """Scoring of a pretrained encoder on validation, its labels drawn with the seed of the pretraining."""
    config = dataclasses.replace(score, seed=pretrained.config["seed"])
    return Stage(
        kind="score",
        config=as_config(config),
        inputs={"data": pretrained.inputs["data"], "pretrain": pretrained.key},
        labels=pretrained.labels,
        demand=dataclasses.replace(demand, workers=1),
    )


def run_trial(
    config: Mapping[str, Any], settings: TrialSettings, report: Report, progress: Report | None = None
) -> None:
    """Do the whole trial `config` (number, arm, seeds) in this process, or with workers where the demand has several.

    `report` receives `event: evaluation` after the epochs of the first seed that the scheduler looks at, one
    `event: end` or `event: failed` last; it may raise SystemExit to stop the trial, which then leaves no trace but its
    curve. Killed, or interrupted, a trial keeps its checkpoints, and the same call goes on from them. `progress`
    receives every epoch of every seed.
    """
    try:
        report(_Trial(config, settings, report, progress or _unheard).run())
    except Exception as error:
        if not isinstance(error, IntermocoError):
            log.exception("trial %s failed", config["number"])
        report({"event": "failed", "error": one_line(error)})


def _unheard(values: Mapping[str, Any]) -> None:
    """The progress that nobody asked for."""
    del values


def one_line(error: BaseException) -> str:
    """An error's kind and its whole message, which may tell of several workers, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


@dataclass
class _Trial:
    config: Mapping[str, Any]
    settings: TrialSettings
    report: Report
    progress: Report

    def run(self) -> dict[str, Any]:
        """Every seed, one after the other; the report of the trial's end."""
        arm = typed(PretrainConfig, self.config["arm"])
        seeds = [int(seed) for seed in self.config["seeds"]]
        return _outcome(
            {seed: self._replicate(dataclasses.replace(arm, seed=seed), first=seed == seeds[0]) for seed in seeds}
        )

    def _replicate(self, arm: PretrainConfig, *, first: bool) -> dict[str, Any]:
        """One seed's encoder: made or found, then scored."""
        settings, store = self.settings, Store(self.settings.root)
        demand = settings.demand
        labels = {"arm": f"trial {self.config['number']}", "seed": arm.seed}
        stage = pretrain_stage(arm, settings.resources, settings.data, labels)
        scored = score_stage(stage, settings.score, demand)
        evaluations = None
        if first:
            accelerators = demand.workers * (demand.accelerators or 0.0)
            curve = Curve(settings.curves / f"{scored.key}.jsonl")
            evaluations = Evaluations(
                curve,
                self.report,
                accelerators,
                typed(ProbeConfig, scored.config),
                due=lambda epoch: settings.scheduler.looks(epoch, arm.epochs),
            )
        cached = store.finished(stage)
        try:
            if cached and evaluations:
                evaluations.replay()
            perform(stage, store, demand, settings.facts, self.progress, do=training(demand, evaluations))
        except (SystemExit, Exception):  # stopped, or failed as it would again; an interrupted one goes on later
            shutil.rmtree(store.train_folder(stage), ignore_errors=True)
            raise
        shutil.rmtree(store.train_folder(stage), ignore_errors=True)
        known = evaluations.of(_kept_epoch(store.path(stage))) if evaluations else None
        do = partial(_write_known, known) if known else None
        perform(scored, store, scored.demand, settings.facts, self.progress, do=do)
        return {"stage": stage.folder, "cached": cached} | _facts(store, stage, scored)


def _write_known(known: Mapping[str, float], stage: Stage, store: Store, work: Path, *_: Any) -> dict[str, Any]:
    """A score stage whose encoder was evaluated as training left it."""
    from analysis.selection import write_scores

    write_scores(known, typed(ProbeConfig, stage.config), opened(store.find("data", stage.inputs["data"])), work)
    return {}


def _metrics(folder: Path) -> list[dict[str, float]]:
    """A finished pretraining's metrics, epoch by epoch."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _kept_epoch(folder: Path) -> int:
    """The epoch whose encoder a finished pretraining left."""
    return int(_metrics(folder)[-1]["kept_epoch"])


def _facts(store: Store, stage: Stage, scored: Stage) -> dict[str, Any]:
    """What a finished replicate came to. Seconds are of training alone, of whoever trained it."""
    from analysis.selection import read_scores

    manifest = store.manifest(stage)
    epochs = [row["epoch_seconds"] for row in _metrics(store.path(stage))]
    accelerators = manifest["accelerator_seconds"] / manifest["wall_seconds"]  # of all workers together
    return {
        **read_scores(store.path(scored)),
        "seconds": math.fsum(epochs),
        "accelerator_seconds": math.fsum(epochs) * accelerators,
        "peak_memory": manifest.get("peak_memory"),
        "epochs": len(epochs),
    }


def _outcome(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The report of a trial's end: means over its seeds, what all of them took, the peak of the largest."""

    def of(name: str) -> list[Any]:
        return [run[name] for run in runs.values()]

    peaks = of("peak_memory")
    several = len(runs) > 1
    return {
        "event": "end",
        "score": statistics.fmean(of("score")),
        "ece": statistics.fmean(of("ece")),
        "seconds": math.fsum(of("seconds")),
        "accelerator_seconds": math.fsum(of("accelerator_seconds")),
        "peak_memory": None if None in peaks else max(peaks),
        "score_sd": statistics.stdev(of("score")) if several else None,
        "ece_sd": statistics.stdev(of("ece")) if several else None,
        "scores": {seed: run["score"] for seed, run in runs.items()},
        "epochs": sum(of("epochs")),
        "stages": of("stage"),
        "cached": sum(of("cached")),
    }
