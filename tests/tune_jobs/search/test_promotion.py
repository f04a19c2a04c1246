"""What becomes of a finished search: arms of the study, tables for the report, lines for the terminal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import finished_search as finished
import pytest

from analysis.search import search_cost
from ssl_core.errors import ConfigError
from tune_jobs.plan import Plan
from tune_jobs.search.findings import at_a_glance, cost, search_findings
from tune_jobs.search.ledger import Ledger
from tune_jobs.search.promotion import promoted
from tune_jobs.store import Store

World = tuple[Plan, Store, Ledger]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    planned, store, ledger = finished.begun(finished.study(), tmp_path_factory.mktemp("searched"))
    finished.run(ledger)
    return planned, store, ledger


def test_an_unfinished_search_adds_no_arm_and_none_at_all_says_nothing(tmp_path: Path) -> None:
    asked = finished.study()
    planned, store, ledger = finished.begun(asked, tmp_path)
    finished.run(ledger, trials=3)
    found = promoted(asked, planned, store)
    assert (found.study, found.plan, found.arms) == (asked, planned, {})
    assert search_findings(found) is not None
    elsewhere = promoted(asked, planned, Store(tmp_path / "elsewhere"))
    assert search_findings(elsewhere) is cost(elsewhere) is None


def test_the_best_trials_and_the_papers_settings_are_arms_with_the_studys_seeds(world: World) -> None:
    planned, store, ledger = world
    asked = finished.study()
    found = promoted(asked, planned, store)
    best = [trial.number for trial in ledger.best(2)]
    # the second best is what the paper does without losses: the study's own arm `plain`, which is not there twice
    assert (best[1], found.arms) == (0, {best[0]: f"trial_{best[0]}", 0: "plain"})
    # and what the winner is without its losses tells whether it owes its place to them
    assert found.controls == {best[0]: f"trial_{best[0]}_no_losses"}
    assert list(found.study.arms) == ["plain", "supervised", "paper_mse", f"trial_{best[0]}", *found.controls.values()]
    control, arm = (found.study.arms[f"trial_{best[0]}{end}"] for end in ("_no_losses", ""))
    assert arm is not None
    assert arm.mse is not None
    assert control == dataclasses.replace(arm, mse=None)
    assert promoted(finished.study(controls=False), planned, store).controls == {}
    assert found.starts == {"paper_moco": "plain", "paper_mse": "paper_mse"}
    mse = found.study.arms["paper_mse"]
    assert mse is not None
    assert mse.mse is not None
    assert (mse.mse.scale, mse.mse.blocks) == (0.25, (3, 4))
    winner = next(trial for trial in ledger.best(1))
    stages = [s for s in found.plan.of_kind("pretrain") if s.labels["arm"] == found.arms[winner.number]]
    assert [s.config["seed"] for s in stages] == [0, 1]
    assert all(s.config["learning_rate"] == winner.params["learning_rate"] for s in stages)
    # what the study had before is planned as it was
    assert {s.key for s in planned.stages if s.kind != "ks"} <= {s.key for s in found.plan.stages}


def test_a_search_of_other_settings_is_refused_but_one_that_goes_on_is_not(world: World) -> None:
    planned, store, _ = world
    assert promoted(finished.study(trials=50), planned, store).arms == {}
    assert promoted(finished.study(sampler={"kind": "tpe"}, promote=1), planned, store).arms
    turned = dict(reversed(finished.SPACE.items()))
    for change in ({"space": turned}, {"score": {"fraction": 0.5}}, {"seeds": [7]}):
        with pytest.raises(ConfigError, match=r"holds another search.*differs in search\."):
            promoted(finished.study(**change), planned, store)


def test_the_reports_tables_hold_each_trial_once_and_what_pruning_spared(world: World) -> None:
    planned, store, ledger = world
    found = search_findings(promoted(finished.study(), planned, store))
    assert found is not None
    table = found.trials.set_index("trial")
    records = {t.number: t for t in ledger.trials()}
    assert sorted(table.index) == sorted(records)
    assert set(table["state"]) == {"complete", "pruned", "failed"}
    for number, record in records.items():
        row = table.loc[number]
        assert row["params_loss"] == record.params["loss"]
        if record.state == "complete":
            assert (row["score"], row["saved_seconds"], row["epochs"]) == (record.values["score"], 0, 4)
        if record.state == "pruned":  # two seconds an epoch, so many of four epochs left
            assert row["saved_seconds"] == pytest.approx(2.0 * (4 - row["epochs"]))
    assert table.loc[ledger.best(1)[0].number, "arm"] == f"trial_{ledger.best(1)[0].number}"
    assert list(found.curves.columns) == ["trial", "epoch", "score"]
    assert found.logs == {"mse.scale", "learning_rate"}
    spent = cost(promoted(finished.study(), planned, store))
    assert spent == search_cost(found.trials, found.promoted)
    assert (spent.arms, spent.trials) == ((f"trial_{ledger.best(1)[0].number}",), len(records))
    assert spent.seconds == sum(r.attrs.get("seconds", 0) for r in records.values()) > 0


def test_the_terminal_shows_the_best_first_and_what_was_tried_first(world: World) -> None:
    _, _, ledger = world
    search = finished.study().search
    assert search is not None
    header, rows = at_a_glance(ledger, search, 2)
    assert header == ["", "start", "state", "score", "parameters"]
    assert [row[0] for row in rows[:2]] == [f"trial {t.number}" for t in ledger.best(2)]
    assert {"paper_moco", "paper_mse"} <= {row[1] for row in rows}


def test_promoting_none_leaves_the_study_as_it_is(world: World) -> None:
    planned, store, _ = world
    asked = finished.study(promote=0)
    found = promoted(asked, planned, store)
    assert found.study == asked
    assert dataclasses.replace(found, ledger=None).arms == {}
