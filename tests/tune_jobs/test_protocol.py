"""Protocols: every row of the switch table, under each preset, and what a study says of its departures."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import yaml

from analysis.config import ReuseConfig
from ssl_core.config import (
    AugmentConfig,
    BarlowConfig,
    EncoderConfig,
    FinetuneConfig,
    LabelsConfig,
    MocoConfig,
    MseConfig,
    PretrainConfig,
)
from ssl_core.errors import ConfigError
from tune_jobs.loading import load
from tune_jobs.overview import overview, protocol_lines
from tune_jobs.plan import plan
from tune_jobs.protocol import PROTOCOLS, base, departures
from tune_jobs.resolution import resolve
from tune_jobs.schema import leaves, plain
from tune_jobs.study import Study

PAPERS = ("cxr14", "eyepacs", "idc")


@cache
def study_of(source: str, protocol: str) -> Study:
    return load(source, [f"protocol={protocol}"])


def value(study: Study, path: str) -> Any:
    """A resolved value: `arm.mse.scale` of the arm with that loss, `downstream.full.epochs`, `dataset.size`, ..."""
    head, *rest = path.split(".")
    found: Any = {
        "arm": study.arms["moco_barlow" if "barlow" in path else "moco_mse"],
        "plain": study.arms["moco"],
    }.get(head)
    if found is None:
        found, rest = study, [head, *rest]
    for name in rest:
        found = getattr(found, name)
    return found


#: Rows of the protocol's tables: field -> values under paper, authors, recommended; one for all datasets, or one each.
ROWS: list[tuple[str, Any, Any, Any]] = [
    ("arm.learning_rate", 0.3, 0.03, 0.03),
    ("arm.learning_rate_batch", None, None, 256),
    ("arm.sgd_momentum", 0.9, 0.9, 0.9),
    ("arm.weight_decay", 1e-4, 1e-4, 1e-4),
    ("arm.decay_norms", True, True, False),
    ("arm.schedule", "constant", "constant", "cosine"),
    ("arm.warmup_epochs", 0.0, 0.0, 1.0),
    ("arm.moco.momentum", 0.99, 0.999, 0.996),
    ("arm.moco.head", "linear", "linear", "mlp"),
    ("arm.batch_size", (16, 32, 32), (16, 8, 32), (32, 256, 256)),
    ("arm.epochs", (50, 100, 75), 1000, (50, 100, 75)),
    ("dataset.size", (1024, 299, 256), (512, None, 256), (1024, 299, 256)),
    ("dataset.crop", None, (None, None, 255), None),
    ("arm.moco.queue", 65536, 65536, "auto"),
    ("arm.moco.queue_limit", None, None, 0.5),
    ("arm.moco.mask", "none", "none", "group"),
    ("arm.encoder.zero_init_residual", False, True, True),
    ("plain.encoder.zero_init_residual", False, False, True),
    ("encoder.zero_init_residual", False, False, True),
    ("arm.mse.pool", "grid", ("grid", "grid", "gap"), "auto"),
    ("arm.mse.scale", 0.25, 0.25, "auto"),
    ("arm.barlow.scale", 5e-5, 5e-5 / 32, "auto"),
    ("arm.barlow.lambd", 1.0, 1.0, 0.0051),
    ("arm.barlow.centred", False, True, True),
    ("arm.validation", "pure", "moving", "pure"),
    ("arm.keep", "saturated", "best", "last"),
    ("arm.moco.shuffle_keys", "undone", "embedding", "undone"),
    ("arm.augment.rotate", (30, 30, 0), (30, 30, 0), (30, 30, 0)),
    ("arm.augment.flip", (0, 0.5, 0.5), (0, 0.5, 0.5), (0, 0.5, 0.5)),
    ("arm.augment.crop", (None, None, (0.4, 1.0)), (None, None, (0.4, 1.0)), (None, None, (0.4, 1.0))),
    ("arm.normalise", False, False, True),
    ("downstream.full.normalise", False, False, True),
    ("downstream.full.optimiser", "adam", "adam", "adamw"),
    ("downstream.full.schedule", "constant", "constant", "cosine"),
    ("downstream.full.weight_decay", 0.0, 0.0, 1e-4),
    ("downstream.full.epochs", 100, 100, 50),
    ("downstream.full.patience", None, None, 8),
    ("downstream.linear.frozen_norm", "fixed", "moving", "fixed"),
    ("downstream.labels.draw", "stratified", "random", "stratified"),
    ("downstream.labels.per_arm", False, True, False),
    ("downstream.labels.unit", "image", "image", ("group", "group", "image")),
    ("downstream.full.small_augment", "same", "flip", "same"),
    ("downstream.full.evaluate", "best", "last", "best"),
    ("downstream.metric", ("auroc", "auroc", "f1"), ("auroc", "auroc", "f1_macro"), ("auroc", "auroc", "f1")),
    ("downstream.full.select", "metric", ("metric", "metric", "accuracy"), "metric"),
    ("downstream.full.drop_last", False, True, False),
    ("downstream.bootstrap", 1000, 500, 1000),
    ("downstream.resample", "images", "images", "groups"),
    ("downstream.paper_spread", "score", "labels", "score"),
    ("seeds", (0,), (0,), (0, 1, 2)),
    ("reuse.kernels", ("authors",), ("authors",), ("linear", "rbf", "authors")),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_switch_has_its_three_settings(row: tuple[str, Any, Any, Any]) -> None:
    path, *expected = row
    whole = path in ("seeds", "reuse.kernels")
    for protocol, each in zip(("paper", "authors", "recommended"), expected, strict=True):
        per_dataset = each if isinstance(each, tuple) and not whole else (each,) * 3
        for source, wanted in zip(PAPERS, per_dataset, strict=True):
            got = value(study_of(source, protocol), path)
            assert got == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), (protocol, source)


def test_recommended_is_what_the_configurations_default_to() -> None:
    named = leaves(base("recommended", None))
    defaults = {
        "encoder": EncoderConfig(),
        "augment": AugmentConfig(),
        "pretrain": PretrainConfig(),
        "mse": MseConfig(),
        "barlow": BarlowConfig(),
        "reuse": ReuseConfig(),
    }
    values = {name: plain(config) for name, config in defaults.items()}
    values["pretrain"]["moco"] = plain(MocoConfig())
    values["downstream"] = {
        **plain(FinetuneConfig()),
        "labels": plain(LabelsConfig()),
        "linear": plain(FinetuneConfig()),
        "full": plain(FinetuneConfig()),
    }
    flat = leaves(values) | {"seeds": [0, 1, 2], "normalise": PretrainConfig().normalise}
    assert {key: flat[key] for key in named} == named


def test_the_protocols_set_the_same_switches() -> None:
    keys = {protocol: set(leaves(base(protocol, None))) for protocol in PROTOCOLS}
    assert keys["paper"] == keys["recommended"] == keys["authors"] - {"pretrain.epochs"}


def test_a_study_overrides_its_protocol_and_says_so() -> None:
    study = load("idc", ["protocol=paper", "pretrain.learning_rate=0.1", "downstream.full.epochs=7"])
    assert value(study, "arm.learning_rate") == 0.1
    assert value(study, "arm.moco.momentum") == 0.99
    assert departures(study) == {
        "pretrain.learning_rate": "0.1 (paper: 0.3)",
        "downstream.full.epochs": "7 (paper: 100)",
    }
    assert protocol_lines(study)[0] == "protocol paper, but for"
    assert departures(study_of("idc", "paper")) == {}
    assert departures(load("idc", ["protocol=paper", "reuse=null", "probe=null", "ks=null"])) == {}


def test_a_switch_that_one_arm_turns_is_named_with_it() -> None:
    study = load("idc", ["arms.moco_mse.keep=best"])
    assert departures(study) == {"arms.moco_mse.keep": "best (recommended: last)"}


def test_a_loss_section_sets_every_arm_that_has_the_loss_and_no_other() -> None:
    study = load("idc", ["mse.scale=0.5", "arms.both={mse: {}, barlow: {}}", "arms.own={mse: {scale: 0.125}}"])
    scales = {name: arm.mse and arm.mse.scale for name, arm in study.arms.items() if arm is not None}
    assert scales == {"moco": None, "moco_mse": 0.5, "moco_barlow": None, "both": 0.5, "own": 0.125}


def test_zeroed_residuals_by_losses_is_a_rule_that_an_arm_may_break() -> None:
    arms = {"plain": {}, "loss": {"mse": {}}, "own": {"encoder": {"zero_init_residual": True}}, "none": "scratch"}
    study = resolve({"study": "x", "dataset": {"source": "digits"}, "protocol": "authors", "arms": arms})
    assert [arm and arm.encoder.zero_init_residual for arm in study.arms.values()] == [False, True, True, None]
    assert study.encoder.zero_init_residual is False


def test_an_arm_may_be_fine_tuned_in_its_own_way() -> None:
    own = {"full": {"optimiser": "adam"}, "labels": {"draw": "random", "per_arm": True}}
    arms = {
        "moco": {},
        "twin": {"downstream": own},
        "supervised": "scratch",
        "other": {"scratch": True, "downstream": own},
    }
    raw = {"study": "x", "dataset": {"source": "digits"}, "seeds": [0], "arms": arms}
    study = resolve(raw)
    assert resolve(yaml.safe_load(study.to_yaml())) == study
    stages = plan(study, "f" * 64)
    assert len({s.key for s in stages.of_kind("pretrain")}) == 1  # both arms share it
    tuned = {(s.labels["arm"], s.labels["mode"]): s.config for s in stages.of_kind("finetune")}
    assert tuned["moco", "full"]["optimiser"] == "adamw"
    assert tuned["twin", "full"]["optimiser"] == tuned["other", "scratch"]["optimiser"] == "adam"
    assert tuned["twin", "linear"]["optimiser"] == "adamw"
    assert tuned["twin", "full"]["labels"]["salt"] == "twin"
    assert tuned["other", "scratch"]["labels"]["salt"] == "other"
    assert tuned["moco", "full"]["labels"]["salt"] == ""


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["protocol=papers"], "protocol: there is no 'papers'; did you mean paper"),
        (["arms.moco.downstream.metric=f1_macro"], "arms.moco.downstream.metric: arms are compared in one metric"),
        (["arms.moco.downstream.full.epohcs=3"], "arms.moco.downstream.full.epohcs: no such key; did you mean epochs"),
        (["mse.scal=1"], "arms.moco_mse.mse.scal: no such key; did you mean scale"),
        (["mse.scale=automatic"], "scale"),
        (["arms.none={scratch: true, epochs: 3}"], "arms.none.epochs: an arm without pretraining"),
        (["downstream.labels.salt=x"], "downstream.labels.salt: is set by the study itself"),
        (["downstream.full.labels={}"], "downstream.full.labels: is set by the study itself"),
    ],
)
def test_what_cannot_be_is_refused_by_name(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("idc", overrides)
    assert said in str(caught.value)


def test_moving_statistics_reach_the_probes_and_leave_feature_reuse_alone() -> None:
    stages = plan(study_of("cxr14", "authors"), "f" * 64)
    by_key = stages.by_key
    probed = {by_key[s.inputs["features"]].config["norm"] for s in stages.of_kind("probe")}
    compared = {by_key[s.inputs[role]].config["norm"] for s in stages.of_kind("reuse") for role in ("before", "after")}
    assert (probed, compared) == ({"moving"}, {"fixed"})


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("source", PAPERS)
def test_the_overview_holds_every_resolved_value_once(source: str, protocol: str) -> None:
    study = study_of(source, protocol)
    shown = yaml.safe_load(overview(study))
    moco_mse = study.arms["moco_mse"]
    assert moco_mse is not None
    rebuilt = leaves(shown["pretrain"]) | leaves(shown["arms"]["moco_mse"])
    expected = leaves({k: v for k, v in plain(moco_mse).items() if k != "seed"})
    assert rebuilt == expected
    assert shown["downstream"]["linear and full"]["optimiser"] == study.downstream.full.optimiser
    assert shown["dataset"].get("size") == study.dataset.size


def test_blocks_and_switches_turn_one_thing_at_a_time() -> None:
    study = load("switches")
    baseline, down = study.arms["recommended"], study.downstream
    assert baseline is not None
    for name, arm in study.arms.items():
        assert arm is not None
        same_loss = (arm.barlow is None) == (baseline.barlow is None)
        reference = baseline if same_loss else study.arms["barlow"]
        fields = [f.name for f in dataclasses.fields(arm) if getattr(arm, f.name) != getattr(reference, f.name)]
        tuned = [
            f.name
            for f in dataclasses.fields(down)
            if getattr(study.downstream_of(name), f.name) != getattr(down, f.name)
        ]
        if name in ("recommended", "barlow"):
            assert not fields + tuned
        else:
            assert bool(fields) != bool(tuned), name
            assert len(fields) <= 2, name
    blocks = load("blocks")
    assert {arm.mse.blocks if arm and arm.mse else () for arm in blocks.arms.values()} >= {(), (1,), (2,), (3,), (4,)}


def test_an_arm_may_see_the_images_at_another_size_and_nothing_else_of_its_own() -> None:
    raw = {"study": "x", "dataset": {"source": "digits"}, "seeds": [0]}
    study = resolve(raw | {"arms": {"moco": {}, "large": {"dataset": {"size": 16}}, "supervised": "scratch"}})
    assert resolve(yaml.safe_load(study.to_yaml())) == study
    main, large = study.dataset, study.dataset_of("large")
    assert large == dataclasses.replace(main, size=16)
    stages = plan(study, {main: "a" * 64, large: "b" * 64})
    keys = {stages.datasets[s.key].size: s.key for s in stages.of_kind("data")}
    seen = {s.labels["arm"]: s.inputs["data"] for s in stages.stages if "data" in s.inputs and "arm" in s.labels}
    assert seen == {"moco": keys[None], "large": keys[16], "supervised": keys[None]}
    with pytest.raises(ConfigError, match=r"arms.large.dataset.split_seed: arms are compared on the same images"):
        resolve(raw | {"arms": {"large": {"dataset": {"split_seed": 1}}}})
