"""`intermoco best` on a store of finished stages, through the command line; the predictions are files of real shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from studies import few_digits, miniature, raw

from ssl_core.errors import InputError
from tune_jobs import cli
from tune_jobs.best import decide
from tune_jobs.loading import load
from tune_jobs.plan import Plan, plan
from tune_jobs.prepare import packed, planned
from tune_jobs.search.promotion import Promoted
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.work import perform

#: Share of the validation images that an arm's models call wrong, before the seed's part.
WRONG = {"moco": 0.30, "moco_mse": 0.10, "supervised": 0.60, "trial_7": 0.0}


def predictions(wrong: float) -> dict[str, np.ndarray]:
    """Of 200 images in ten classes; the test arrays are objects, which nobody may open."""
    labels = np.arange(200) % 10
    called = np.where(np.arange(200) < 200 * wrong, (labels + 1) % 10, labels)
    ids = np.array([f"image{i}" for i in range(200)])
    val = {"ids": ids, "groups": ids, "labels": labels, "probabilities": 0.05 + 0.5 * np.eye(10)[called]}
    return {f"val_{k}": v for k, v in val.items()} | {f"test_{k}": np.array([{}], dtype=object) for k in val}


def finish(stage: Stage, store: Store, accelerated: bool) -> None:
    work = store.begin(stage)
    wall = 60.0 if stage.kind == "pretrain" else 10.0
    if stage.kind == "finetune":
        wrong = WRONG[stage.labels["arm"]] + 0.02 * stage.labels["seed"]
        np.savez(work / "predictions.npz", **predictions(wrong))  # type: ignore[arg-type]
    facts: dict[str, Any] = {"wall_seconds": wall, "accelerator_seconds": wall if accelerated else 0.0}
    facts["environment"] = {"device": "H100" if accelerated else "cpu"}
    store.publish(stage, work, facts | ({"peak_memory": 2**30} if stage.kind == "pretrain" else {}))


class Finished:
    """The miniature study of digits with all, or some, of its stages finished; `best` runs as the command line does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        (folder / "study.yaml").write_text(json.dumps(raw()))
        self.store = Store(folder / "runs")
        self.plan: Plan = planned(load(str(folder / "study.yaml")), self.store)

    def finish(self, kinds: Sequence[str] = ("data", "pretrain", "finetune"), accelerated: bool = True) -> None:
        for stage in self.plan.by_key.values():
            if stage.kind in kinds:
                finish(stage, self.store, accelerated)

    def best(self, *words: str) -> tuple[int, str, str]:
        command = ["intermoco", "best", str(self.folder / "study.yaml"), "--output", str(self.store.root), *words]
        self.monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = self.capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Finished:
    monkeypatch.setenv("COLUMNS", "160")
    return Finished(tmp_path, monkeypatch, capsys)


def test_the_best_arm_is_named_with_the_command_that_promotes_it(study: Finished) -> None:
    study.finish()
    status, text, errors = study.best("--set", "seeds=[0,1]")
    assert (status, errors) == (0, "")
    assert "Ship moco_mse, all weights fine-tuned on 100% of the labels: validation AUROC" in text
    assert "2 seeds can never be significant: the exact paired test needs at least 7 for 3 comparisons" in text
    yaml = study.folder / "study.yaml"
    command = f"intermoco promote {yaml} --output {study.store.root} --set 'seeds=[0,1]' --arm moco_mse"
    assert text.splitlines()[-1] == f"promote it: {command}"
    assert "accelerator time" in text


@pytest.mark.parametrize(("columns", "shown"), [("160", "peak"), ("66", "accelerator")])
def test_however_narrow_the_terminal_arms_and_scores_stay_whole(
    study: Finished, monkeypatch: pytest.MonkeyPatch, columns: str, shown: str
) -> None:
    study.finish()
    monkeypatch.setenv("COLUMNS", columns)
    table = study.best()[1].split("Ship")[0]
    assert "…" not in table
    assert all(f" {arm} " in table for arm in WRONG if arm != "trial_7")
    assert all(len(line) <= int(columns) for line in table.splitlines())
    assert shown in table
    assert ("peak" in table) == (columns == "160")


def test_the_json_line_says_all_and_leads_to_the_stage(study: Finished) -> None:
    study.finish()
    status, text, _ = study.best("--json")
    facts = json.loads(text.splitlines()[-1])
    chosen = facts["recommended"]
    assert status == 0
    assert (facts["study"], chosen["arm"], chosen["seed"], chosen["label_fraction"]) == (
        "miniature",
        "moco_mse",
        0,
        1.0,
    )
    stage = study.plan.by_key[chosen["key"]]
    assert dict(stage.labels) == {"arm": "moco_mse", "seed": 0, "mode": "full", "label_fraction": 1.0}
    assert (study.store.stages / chosen["stage"] / "predictions.npz").is_file()
    assert [row["arm"] for row in facts["ranking"]] == ["moco_mse", "moco", "supervised"]
    assert facts["ranking"][0]["accelerator_seconds"] == 70.0
    assert facts["sentences"][0].startswith("Ship moco_mse")
    assert facts["command"].endswith("--arm moco_mse")


def test_memory_that_an_arm_lacks_and_time_without_an_accelerator_are_said(study: Finished) -> None:
    study.finish(accelerated=False)
    _, text, _ = study.best()
    assert "made without an accelerator" in text
    assert "Of supervised the peak memory is not known, so it decides nothing here." in text


def test_another_fraction_mode_and_objective_are_a_set_away(study: Finished) -> None:
    study.finish()
    status, text, _ = study.best("--set", "decision.fraction=0.06", "--set", "decision.objectives=[brier]", "--json")
    facts = json.loads(text.splitlines()[-1])
    assert (status, facts["recommended"]["label_fraction"], facts["objectives"]) == (0, 0.06, ["brier"])
    _, text, _ = study.best("--set", "decision.mode=linear", "--json")
    linear = json.loads(text.splitlines()[-1])
    assert {row["mode"] for row in linear["ranking"]} == {"linear"}
    status, _, error = study.best("--set", "decision.fraction=0.5")
    assert (status, len(error.splitlines())) == (2, 1)
    assert "decision.fraction: 0.5 is not among downstream.fractions" in error


def test_nothing_finished_is_bad_input_and_leaves_nothing_behind(study: Finished) -> None:
    status, text, error = study.best()
    assert (status, text, len(error.splitlines())) == (2, "", 1)
    assert "nothing of this study is finished" in error
    study.finish(("data", "pretrain"))
    status, _, error = study.best()
    assert status == 2
    assert "no model of mode full or scratch at 100% of the labels is finished" in error
    assert not (study.store.root / "miniature").exists()


def test_a_study_half_done_is_ranked_with_what_is_there(study: Finished) -> None:
    study.finish(("data", "pretrain"))
    for stage in study.plan.of_kind("finetune"):
        if stage.labels["seed"] == 0 and stage.labels["arm"] != "moco_mse":
            finish(stage, study.store, True)
    before = sorted(p for p in study.store.root.rglob("*") if p.is_file())
    status, text, _ = study.best()
    assert status == 0
    assert "Ship moco," in text
    assert "4 models of this study are not finished" in text
    assert "One seed has no standard error" in text
    assert sorted(p for p in study.store.root.rglob("*") if p.is_file()) == before


def test_a_damaged_stage_stops_it_and_is_named(study: Finished) -> None:
    study.finish()
    stage = next(s for s in study.plan.of_kind("finetune") if s.labels["label_fraction"] == 1.0)
    path = study.store.path(stage) / "predictions.npz"
    path.write_bytes(path.read_bytes()[:-200])
    status, _, error = study.best()
    assert status == 1
    assert stage.folder in error


def test_arms_that_a_search_promotes_compete(study: Finished) -> None:
    """`decide` takes a study and a plan as `promoted` makes them: larger than the study's own file."""
    own = load(str(study.folder / "study.yaml"))
    winner = own.arms["moco_mse"]
    assert winner is not None
    larger = replace(own, arms={**own.arms, "trial_7": replace(winner, learning_rate=0.123)})
    full = plan(
        larger, {config: study.plan.by_key[key].config["fingerprint"] for key, config in study.plan.datasets.items()}
    )
    for stage in full.by_key.values():
        if stage.kind in ("pretrain", "finetune"):
            finish(stage, study.store, True)
    assert decide(Promoted(larger, full), study.store).chosen.arm == "trial_7"
    down, linear = replace(larger.downstream, linear_fractions=()), replace(larger.decision, mode="linear")
    none = Promoted(replace(larger, downstream=down, decision=linear), full)
    with pytest.raises(InputError, match="trains no model in mode linear"):
        decide(none, study.store)


def test_a_fine_tuning_says_how_much_memory_it_took(tmp_path: Path) -> None:
    """So that an arm without pretraining has a peak, too; and `best` reads a model that was really trained."""
    small = {"fractions": [1.0], "linear_fractions": [], "full": {"epochs": 1, "min_steps": 1, "evaluations": 1}}
    study = miniature(dataset=few_digits(tmp_path), arms={"supervised": "scratch"}, seeds=[0], probe=None, reuse=None,
                      downstream={"bootstrap": 2, **small})  # fmt: skip
    store = Store(tmp_path / "runs")
    full = planned(study, store)
    packed(study.dataset, store, next(full.of_kind("data")), {})
    (tuned,) = full.of_kind("finetune")
    threads = torch.get_num_threads()
    perform(tuned, store, Demand(), {}, lambda values: None)
    torch.set_num_threads(threads)
    found = decide(Promoted(study, full), store)
    assert found.ranking.of("supervised").means["peak_memory"] == store.manifest(tuned)["peak_memory"] > 50 << 20
    with np.load(store.path(tuned) / "predictions.npz") as file:
        assert found.chosen.value == pytest.approx(float(file["val_score"]), abs=1e-12)
