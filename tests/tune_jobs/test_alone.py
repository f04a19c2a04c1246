"""Pretraining in the stage's own process: what an attempt that was cut short leaves for the next one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from studies import miniature

from ssl_core.resume import position
from tune_jobs import attempts
from tune_jobs.alone import pretrain_alone
from tune_jobs.attempts import UNKNOWN
from tune_jobs.plan import pretrain_stage
from tune_jobs.prepare import packed, planned
from tune_jobs.stage import Stage
from tune_jobs.store import Store


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Store, Stage]:
    study = miniature(resources={"checkpoint_seconds": 0}, pretrain={"epochs": 4})
    store, config = Store(tmp_path), study.arms["moco"]
    (data,) = planned(study, store).of_kind("data")
    packed(study.dataset, store, data, {})
    assert config is not None
    return store, pretrain_stage(config, study.resources, data.key, {"arm": "moco"})


def do(store: Store, stage: Stage, *, stop_after: int = 0) -> dict[str, Any]:
    """Train to the end, or until an epoch's metrics come, as if the process were stopped there."""

    def report(values: Mapping[str, Any]) -> None:
        if values["epoch"] == stop_after:
            raise KeyboardInterrupt

    return pretrain_alone(stage, store, store.begin(stage), stage.demand, report, "cpu")


def test_an_attempt_is_alive_while_it_trains_and_the_next_says_from_when_it_goes_on(
    begun: tuple[Store, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stage = begun
    monkeypatch.setattr(attempts, "ALIVE_SECONDS", 0.0)
    folder = store.train_folder(stage)
    with pytest.raises(KeyboardInterrupt):
        do(store, stage, stop_after=2)
    (first,) = told(folder)
    taken = (folder / "checkpoint.pt").stat().st_mtime
    assert first["started"] < first["alive"] <= taken + 60
    assert first["why"] is None
    assert first["resumed"] is None
    steps = position(folder / "checkpoint.pt")

    seen: list[int] = []
    facts = pretrain_alone(stage, store, store.begin(stage), stage.demand, lambda _: None, "cpu", resumed=seen.append)
    first, second = told(folder)
    assert second["resumed"] == taken
    assert (facts["resumed_epoch"], facts["resumed_step"]) == steps
    assert seen == [steps[0]]
    assert steps[1] > 0
    assert [restart["why"] for restart in facts["restarts"]] == [UNKNOWN]
    assert facts["recomputed_seconds"] == pytest.approx(max(0.0, first["alive"] - taken), abs=0.06)
    assert facts["recomputed_seconds"] < first["alive"] - first["started"]


def test_it_goes_on_from_the_checkpoint_that_got_furthest_and_passes_damaged_ones_over(
    begun: tuple[Store, Stage],
) -> None:
    store, stage = begun
    folder = store.train_folder(stage)
    for epoch in (1, 2, 3):  # as Ray Train leaves them
        with pytest.raises(KeyboardInterrupt):
            do(store, stage, stop_after=epoch + 1)
        kept = folder / f"checkpoint_{epoch}" / "checkpoint.pt"
        kept.parent.mkdir()
        (folder / "checkpoint.pt").rename(kept)
    at = [position(folder / f"checkpoint_{epoch}" / "checkpoint.pt") for epoch in (1, 2, 3)]
    assert at[0] < at[1] < at[2]
    (folder / "checkpoint_3" / "checkpoint.pt").write_bytes(b"half a checkpoint")
    (folder / "checkpoint.pt").write_bytes(b"half of another")
    facts = do(store, stage)
    assert (facts["resumed_epoch"], facts["resumed_step"]) == at[1]


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "attempts").glob("*.json"))]
