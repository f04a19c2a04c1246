"""What a comparison is paired by: read from the labels that the runs saw."""

import json

import pandas as pd
import pytest

from analysis.pairing import paired_by
from analysis.report import build
from analysis.summary import judge
from analysis.tables import Finished, tidy
from tests.analysis import report_fixture as fixture


def run(folder, arm, seed, ids, *, mode="full", fraction=0.01, kind="finetune"):
    stage = folder / f"{kind}-{arm}-{seed}-{mode}-{fraction}"
    stage.mkdir(exist_ok=True)
    if ids is not None:
        (stage / "samples.json").write_text(json.dumps({"ids": ids}))
    labels = {"arm": arm, "seed": seed, "mode": mode, "label_fraction": fraction}
    block = {"block": 1} if kind == "probe" else {}
    return Finished(kind, stage.name, labels, stage, [{"metric": "auroc", "value": 0.5, **block}])


def told(stages):
    judged = paired_by(judge(tidy("d", stages), "a"), stages)
    return dict(zip(zip(judged["table"], judged["label_fraction"], strict=True), judged["paired_by"], strict=True))


def test_arms_that_saw_the_same_images_in_every_seed_are_paired_by_them(tmp_path):
    stages = [run(tmp_path, arm, seed, ids) for arm in "ab" for seed, ids in ((0, ["x", "y"]), (1, ["z"]))]
    assert told(stages) == {("label_efficiency", 0.01): "seed and labels"}


def test_the_order_of_the_images_is_not_what_was_drawn(tmp_path):
    stages = [run(tmp_path, "a", 0, ["x", "y"]), run(tmp_path, "b", 0, ["y", "x"])]
    assert told(stages) == {("label_efficiency", 0.01): "seed and labels"}


def test_one_seed_that_differs_leaves_the_seed_alone(tmp_path):
    stages = [run(tmp_path, arm, seed, ["x"]) for arm in "ab" for seed in (0, 1)]
    stages[-1] = run(tmp_path, "b", 1, ["other"])
    assert told(stages) == {("label_efficiency", 0.01): "seed"}


def test_seeds_that_one_arm_alone_ran_say_nothing(tmp_path):
    stages = [run(tmp_path, "a", 0, ["x"]), run(tmp_path, "b", 0, ["x"]), run(tmp_path, "b", 1, ["y"])]
    assert told(stages) == {("label_efficiency", 0.01): "seed and labels"}


def test_all_labels_are_the_same_labels_and_what_was_not_written_is_not_known(tmp_path):
    stages = [run(tmp_path, arm, 0, None, fraction=fraction) for arm in "ab" for fraction in (0.01, 1.0)]
    found = told(stages)
    assert found["label_efficiency", 1.0] == "seed and labels"
    assert pd.isna(found["label_efficiency", 0.01])


def test_each_mode_has_labels_of_its_own_and_an_untrained_arm_is_as_a_fine_tuned_one(tmp_path):
    stages = [run(tmp_path, arm, 0, [arm], mode="probe", kind="probe") for arm in "ab"]
    stages += [run(tmp_path, "a", 0, ["x"], mode="full"), run(tmp_path, "b", 0, ["x"], mode="scratch")]
    assert told(stages) == {("label_efficiency", 0.01): "seed and labels", ("probing", 0.01): "seed"}


@pytest.mark.parametrize("table", ["reuse", "ks"])
def test_reuse_and_distances_are_paired_by_the_labels_of_the_fine_tuned_model(tmp_path, table):
    row = {"table": table, "arm": "b", "against": "a", "mode": "full", "label_fraction": 0.01}
    for ids, words in ((["x"], "seed and labels"), (["y"], "seed")):
        stages = [run(tmp_path, "a", 0, ["x"]), run(tmp_path, "b", 0, ids)]
        assert paired_by(pd.DataFrame([row]), stages)["paired_by"].tolist() == [words]


def test_the_verdicts_file_says_what_each_comparison_is_paired_by(tmp_path):
    stages = [s for s in fixture.study(tmp_path, arms=("moco", "moco_mse")) if s.kind == "finetune"]
    few = next(s for s in stages if s.labels["arm"] == "moco" and s.labels["label_fraction"] == 0.01)
    (few.folder / "samples.json").write_text(json.dumps({"ids": ["of its own"]}))
    build(fixture.facts(arms=("moco", "moco_mse")), stages, tmp_path / "tables", tmp_path / "report")
    table = pd.read_csv(tmp_path / "tables" / "verdicts.csv")
    by = table.groupby("label_fraction")["paired_by"].unique().map(list).to_dict()
    assert by == {0.01: ["seed"], 0.06: ["seed and labels"], 1.0: ["seed and labels"]}
