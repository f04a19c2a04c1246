from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from studies import miniature, raw

from tune_jobs.plan import Plan, plan
from tune_jobs.resolution import resolve
from tune_jobs.stage import VERSIONS, Stage, canonical
from tune_jobs.study import Study

FINGERPRINT = "f" * 64


def planned(study: Study | None = None, fingerprint: str = FINGERPRINT) -> Plan:
    return plan(study or miniature(), fingerprint)


def changed_kinds(before: Plan, after: Plan) -> set[str]:
    return {stage.kind for key, stage in after.by_key.items() if key not in before.by_key}


def study_with(path: str, value: Any) -> Study:
    study = raw()
    *parents, last = path.split(".")
    node = study
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    return resolve(study)


def test_the_miniature_study_has_every_stage_of_the_paper() -> None:
    counts = Counter(s.kind for s in planned().stages)
    arms, seeds = 2, 2
    assert counts == {
        "data": 1,
        "audit": 1,
        "pretrain": arms * seeds,
        "finetune": seeds * (arms * (1 + 2) + 2),  # linear once, full at two fractions; scratch at two
        "features": seeds * arms * 2,  # of the pretrained encoder, and after fine-tuning on 6%
        "probe": arms * seeds,
        "reuse": arms * seeds,
        "ks": 1,
    }


def test_inputs_precede_the_stages_that_need_them() -> None:
    seen: set[str] = set()
    for stage in planned().stages:
        assert set(stage.inputs.values()) <= seen, stage.name
        seen.add(stage.key)


def test_planning_twice_gives_the_same_identities() -> None:
    assert [s.key for s in planned().stages] == [s.key for s in planned().stages]


@pytest.mark.parametrize(
    ("path", "value", "kinds"),
    [
        ("probe.learning_rate", 0.5, {"probe"}),
        ("reuse.permutations", 3, {"reuse"}),
        ("ks.calibration_bins", 7, {"ks"}),
        ("downstream.linear.learning_rate", 0.5, {"finetune"}),
        ("downstream.full.epochs", 2, {"finetune", "features", "reuse", "ks"}),
        ("pretrain.epochs", 2, {"pretrain", "finetune", "features", "probe", "reuse", "ks"}),
        ("resources.cpus", 2, set()),
        ("resources.checkpoint_seconds", 5, set()),
        ("resources.accelerators", 1, set()),
        ("tracking.uri", "http://127.0.0.1:5000", set()),
        ("question", "Why?", set()),
        ("resources.workers", 2, {"pretrain", "finetune", "features", "probe", "reuse", "ks"}),
    ],
)
def test_a_change_renames_what_depends_on_it_and_nothing_else(path: str, value: Any, kinds: set[str]) -> None:
    assert changed_kinds(planned(), planned(study_with(path, value))) == kinds


def test_other_data_renames_everything() -> None:
    assert not set(planned().by_key) & set(planned(fingerprint="0" * 64).by_key)


def test_the_place_of_the_dataset_is_no_part_of_any_identity() -> None:
    here = study_with("dataset", {"source": "npz", "path": "/here/x.npz"})
    there = study_with("dataset", {"source": "npz", "path": "/there/y.npz"})
    assert set(planned(here).by_key) == set(planned(there).by_key)


def test_arms_of_equal_configuration_share_their_stages() -> None:
    study = study_with("arms.twin", {})
    both, one = planned(study), planned()
    assert len(both.stages) > len(one.stages)
    assert changed_kinds(one, both) == {"ks"}  # the ks table names its arms
    assert {s.labels["arm"] for s in both.of_kind("pretrain") if "mse" not in str(s.labels)} == {"moco", "twin"}


def test_a_new_seed_leaves_the_others_alone() -> None:
    more = planned(miniature(seeds=[0, 1, 2]))
    assert {s.key for s in planned().stages if s.kind != "ks"} < set(more.by_key)


def test_identity_holds_kind_version_config_and_inputs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(kind="probe", config={"a": 1.0}, inputs={"features": "0"})
    assert stage.key == dataclasses.replace(stage, labels={"arm": "x"}).key
    for other in (
        dataclasses.replace(stage, kind="reuse"),
        dataclasses.replace(stage, config={"a": 2.0}),
        dataclasses.replace(stage, inputs={"features": "1"}),
    ):
        assert stage.key != other.key
    monkeypatch.setitem(VERSIONS, "probe", VERSIONS["probe"] + 1)  # type: ignore[arg-type]
    assert stage.key != Stage(kind="probe", config={"a": 1.0}, inputs={"features": "0"}).key


def test_canonical_text_ignores_order_and_refuses_nan() -> None:
    assert canonical({"b": (1, 2), "a": 0.1}) == canonical({"a": 0.1, "b": [1, 2]}) == '{"a":0.1,"b":[1,2]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))


def test_an_arms_encoder_is_the_one_that_is_fine_tuned() -> None:
    study = study_with("arms.moco.encoder", {"arch": "resnet34"})
    archs = {s.config["encoder"]["arch"] for s in planned(study).of_kind("finetune") if s.labels["arm"] == "moco"}
    assert archs == {"resnet34"}


def test_models_tested_on_fewer_images_are_no_part_of_ks() -> None:
    arms = {"moco": {}, "dropped": {"downstream": {"full": {"drop_last": True}}}, "supervised": "scratch"}
    stages = plan(resolve(raw(arms=arms, seeds=[0])), "f" * 64)
    (ks,) = stages.of_kind("ks")
    assert {model["arm"] for model in ks.config["models"]} == {"moco", "supervised"}
    assert set(ks.inputs) == {model["input"] for model in ks.config["models"]}


def test_a_lone_worker_that_trains_no_encoder_shares_an_accelerator() -> None:
    def asked(**resources: Any) -> dict[str, set[float]]:
        found: dict[str, set[float]] = {}
        for stage in plan(miniature(resources=resources), "f").stages:
            name = f"{stage.kind} {stage.labels['mode']}" if stage.kind == "finetune" else stage.kind
            found.setdefault(name, set()).add(stage.demand.on(2).accelerators or 0.0)
        return found

    whole, none = {1.0}, {0.0}
    rest = dict.fromkeys(("data", "audit", "probe", "reuse", "ks"), none)
    trains = {"pretrain": whole, "finetune full": whole, "finetune scratch": whole}
    assert asked() == {**rest, **trains, "finetune linear": {0.25}, "features": {0.25}}
    assert asked(accelerators=1, accelerator_share=0.5) == {
        **rest, **trains, "finetune linear": {0.5}, "features": {0.5},
    }  # fmt: skip
    assert asked(downstream_workers=2) == {**rest, **trains, "finetune linear": whole, "features": whole}
    assert set().union(*asked(accelerators=0).values()) == none
