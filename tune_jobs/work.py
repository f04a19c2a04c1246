"""What each kind of stage does: read the inputs' folders, leave files in a working folder. Runs inside a Ray task."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tune_jobs.failures import explained, patiently
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store

if TYPE_CHECKING:
    import torch

    from ssl_core.config import PretrainConfig
    from ssl_core.data.dataset import Dataset
    from ssl_core.pretraining import Evaluate

Report = Callable[[Mapping[str, Any]], None]
#: Leaves a stage's files in a working folder, on a device; returns what the manifest should say besides.
Work = Callable[[Stage, Store, Path, Demand, Report, str], dict[str, Any]]
T = TypeVar("T")

#: Makes, where training runs, what evaluates the encoder on the way.
Evaluator = Callable[["PretrainConfig", "Dataset", "torch.device"], "Evaluate"]

#: What a pretraining keeps to go on from.
CHECKPOINT = "checkpoint.pt"
#: What a pretraining leaves in its stage.
LEAVES = ("encoder.pt", "metrics.jsonl")
#: Packages whose versions a manifest records.
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "pandas", "pillow", "ray", "intermoco")


@dataclass(frozen=True)
class Forward:
    """A reporter that hands metrics on and needs no checkpoints: a stage that fails starts again."""

    report: Report

    def metrics(self, values: Mapping[str, float]) -> None:
        self.report(dict(values))

    def checkpoint(self, path: Path) -> None:
        del path

    def urgent(self) -> bool:
        return False


def perform(
    stage: Stage,
    store: Store,
    demand: Demand,
    facts: Mapping[str, Any],
    report: Report,
    *,
    do: Work | None = None,
) -> None:
    """Do a stage's work and publish it, unless somebody has meanwhile.

    Args:
        demand: what the stage runs with, settled for this cluster.
        facts: joins the manifest (git commit, ...).
        report: receives progress, e.g. {"epoch": 3, "loss": 1.2}.
        do: does the work, where it is not to be done as usual; what it leaves must be the same.
    """
    if store.finished(stage):
        return
    try:
        _perform(stage, store, demand, facts, report, do or _do)
    except Exception as error:
        clear = explained(error, store.root)
        raise clear from (None if clear is error else error)


def _perform(stage: Stage, store: Store, demand: Demand, facts: Mapping[str, Any], report: Report, do: Work) -> None:
    """Do the work, again where storage refuses meanwhile, and publish it."""
    started, clock = time.time(), time.monotonic()
    device = settle_device(demand)

    def made() -> tuple[Path, dict[str, Any]]:
        work = store.begin(stage)
        try:
            return work, do(stage, store, work, demand, report, device)
        except BaseException:
            store.discard(work)
            raise

    work, own = patiently(made)
    wall = time.monotonic() - clock
    manifest = {
        **facts,
        "workers": demand.workers,
        **own,
        "environment": environment(device),
        "started": started,
        "wall_seconds": wall,
        "accelerator_seconds": wall * demand.workers * (demand.accelerators or 0.0),
    }
    try:
        store.publish(stage, work, manifest)
    except BaseException:
        store.discard(work)
        raise
    store.forget_training(stage)


def by_workers(stage: Stage, demand: Demand) -> bool:
    """Whether Ray Train's workers do the stage's work. Its own task then only waits for them."""
    return stage.kind == "pretrain" or demand.workers > 1


def _do(stage: Stage, store: Store, work: Path, demand: Demand, report: Report, device: str) -> dict[str, Any]:
    """Leave the stage's files in `work`; returns what its manifest should say besides."""
    if not by_workers(stage, demand):
        import torch

        from ssl_core.devices import PeakMemory

        memory = PeakMemory(torch.device(device))
        leave(stage, store, work, report, device)
        return {"peak_memory": memory.read()}
    if stage.kind == "pretrain":
        from tune_jobs.train import train

        return train(stage, store, store.find("data", stage.inputs["data"]), work, demand, report)

    from tune_jobs.downstream import with_workers

    return with_workers(stage, store, work, demand, report)


def leave(stage: Stage, store: Store, work: Path, report: Report, device: str) -> None:
    """Do the work of any stage but a pretraining here; its files are in `work` afterwards.

    In a torch.distributed group each worker calls this, with a `work` of its own; worker 0's gets the files.
    """
    config = dict(stage.config)
    folder = {role: _input(store, role, key, stage) for role, key in stage.inputs.items()}
    match stage.kind:
        case "score":
            from analysis.config import ProbeConfig
            from analysis.selection import score

            score(typed(ProbeConfig, config), folder["pretrain"] / "encoder.pt", opened(folder["data"]), work, device)
        case "finetune":
            from ssl_core.config import FinetuneConfig
            from ssl_core.data.dataset import Dataset
            from ssl_core.finetuning import finetune

            encoder = folder["encoder"] / "encoder.pt" if "encoder" in folder else None
            finetune(
                typed(FinetuneConfig, config),
                Dataset.open(folder["data"]),
                work,
                Forward(report),
                encoder=encoder,
                device=device,
            )
        case "features":
            from analysis.features import extract
            from ssl_core.data.dataset import Dataset

            weights = folder["pretrain"] / "encoder.pt" if "pretrain" in folder else folder["finetune"] / "model.pt"
            splits = tuple(config.pop("splits"))
            extract(weights, Dataset.open(folder["data"]), work, splits=splits, device=device, **config)
        case "probe":
            from analysis.config import ProbeConfig
            from analysis.probing import probe

            probe(typed(ProbeConfig, config), folder["features"], work)
        case "reuse":
            from analysis.config import ReuseConfig
            from analysis.reuse import compare

            fraction = config.pop("label_fraction")
            compare(typed(ReuseConfig, config), folder["before"], folder["after"], work, label_fraction=fraction)
        case "ks":
            from analysis import ks
            from analysis.config import KsConfig

            models = [
                ks.KsModel(m["arm"], m["seed"], m["mode"], m["label_fraction"], folder[m["input"]])
                for m in config.pop("models")
            ]
            ks.compare(typed(KsConfig, config), models, work)
        case other:
            raise ValueError(f"no work is known for a stage of kind {other!r}")


def _input(store: Store, role: str, key: str, stage: Stage) -> Path:
    """Folder of an input. Its kind is its role, but for the roles that name what the stage does with it."""
    match stage.kind, role:
        case "finetune", "encoder":
            kind = "pretrain"
        case "reuse", _:
            kind = "features"
        case "ks", _:
            kind = "finetune"
        case _:
            kind = role
    return store.find(kind, key)


@lru_cache(maxsize=2)
def opened(folder: Path) -> Dataset:
    """A packed dataset, opened once a process: trials follow one another in it."""
    from ssl_core.data.dataset import Dataset

    return Dataset.open(folder)


def typed(cls: type[T], config: Mapping[str, Any]) -> T:
    """A configuration dataclass back from a stage's plain config."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls).validate_python(dict(config))


def pretrain_config(stage: Stage) -> PretrainConfig:
    """A pretraining's configuration. That of its stage names the workers too, where the result depends on them."""
    from ssl_core.config import PretrainConfig

    return typed(PretrainConfig, {name: value for name, value in stage.config.items() if name != "workers"})


def settle_device(demand: Demand) -> str:
    """Use just what was declared: as many threads as CPUs, an accelerator only where one was asked for."""
    import torch

    torch.set_num_threads(max(1, int(demand.cpus)))
    return "cuda" if demand.accelerators and torch.cuda.is_available() else "cpu"


def environment(device: str) -> dict[str, Any]:
    """What a manifest says about where a stage was made."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        **versions(),
    }


@cache
def versions() -> Mapping[str, str]:
    """Of the packages installed, read once a process: it takes longer than the shortest stages."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return found
