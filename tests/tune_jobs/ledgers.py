"""A space small enough to reason about, a search over it, and trainings that cost nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import Engine

from analysis.config import ProbeConfig
from ssl_core.config import BarlowConfig, MseConfig, PretrainConfig
from tune_jobs.search.config import SamplerConfig, SchedulerConfig, SearchConfig
from tune_jobs.search.ledger import Ledger

EPOCHS = 9
EVALUATED = (1, 3, EPOCHS)
_BASE = PretrainConfig(epochs=EPOCHS)
_MSE, _BARLOW = MseConfig(scale=0.25), BarlowConfig(scale=5e-5)
BASES = {
    "none": _BASE,
    "mse": replace(_BASE, mse=_MSE),
    "barlow": replace(_BASE, barlow=_BARLOW),
    "both": replace(_BASE, mse=_MSE, barlow=_BARLOW),
}
BLOCKS = (1, 2, 3, 4)


class Toy:
    """Loss, blocks, and two settings that only some losses have. All blocks off is the arm without a loss."""

    def __init__(self, *, rates: bool = True, losses: tuple[str, ...] = tuple(BASES)) -> None:
        self.raw: dict[str, Any] = {}
        self.rates, self.losses = rates, losses  # no rates: nothing is continuous

    def suggest(self, trial: Any) -> dict[str, Any]:
        values = {"loss": trial.suggest_categorical("loss", self.losses)}
        if values["loss"] != "none":
            values |= {f"block_{b}": trial.suggest_categorical(f"block_{b}", [False, True]) for b in BLOCKS}
        on = any(values.get(f"block_{b}") for b in BLOCKS)
        if on and values["loss"] in ("mse", "both") and self.rates:
            values["mse.scale"] = trial.suggest_float("mse.scale", 0.01, 10, log=True)
        if on and values["loss"] in ("barlow", "both"):
            values["barlow.width"] = trial.suggest_int("barlow.width", 64, 128, step=64)
        if self.rates:
            values["learning_rate"] = trial.suggest_float("learning_rate", 0.01, 1, log=True)
            values["moco.temperature"] = trial.suggest_float("moco.temperature", 0.05, 0.5)
        return values

    def arm(self, values: Mapping[str, Any], bases: Mapping[str, PretrainConfig]) -> PretrainConfig:
        blocks = tuple(b for b in BLOCKS if values.get(f"block_{b}"))
        arm = bases[values["loss"] if blocks else "none"]
        if arm.mse:
            arm = replace(arm, mse=replace(arm.mse, blocks=blocks, scale=values.get("mse.scale", 0.25)))
        if arm.barlow:
            arm = replace(arm, barlow=replace(arm.barlow, blocks=blocks, width=values["barlow.width"]))
        moco = replace(arm.moco, temperature=values.get("moco.temperature", 0.07))
        return replace(arm, moco=moco, learning_rate=values.get("learning_rate", 0.03))

    def paper_starts(self, _: Any) -> list[tuple[str, dict[str, Any], list[str]]]:
        return [("paper_moco", self.complete({}, _), []), ("paper_mse", self.complete({"loss": "mse"}, _), [])]

    def complete(self, given: Mapping[str, Any], _: Any) -> dict[str, Any]:
        values: dict[str, Any] = {"loss": "none", **given}
        if values["loss"] != "none":
            values = {f"block_{b}": True for b in BLOCKS} | values
        if values["loss"] in ("mse", "both") and self.rates:
            values.setdefault("mse.scale", 0.25)
        if values["loss"] in ("barlow", "both"):
            values.setdefault("barlow.width", 128)
        return {**({"learning_rate": 0.03, "moco.temperature": 0.07} if self.rates else {}), **values}


def search(
    *, sampler: str = "random", scheduler: str = "asha", on: Any = "epochs", space: Any = None, **settings: Any
) -> SearchConfig:
    defaults: dict[str, Any] = {"objectives": ("score",), "seeds": (100,), "trials": 12}
    return SearchConfig(
        space=space or Toy(),
        bases=BASES,
        score=ProbeConfig(blocks=(4,)),
        sampler=SamplerConfig(kind=sampler, startup=4, population=3),  # type: ignore[arg-type]
        scheduler=SchedulerConfig(kind=scheduler, on=on),  # type: ignore[arg-type]
        **{**defaults, **settings},
    )


@cache
def _tables() -> bytes:
    """An empty storage: to make one takes half a second."""
    with TemporaryDirectory() as folder:
        RDBStorage(f"sqlite:///{folder}/optuna.db").engine.dispose()
        return (Path(folder) / "optuna.db").read_bytes()


def opened(search: SearchConfig, folder: Path, **place: Any) -> Ledger:
    folder.mkdir(exist_ok=True)
    if not (folder / "optuna.db").exists():
        (folder / "optuna.db").write_bytes(_tables())
    return Ledger.open(search, **{"url": None, "folder": folder, "name": "toy", "identity": {"data": "1"}, **place})


def planted(params: Mapping[str, Any], epoch: int = EPOCHS) -> float:
    """Blocks 2 and 3 help, more so together; the best rate is 0.1. Approached over the epochs."""
    on = {b: bool(params.get(f"block_{b}")) and params["loss"] != "none" for b in BLOCKS}
    effect = 0.3 * on[2] + 0.3 * on[3] + 0.4 * (on[2] and on[3]) - 0.2 * on[1] - 0.1 * on[4]
    return (effect - 0.1 * abs(math.log(params.get("learning_rate", 0.1) / 0.1))) * (1 - 0.5 / epoch)


def outcome(params: Mapping[str, Any], score: float) -> dict[str, Any]:
    return {
        "event": "end",
        "score": score,
        "ece": 0.1,
        "seconds": 9.0 - 3 * params.get("moco.temperature", 0),
        "accelerator_seconds": 0.0,
        "peak_memory": 1000,
        "score_sd": 0.01,
        "scores": {100: score},
        "epochs": EPOCHS,
        "stages": ["a"],
        "cached": 0,
    }


def train(ledger: Ledger, *, trials: int = 10**6, curve: Callable[..., float] = planted) -> list[int]:
    """Train until the ledger has nothing more, one trial at a time; the numbers that were handed out."""
    numbers: list[int] = []
    while len(numbers) < trials and (trial := ledger.next()):
        numbers.append(trial.number)
        for epoch in EVALUATED:
            if ledger.report(trial.number, epoch, curve(trial.params, epoch), {"epochs": epoch}):
                break
        else:
            ledger.complete(trial.number, outcome(trial.params, curve(trial.params, EPOCHS)))
    return numbers


def history(ledger: Ledger) -> list[tuple[Any, ...]]:
    """What must not depend on interruptions."""
    return [(t.number, t.state, t.params, t.values, t.curve, t.start, t.duplicate_of) for t in ledger.trials()]


@event.listens_for(Engine, "connect")
def _no_sync(connection: Any, _: Any) -> None:
    """Tests end processes, not machines: SQLite need not wait for the disk."""
    if type(connection).__module__ == "sqlite3":
        connection.execute("PRAGMA synchronous = OFF")
