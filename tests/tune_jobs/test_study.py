from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import miniature, raw

from ssl_core.errors import ConfigError
from tune_jobs.loading import PRESETS, load
from tune_jobs.overview import overview
from tune_jobs.plan import plan
from tune_jobs.resolution import resolve
from tune_jobs.tracking_writer import study_key


def with_value(path: str, value: Any) -> dict[str, Any]:
    study = raw()
    *parents, last = path.split(".")
    node = study
    for key in parents:
        node = node.setdefault(key, {})
    node[last] = value
    return study


def test_an_arm_lays_its_settings_on_the_shared_ones() -> None:
    study = miniature()
    moco, mse = study.arms["moco"], study.arms["moco_mse"]
    assert moco is not None
    assert mse is not None
    assert moco.epochs == mse.epochs == 1
    assert moco.mse is None
    assert mse.mse is not None
    assert mse.mse.blocks == (1, 4)
    assert mse.augment == study.downstream.full.augment
    assert study.arms["supervised"] is None


def test_an_arms_section_keeps_what_it_does_not_mention() -> None:
    study = resolve(with_value("arms.small", {"moco": {"momentum": 0.9}, "augment": {"flip": 0.5}}))
    arm = study.arms["small"]
    assert arm is not None
    assert (arm.moco.queue, arm.moco.momentum) == (256, 0.9)
    assert (arm.augment.rotate, arm.augment.flip) == (15, 0.5)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("pretain", {}, ["pretain", "did you mean pretrain"]),
        ("arms.moco_mse.mse.blocs", [1], ["arms.moco_mse.mse.blocs", "did you mean blocks?"]),
        ("arms.moco_mse.mse.blocks", [5], ["arms.moco_mse.mse", "block [5]", "1, 2, 3 and 4"]),
        ("arms.moco_mse.mse.blocks", [1, 1], ["twice"]),
        ("arms.moco_mse.mse.scale", -1, ["arms.moco_mse.mse", "scale -1.0", "not negative"]),
        ("arms.moco_mse.mse.scale", [1, 2, 3], ["3 scales for 2 blocks"]),
        ("arms.moco", 5, ["arms.moco", "scratch"]),
        ("arms", {}, ["arms", "at least one"]),
        ("baseline", "mocco", ["baseline", "did you mean moco"]),
        ("downstream.fractions", [0, 1], ["downstream.fractions", "0.0", "(0, 1]"]),
        ("downstream.fractions", [0.06], ["ks", "1.0", "downstream.fractions"]),
        ("downstream.full.mode", "linear", ["downstream.full.mode", "set by the study"]),
        ("downstream.full.learning_rate", 0, ["downstream.full", "learning_rate 0.0", "above 0"]),
        ("downstream.full", [1], ["downstream.full", "keys and values"]),
        ("downstream.full.metric", "f1", ["downstream.full.metric", "set by the study"]),
        ("reuse.fractions", [0.5], ["reuse.fractions", "0.5", "downstream.fractions"]),
        ("probe.blocks", [0], ["probe", "block [0]"]),
        ("seeds", [], ["seeds", "at least one"]),
        ("seeds", [1, 1], ["seeds", "distinct"]),
        ("pretrain.epochs", "many", ["arms.moco.epochs", "integer", "'many'"]),
        ("pretrain.moco.queue", 0, ["queue 0", "at least 1"]),
        ("pretrain.seed", 3, ["seed", "set by the study"]),
        ("encoder.arch", "resnet19", ["encoder.arch", "resnet50", "'resnet19'"]),
        ("dataset", None, ["dataset"]),
        ("dataset.source", "jpg", ["dataset.source", "folder"]),
        ("study", "../elsewhere", ["study", "letters"]),
        ("resources.workers", 0, ["resources.workers", "at least 1"]),
        ("tracking.url", "x", ["tracking.url", "did you mean uri?"]),
        ("promotion.ece", 1.5, ["promotion.ece 1.5", "[0, 1]"]),
        ("promotion.worst_class", -0.1, ["promotion.worst_class -0.1", "[0, 1]"]),
        ("promotion.model", "a/b", ["promotion.model", "'a/b'", "letters"]),
        ("promotion.bound", 1, ["promotion.bound", "known: ece, export_within, model, temperature, worst_class"]),
        ("decision.fractions", [1.0], ["decision.fractions", "did you mean fraction?"]),
        ("decision.mode", "scratch", ["decision.mode", "'full' or 'linear'", "'scratch'"]),
        ("decision.fraction", 0.5, ["decision.fraction", "0.5", "downstream.fractions [0.06, 1.0]"]),
        ("decision", {"mode": "linear", "fraction": 0.06}, ["decision.fraction", "downstream.linear_fractions [1.0]"]),
        ("decision.fraction", 0, ["decision.fraction 0.0", "(0, 1]"]),
        ("decision.objectives", ["peak_memory", "score"], ["decision.objectives", "peak_memory says nothing"]),
        ("decision.objectives", ["score", "speed"], ["decision.objectives", "'speed'"]),
        ("decision.objectives", ["score", "score"], ["decision.objectives", "twice"]),
        ("decision.objectives", [], ["decision.objectives", "at least one"]),
    ],
)
def test_bad_values_are_named_with_the_remedy(path: str, value: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(with_value(path, value))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_the_resolved_study_reads_back_equal(tmp_path: Path) -> None:
    study = miniature(probe=None, tracking={"experiment": "other"}, promotion={"model": "chest", "ece": 0.05})
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml())
    assert load(str(path)) == study
    full = miniature()
    assert resolve(yaml.safe_load(full.to_yaml())) == full


def test_a_decision_is_written_with_the_study_and_changes_no_identity() -> None:
    plain, study = miniature(), miniature(decision={"fraction": 0.06, "objectives": ["score"]})
    assert resolve(yaml.safe_load(study.to_yaml())) == study
    assert load("quickstart", ["decision.fraction=0.01"]).decision.fraction == 0.01
    plans = [plan(s, "f" * 64) for s in (plain, study)]
    assert set(plans[0].by_key) == set(plans[1].by_key)
    assert study_key(plain, plans[0]) == study_key(study, plans[1])
    assert "fraction: 0.06" in overview(study).split("decision:")[1]
    assert "fraction: 1.0" in overview(plain).split("decision:")[1]  # the largest, where the study says none


def test_overrides_reach_into_sections_and_make_new_ones() -> None:
    study = load(
        "quickstart",
        ["seeds=[7]", "arms.moco_mse.mse.scale=5e-1", "arms.new.barlow={width: 64}", "probe.learning_rate=1"],
    )
    mse, new = study.arms["moco_mse"], study.arms["new"]
    assert study.seeds == (7,)
    assert mse is not None
    assert mse.mse is not None
    assert mse.mse.scale == 0.5
    assert new is not None
    assert new.barlow is not None
    assert new.barlow.width == 64
    assert study.probe is not None
    assert study.probe.learning_rate == 1.0


@pytest.mark.parametrize("override", ["seeds", "=3", "study.name=x", "seeds=[1"])
def test_a_malformed_override_is_named(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load("quickstart", [override])


def test_an_unknown_study_names_the_packaged_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        load("quickstrt")
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        load("missing.yaml")


def test_what_is_no_yaml_mapping_is_refused(tmp_path: Path) -> None:
    for text, words in (("- 1", "keys and values"), ("a: [", "not valid YAML"), ("", "keys and values")):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load(str(path))


@pytest.mark.parametrize("preset", sorted(p.stem for p in PRESETS.glob("*.yaml")))
def test_every_packaged_study_resolves_under_its_own_name(preset: str) -> None:
    assert load(preset).study == preset
