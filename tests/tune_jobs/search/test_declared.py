"""What a study says of its search: read, checked, written out again."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from ssl_core.errors import ConfigError
from tune_jobs.loading import load
from tune_jobs.overview import overview
from tune_jobs.resolution import resolve
from tune_jobs.search.config import SchedulerConfig

SEARCH: dict[str, Any] = {
    "objectives": ["score"],
    "score": {"fraction": 0.06},
    "space": {"loss": ["none", "mse"], "mse.scale": {"low": 0.1, "high": 1.0, "log": True}},
}


def raw(**search: Any) -> dict[str, Any]:
    return {
        "study": "s",
        "dataset": {"source": "digits"},
        "seeds": [0, 3],
        "pretrain": {"epochs": 2, "moco": {"queue": 256}},
        "mse": {"pool": "gap"},
        "probe": {"epochs": 7, "blocks": [1, 2]},
        "arms": {"moco": {}},
        "search": {**SEARCH, **search},
    }


def test_a_trial_starts_from_the_studys_settings_and_is_probed_as_the_study_probes() -> None:
    search = resolve(raw()).search
    assert search is not None
    assert {loss: (b.mse is not None, b.barlow is not None) for loss, b in search.bases.items()} == {
        "none": (False, False), "mse": (True, False), "barlow": (False, True), "both": (True, True),
    }  # fmt: skip
    mse = search.bases["both"].mse
    assert mse is not None
    assert (search.bases["mse"].epochs, search.bases["mse"].moco.queue, mse.pool) == (2, 256, "gap")
    assert (search.score.epochs, search.score.blocks, search.score.fraction) == (7, (4,), 0.06)


def test_the_seeds_of_trials_are_none_of_the_studys() -> None:
    search = resolve(raw()).search
    assert search is not None
    assert search.seeds == (4,)
    with pytest.raises(ConfigError, match=r"search\.seeds: \[3\] are seeds of the study too"):
        resolve(raw(seeds=[9, 3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": None}, r"search\.objectives: is missing; every search needs it, e\.g\. `objectives"),
        ({"objectives": []}, r"search\.objectives: is missing"),
        ({"space": {}}, r"search\.space: is missing"),
        ({"score": {}}, r"search\.score: is missing"),
        ({"score": {"epochs": 3}}, r"search\.score\.fraction: name the label fraction"),
        ({"score": {"fraction": 2}}, r"search\.score: .*label fraction 2"),
        ({"score": {"fraction": 0.1, "blocks": [1, 2]}}, r"score\.blocks \[1, 2\]: name the one block"),
        ({"score": {"fraction": 0.1, "metric": "f1"}}, r"search\.score\.metric: is set by the study itself"),
        ({"objectives": ["scores"]}, r"search\.objectives.*scores"),
        ({"objectives": ["score", "score"]}, r"one is named twice"),
        ({"trials": 0}, r"trials 0 must be at least 1"),
        ({"concurrent": 0}, r"concurrent 0 must be at least 1"),
        ({"sampler": {"kind": "tpee"}}, r"search\.sampler\.kind"),
        ({"scheduler": {"reduction": 1}}, r"reduction 1 must be at least 2"),
        ({"scheduller": {}}, r"search\.scheduller: no such key.*scheduler"),
        ({"seeds": [7, 7]}, r"seeds \[7, 7\] must be distinct"),
        ({"space": {"mse.scale": {"low": 1, "high": 0.1}, "loss": ["mse"]}}, r"search\.space\.mse\.scale"),
        ({"warm_starts": [{"mse.skale": 1}]}, r"mse\.skale"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(raw(**change))


def test_the_resolved_study_reads_back_as_itself() -> None:
    for study in (resolve(raw(warm_starts=[{"loss": "mse", "mse.scale": 0.5}])), load("digits_search")):
        assert resolve(yaml.safe_load(study.to_yaml())) == study
    authors = resolve({**raw(), "protocol": "authors"})
    search = authors.search
    assert search is not None
    assert not search.bases["none"].encoder.zero_init_residual
    assert search.bases["mse"].encoder.zero_init_residual
    assert resolve(yaml.safe_load(authors.to_yaml())) == authors


def test_a_dry_run_tells_the_search_and_hides_a_password() -> None:
    told = yaml.safe_load(overview(resolve(raw(storage="postgresql://me:secret@host/db"))))["search"]
    assert told["space"] == SEARCH["space"]
    assert (told["sampler"]["kind"], told["score"]["fraction"]) == ("tpe", 0.06)
    assert told["storage"] == "postgresql://me:***@host/db"
    assert told["trials start from"]["mse"]["pool"] == "gap"
    assert "secret" not in overview(resolve(raw(storage="postgresql://me:secret@host/db")))


@pytest.mark.parametrize(
    ("scheduler", "epochs"),
    [
        (SchedulerConfig(), [1, 3, 9, 12]),
        (SchedulerConfig(first=2, reduction=2), [2, 4, 8, 12]),
        (SchedulerConfig(kind="hyperband", first=20), [12]),
        (SchedulerConfig(on="seconds"), list(range(1, 13))),
        (SchedulerConfig(kind="median"), list(range(1, 13))),
        (SchedulerConfig(kind="none"), list(range(1, 13))),
    ],
)
def test_a_trial_is_evaluated_where_it_may_be_stopped_and_at_its_end(
    scheduler: SchedulerConfig, epochs: list[int]
) -> None:
    assert [epoch for epoch in range(1, 13) if scheduler.looks(epoch, 12)] == epochs
