"""A declared space: what it accepts and draws, the arms it makes, and the one message that each mistake gets."""

import itertools
import subprocess
import sys
from dataclasses import replace
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.config import AugmentConfig, BarlowConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.errors import ConfigError
from tune_jobs.loading import load
from tune_jobs.search.space import Choice, Range, Space

BASES = {
    "none": PretrainConfig(),
    "mse": PretrainConfig(mse=MseConfig()),
    "barlow": PretrainConfig(barlow=BarlowConfig()),
    "both": PretrainConfig(mse=MseConfig(), barlow=BarlowConfig()),
}
FULL = """
loss: [none, mse, barlow, both]
blocks: [1, 2, 3, 4]
mse.scale: {low: 0.01, high: 10, log: true}
barlow.scale: {low: 1.0e-5, high: 1, log: true, each: block}
barlow.width: [64, 128, 256]
augment.crop: [null, [0.2, 1], [0.6, 1]]
augment.rotate: {low: 0, high: 30, when: {loss: [mse, both]}}
learning_rate: {low: 1e-2, high: 1, log: true}
epochs: {low: 2, high: 10, step: 4}
"""


def read(text: str, bases: dict[str, PretrainConfig] = BASES) -> Space:
    return Space.read(yaml.safe_load(text), bases)


def draws(space: Space, count: int, seed: int = 0) -> list[tuple[dict[str, Any], optuna.Trial]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trials = [study.ask() for _ in range(count)]
    return [(space.suggest(trial), trial) for trial in trials]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


# what is drawn


def test_parameters_are_drawn_exactly_where_their_conditions_hold() -> None:
    space = read(FULL)
    seen = set()
    for values, _ in draws(space, 300):
        loss, on = values["loss"], [b for b in (1, 2, 3, 4) if values.get(f"block_{b}")]
        expected = {"loss", "augment.crop", "learning_rate", "epochs"}
        if loss != "none":
            expected |= {"block_1", "block_2", "block_3", "block_4"}
        if loss in ("mse", "both"):
            expected |= {"augment.rotate"} | ({"mse.scale"} if on else set())
        if loss in ("barlow", "both"):
            expected |= {f"barlow.scale_{b}" for b in on} | ({"barlow.width"} if on else set())
        assert set(values) == expected
        seen.add((loss, bool(on)))
    assert seen == {("none", False), *itertools.product(("mse", "barlow", "both"), (True, False))}


def test_what_is_drawn_has_the_announced_distributions() -> None:
    space = read(FULL)
    known = space.distributions()
    for values, trial in draws(space, 50):
        assert trial.distributions == {name: known[name] for name in values}
        assert trial.params == values
    assert space.logs == {"mse.scale", "learning_rate", *(f"barlow.scale_{b}" for b in (1, 2, 3, 4))}


def test_ranges_are_whole_where_the_setting_is() -> None:
    space = read("{epochs: {low: 2.0, high: 10}, learning_rate: {low: 1, high: 10, log: true}, moco.queue: [64, 1e3]}")
    assert space["epochs"].domain == Range(2, 10)
    assert isinstance(space.distributions()["epochs"], optuna.distributions.IntDistribution)
    assert isinstance(space.distributions()["learning_rate"], optuna.distributions.FloatDistribution)
    assert space["moco.queue"].domain == Choice((64, 1000))
    assert all(type(option) is int for option in space["moco.queue"].domain.options)


def test_a_word_that_is_a_number_is_one() -> None:
    space = read("{learning_rate: {low: 1e-2, high: 1, log: true}, weight_decay: [1e-4, 1e-5]}")
    assert space["learning_rate"].domain == Range(0.01, 1.0, log=True)
    assert space["weight_decay"].domain == Choice((1e-4, 1e-5))


def test_parameters_come_after_those_their_conditions_name() -> None:
    space = read(
        "{epochs: {choices: [1, 2], when: {batch_size: 8}}, batch_size: {choices: [8, 16], when: {schedule: cosine}},"
        " schedule: [cosine, constant], augment.flip: {low: 0, high: 1, when: {augment.crop: [0.2, 1]}},"
        " augment.crop: [[0.2, 1], [0.6, 1]], mse.scale: [1, 2], loss: [none, mse]}"
    )
    names = [p.name for p in space.parameters]
    assert names.index("schedule") < names.index("batch_size") < names.index("epochs")
    assert space["augment.flip"].when == {"augment.crop": ("[0.2, 1]",)}
    for values, _ in draws(space, 60):
        assert ("epochs" in values) == (values["schedule"] == "cosine" and values["batch_size"] == 8)
        assert ("augment.flip" in values) == (values["augment.crop"] == "[0.2, 1]")


_ENTRIES: dict[str, st.SearchStrategy[Any]] = {
    "loss": st.lists(st.sampled_from(["none", "mse", "barlow", "both"]), min_size=1, unique=True),
    "blocks": st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, unique=True),
    "mse.scale": st.sampled_from(
        [{"low": 0.1, "high": 1, "each": "block"}, {"low": 0, "high": 2, "step": 0.1}, ["auto", 1]]
    ),
    "barlow.scale": st.sampled_from([{"choices": [0.1, 1], "each": "block"}, {"low": 1e-5, "high": 1, "log": True}]),
    "barlow.layers": st.sampled_from(
        [[2, 3], {"low": 1, "high": 3}, {"choices": [1, 2], "when": {"encoder.arch": "resnet18"}}]
    ),
    "augment.crop": st.just([None, [0.2, 1.0], (0.6, 1)]),
    "augment.flip": st.just({"low": 0, "high": 1, "when": {"encoder.arch": ["resnet34", "resnet50"]}}),
    "epochs": st.sampled_from([[3, 5], {"low": 1, "high": 9, "log": True}, {"low": 1, "high": 9, "step": 2}]),
}


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({"encoder.arch": st.just(["resnet18", "resnet34", "resnet50"])}, optional=_ENTRIES),
    st.integers(0, 99),
)
def test_every_draw_of_every_space_makes_an_arm(raw: dict[str, Any], seed: int) -> None:
    sections = {key.partition(".")[0] for key in raw}
    on = {"none": set(), "mse": {"mse"}, "barlow": {"barlow"}, "both": {"mse", "barlow"}}
    used = set().union(*(on[loss] for loss in raw.get("loss", ())))
    if not sections & {"mse", "barlow"} <= used or ("blocks" in raw and not used):
        with pytest.raises(ConfigError, match=r"add `loss|no loss of"):
            Space.read(raw, BASES)
        return
    space = Space.read(raw, BASES)
    assert Space.read(space.raw, BASES) == space
    assert Space.read(yaml.safe_load(yaml.safe_dump(space.raw, sort_keys=False)), BASES) == space
    for values, _ in draws(space, 10, seed):
        arm = space.arm(values, BASES)
        for name in values:  # each one counts: no parameter is there that changes nothing
            assert space[name].active(values)
        assert space.suggest(optuna.trial.FixedTrial(values)) == values
        assert space.arm(values, BASES) == arm
    for name, values, _ in space.paper_starts(BASES):
        assert space.suggest(optuna.trial.FixedTrial(values)) == values, name
        space.arm(values, BASES)


# arms


@pytest.mark.parametrize("loss", ["mse", "barlow", "both"])
def test_switches_make_every_subset_of_blocks(loss: str) -> None:
    space = read("{loss: [none, mse, barlow, both], blocks: [1, 2, 3, 4]}")
    for switches in itertools.product((False, True), repeat=4):
        values = {"loss": loss, **{f"block_{b}": on for b, on in enumerate(switches, 1)}}
        arm, on = space.arm(values, BASES), tuple(b for b, on in enumerate(switches, 1) if on)
        if not on:
            assert arm == BASES["none"] == space.arm({"loss": "none"}, BASES)
            continue
        assert arm == replace(
            BASES[loss],
            mse=BASES[loss].mse and MseConfig(blocks=on),
            barlow=BASES[loss].barlow and BarlowConfig(blocks=on),
        )


def test_values_are_laid_on_the_base_of_the_loss() -> None:
    bases = {**BASES, "mse": replace(BASES["mse"], epochs=7, moco=MocoConfig(dim=64))}
    space = read(FULL, bases)
    switches = {"block_1": False, "block_2": True, "block_3": False, "block_4": True}
    common = {"augment.crop": "[0.6, 1]", "learning_rate": 0.5, "epochs": 6}
    arm = space.arm({"loss": "mse", **switches, "mse.scale": 2.0, "augment.rotate": 3.0, **common}, bases)
    assert arm == PretrainConfig(
        mse=MseConfig(blocks=(2, 4), scale=2.0),
        moco=MocoConfig(dim=64),
        augment=AugmentConfig(crop=(0.6, 1.0), rotate=3.0),
        learning_rate=0.5,
        epochs=6,
    )
    barlow = {"loss": "barlow", **switches, "barlow.width": 128, "barlow.scale_2": 0.1, **common}
    arm = space.arm({**barlow, "barlow.scale_4": 0.2, "barlow.scale_1": 0.9}, bases)  # block 1 is off
    assert arm.barlow == BarlowConfig(blocks=(2, 4), scale=(0.1, 0.2), width=128)
    assert arm.augment.rotate == 0
    equal = space.arm({**barlow, "barlow.scale_4": 0.1}, bases)
    assert equal.barlow == BarlowConfig(blocks=(2, 4), scale=0.1, width=128)


def test_scales_of_a_base_go_with_their_blocks() -> None:
    base = replace(BASES["none"], mse=MseConfig(blocks=(2, 3, 4), scale=(0.2, 0.3, 0.4)))
    bases = {**BASES, "mse": base}
    space = read("{loss: [none, mse], blocks: [2, 4]}", bases)
    assert space.arm({"loss": "mse", "block_2": False, "block_4": True}, bases).mse == MseConfig(
        blocks=(4,), scale=(0.4,)
    )
    with pytest.raises(ConfigError, match=r"search.bases: mse.scale \[0.2, 0.3, 0.4\] says nothing of block 1.*each"):
        read("{loss: [none, mse], blocks: [1, 2]}", bases)


def test_one_scale_a_block_follows_the_bases_where_blocks_do_not_vary() -> None:
    bases = {**BASES, "mse": replace(BASES["mse"], mse=MseConfig(blocks=(4, 2)))}
    space = read("{loss: [none, mse, both], mse.scale: {low: 0.1, high: 1, each: block}}", bases)
    assert space["mse.scale_2"].when == {"loss": ("mse", "both")}
    assert space["mse.scale_3"].when == {"loss": ("both",)}
    arm = space.arm({"loss": "mse", "mse.scale_2": 0.2, "mse.scale_4": 0.4}, bases)
    assert arm.mse is not None
    assert dict(zip(arm.mse.blocks, arm.mse.scale, strict=True)) == {2: 0.2, 4: 0.4}  # type: ignore[arg-type]


def test_an_arm_needs_all_its_values() -> None:
    space = read("{loss: [none, mse], mse.scale: [0.5, 1]}")
    with pytest.raises(ConfigError, match=r"search.space.mse.scale: a trial has no value.*0.5 or 1"):
        space.arm({"loss": "mse"}, BASES)
    with pytest.raises(ConfigError, match=r"search.space.mse.scale: 3 is not allowed"):
        space.arm({"loss": "mse", "mse.scale": 3}, BASES)
    with pytest.raises(ConfigError, match=r"mse.scal is no parameter.*mse.scale"):
        space.arm({"loss": "none", "mse.scal": 3}, BASES)


def test_extremes_hold_each_value_of_each_parameter() -> None:
    found = read("{loss: [none, mse, both], mse.scale: {low: 0.1, high: 1}, moco.queue: [64, 999]}").extremes(BASES)
    texts = [text for text, _ in found]
    assert {"loss none", "loss both", "mse.scale 0.1", "mse.scale 1", "moco.queue 999"} <= set(texts)
    assert {arm.moco.queue for text, arm in found if text == "moco.queue 999"} == {999}
    assert texts.count("mse.scale 1") == 2  # mse, both


# starts


def test_the_papers_settings() -> None:
    space = read(FULL)
    starts = {name: (values, notes) for name, values, notes in space.paper_starts(BASES)}
    assert list(starts) == ["paper_moco", "paper_mse", "paper_barlow"]
    on = {f"block_{b}": True for b in (1, 2, 3, 4)}
    base = {"augment.crop": None, "learning_rate": 0.03, "epochs": 10}
    assert starts["paper_moco"][0] == {"loss": "none", **base}
    assert starts["paper_mse"][0] == {"loss": "mse", **on, "mse.scale": 0.25, "augment.rotate": 0.0, **base}
    scales = {f"barlow.scale_{b}": 5e-5 for b in (1, 2, 3, 4)}
    assert starts["paper_barlow"][0] == {"loss": "barlow", **on, **scales, "barlow.width": 256, **base}
    assert starts["paper_barlow"][1] == [
        "paper_barlow: barlow.width is 256, not the paper's 2048, which search.space does not allow",
        "paper_barlow: epochs is 10, not the study's 50, which search.space does not allow",
    ]
    barlow = space.arm(starts["paper_barlow"][0], BASES).barlow
    assert barlow == BarlowConfig(scale=5e-5, width=256)


def test_the_papers_settings_that_the_space_does_not_vary() -> None:
    assert [name for name, _, _ in read("{loss: [mse, both], epochs: [1, 2]}").paper_starts(BASES)] == ["paper_mse"]
    [(_, values, notes)] = read("{loss: [mse], blocks: [3, 4]}").paper_starts(BASES)
    assert values == {"loss": "mse", "block_3": True, "block_4": True}
    assert notes == [
        "paper_mse: mse.scale is auto in every trial; the paper's is 0.25",
        "paper_mse: the loss is on blocks 3, 4 at most; the paper's is on all four",
    ]
    assert read("{epochs: [1, 50]}").paper_starts(BASES) == [("paper_moco", {"epochs": 50}, [])]
    other = {**BASES, "none": BASES["mse"]}
    assert read("{epochs: [1, 50]}", other).paper_starts(other) == []


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("{loss: none}", "{loss: none}"),
        ("{loss: mse, blocks: [3, 4], mse.scale: 1}", "{loss: mse, block_3: true, block_4: true, mse.scale: 1.0}"),
        ("{loss: mse, blocks: 2}", "{loss: mse, block_2: true, mse.scale: 0.25}"),  # base: auto, so the paper's
        ("{loss: mse, block_2: false}", "{loss: mse, block_1: true, block_3: true, block_4: true, mse.scale: 0.25}"),
        ("{loss: mse, blocks: []}", "{loss: mse}"),
        ("{loss: none, blocks: []}", "{loss: none}"),
        ("{loss: mse, blocks: 2, mse.scale: 1e-1}", "{loss: mse, block_2: true, mse.scale: 0.1}"),
        (
            "{loss: barlow, blocks: [1, 3], barlow.scale: 0.5, barlow.width: 64}",
            "{loss: barlow, block_1: true, block_3: true, barlow.scale_1: 0.5, barlow.scale_3: 0.5, barlow.width: 64}",
        ),
        (
            "{loss: barlow, blocks: [1, 3], barlow.scale_3: 0.5}",
            "{loss: barlow, block_1: true, block_3: true, barlow.width: 256, barlow.scale_1: 5.e-5, "
            "barlow.scale_3: 0.5}",
        ),
    ],
)
def test_a_start_is_completed(start: str, expected: str) -> None:
    space = read(FULL)
    values = space.complete(yaml.safe_load(start), BASES)
    wanted = yaml.safe_load(expected)
    if wanted["loss"] != "none":
        wanted = {**{f"block_{b}": False for b in (1, 2, 3, 4)}, **wanted}
    if wanted["loss"] == "mse":
        wanted["augment.rotate"] = 0.0
    assert values == {**wanted, "augment.crop": None, "learning_rate": 0.03, "epochs": 10}
    study = optuna.create_study()
    study.enqueue_trial(values)
    assert space.suggest(study.ask()) == values
    space.arm(values, BASES)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("[mse]", "names no settings"),
        ("{}", "names no loss; add `loss`, which may be none or mse or barlow or both"),
        ("{mse.scale: 1}", "names no loss"),
        ("{loss: msee}", "loss: msee is none of its values"),
        ("{loss: mse, scale: 1}", "scale: does not vary in this search; did you mean"),
        ("{loss: mse, moco.dim: 64}", "moco.dim: does not vary in this search"),
        ("{loss: mse, blocks: [5]}", "blocks: block 5 is not among"),
        ("{loss: mse, mse.scale: 100}", "mse.scale: 100 is none of its values; .* 0.01 to 10; the nearest is 10"),
        ("{loss: mse, mse.scale: auto}", "mse.scale: auto is none of its values; search.space allows 0.01 to 10$"),
        (
            "{loss: none, mse.scale: 1}",
            "mse.scale: has no place here, only where loss is mse or both and a block is on",
        ),
        ("{loss: mse, blocks: [], mse.scale: 1}", "mse.scale: has no place here"),
        ("{loss: none, blocks: [1]}", "blocks: has no place here, only where loss is mse or barlow or both"),
        ("{loss: mse, blocks: [1], block_2: true}", "block_2: sets block_2 a second time"),
        (
            "{loss: barlow, barlow.scale: [1, 1, 1, 1]}",
            "barlow.scale: write one number for all blocks, or barlow.scale_1",
        ),
        ("{loss: none, epochs: 3}", "epochs: 3 is none of its values; .* 2 to 10 in steps of 4; the nearest is 2"),
        ("{loss: none, epochs: true}", "epochs: true is none of its values"),
        ("{loss: none, augment.crop: [0.1, 1]}", r"augment.crop: \[0.1, 1\] is none of its values"),
    ],
)
def test_a_start_that_cannot_be(start: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^search.warm_starts[.:].*{message}"):
        read(FULL).complete(yaml.safe_load(start), BASES)


def test_what_is_not_allowed_moves_to_the_nearest() -> None:
    space = read(
        "{epochs: {low: 4, high: 40, step: 9}, learning_rate: [0.01, 0.1], moco.dim: {low: 200, high: 300},"
        " weight_decay: {low: 0.001, high: 0.1, log: true}, batch_size: [32, 250], moco.queue: [100, 200]}"
    )
    assert space.complete({}, BASES) == {
        "epochs": 40,
        "learning_rate": 0.01,  # by ratio: 0.03 is 3.0 of it, and 0.1 is 3.3 of 0.03
        "moco.dim": 200,
        "weight_decay": 0.001,
        "batch_size": 250,
        "moco.queue": 100,  # auto is not near to any: the first
    }
    assert [Range(0.1, 0.7, step=0.2).nearest(v) for v in (0.0, 0.21, 0.39, 0.65, 9)] == [0.1, 0.3, 0.3, 0.7, 0.7]
    assert Range(1, 10).nearest(3.6) == 4
    assert Range(1, 10).nearest("auto") is None
    assert Choice((True, False)).nearest(1) is None


# mistakes

_CHOICE = "schedule: [cosine, constant]"


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("{}", "", "is empty; name at least one"),
        ("[loss]", "", "holds no settings"),
        ("{loss: [mse]}", "", "nothing varies"),
        ("{1: [2, 3]}", ".1", "1 is no setting"),
        # loss and blocks
        ("{loss: mse}", ".loss", "takes a list of options.*found mse"),
        ("{loss: []}", ".loss", "takes a list"),
        ("{loss: [~, mse]}", ".loss", "null is no loss; write the word none"),
        ("{loss: [mse, msee]}", ".loss", "msee is no loss; did you mean mse"),
        ("{loss: [mse, mse]}", ".loss", "mse is named twice"),
        ("{loss: [[mse]]}", ".loss", "is no loss"),
        ("{blocks: [1, 2]}", ".blocks", r"add `loss: \[mse, barlow\]`"),
        ("{loss: [none], blocks: [1]}", ".blocks", "no loss of .*none.* uses it; add mse or barlow"),
        ("{loss: [mse], blocks: []}", ".blocks", "takes a list"),
        ("{loss: [mse], blocks: 3}", ".blocks", "takes a list"),
        ("{loss: [mse], blocks: [0]}", ".blocks", "block 0 does not exist"),
        ("{loss: [mse], blocks: [true]}", ".blocks", "block True does not exist"),
        ("{loss: [mse], blocks: [1.0]}", ".blocks", "block 1.0 does not exist"),
        ("{loss: [mse], blocks: [1, 1]}", ".blocks", "block 1 is named twice"),
        ("{loss: [mse], mse.blocks: [[1], [2]]}", ".mse.blocks", "list those .* in search.space.blocks"),
        ("{loss: [mse], block_1: [true, false]}", ".block_1", "blocks: "),
        ("{mse.scale: [1, 2]}", ".mse.scale", r"add `loss: \[mse\]`"),
        ("{loss: [none, mse], barlow.width: [8]}", ".barlow.width", "no loss of .*add barlow there"),
        # fields
        ("{learning_rat: [1, 2]}", ".learning_rat", "no such setting; did you mean learning_rate"),
        ("{temperature: [1, 2]}", ".temperature", r"did you mean moco.temperature\?"),
        ("{pretrain.epochs: [1, 2]}", ".pretrain.epochs", r"did you mean epochs\?"),
        ("{mse.block: [1, 2]}", ".mse.block", "no such setting"),
        ("{barlow.blocks.x: [1, 2]}", ".barlow.blocks.x", "barlow.blocks is no section"),
        ("{moco: {temperature: [1, 2]}}", ".moco", "is a section; write each field .* moco.temperature"),
        ("{mse: [null]}", ".mse", "is a section; write each field .*: mse.scale, mse.pool$"),
        ("{seed: [1, 2]}", ".seed", "search.seeds"),
        ("{loss: [mse], mse.scale_1: [1, 2]}", ".mse.scale_1", "each: block"),
        # ranges
        ("{learning_rate: {low: 1, high: 0.1}}", ".learning_rate", "low 1 is above high 0.1; exchange"),
        ("{learning_rate: {low: 1, high: 1.0}}", ".learning_rate", "both 1, so nothing varies"),
        ("{learning_rate: {low: 0, high: 1, log: true}}", ".learning_rate.low", "0 has no logarithm"),
        ("{learning_rate: {low: 0.1, high: 1, log: 10}}", ".learning_rate.log", "10 is neither true nor false"),
        ("{learning_rate: {low: 0.1, high: 1, step: -1}}", ".learning_rate.step", "-1 must be above 0"),
        ("{learning_rate: {low: 0.1, high: 1, step: 4}}", ".learning_rate.step", "4 is longer than the range"),
        ("{learning_rate: {low: 0.1, high: 1, step: 0.4}}", ".learning_rate.step", "do not reach 1; use high 0.9"),
        ("{learning_rate: {low: 0.1, high: 1, step: 0.1, log: true}}", ".learning_rate.step", "not with log"),
        ("{learning_rate: {low: .nan, high: 1}}", ".learning_rate.low", "nan is no finite number"),
        ("{learning_rate: {low: 1, high: .inf}}", ".learning_rate.high", "inf is no finite number"),
        ("{learning_rate: {low: 1, high: true}}", ".learning_rate.high", "true is no finite number"),
        ("{learning_rate: {low: x, high: 1}}", ".learning_rate.low", "x is no finite number"),
        ("{learning_rate: {low: 1}}", ".learning_rate.high", "is missing"),
        ("{learning_rate: {low: 1, hihg: 2}}", ".learning_rate.hihg", "no such key; did you mean high"),
        ("{learning_rate: 0.1}", ".learning_rate", "0.1 does not vary; write options .* `pretrain`"),
        ("{learning_rate: }", ".learning_rate", "is empty; write options"),
        ("{epochs: {low: 1.5, high: 3}}", ".epochs.low", "1.5 is no whole number"),
        ("{normalise: {low: 0, high: 1}}", ".normalise", r"is no number; list its options, e.g. \[true, false\]"),
        ("{augment.crop: {low: 0, high: 1}}", ".augment.crop", "is no number"),
        # options
        ("{learning_rate: []}", ".learning_rate", "has no options"),
        ("{learning_rate: {choices: 3}}", ".learning_rate.choices", "3 is no list"),
        ("{learning_rate: {choices: [1, 2], low: 1}}", ".learning_rate.low", "not with choices"),
        ("{learning_rate: [1e-1, 0.1]}", ".learning_rate", "0.1 is named twice"),
        ("{augment.crop: [[0.5, 1], [0.5, 1.0]]}", ".augment.crop", "named twice"),
        ("{learning_rate: [.inf, 0.1]}", ".learning_rate", "inf is no finite number"),
        ("{learning_rate: [nan, 0.1]}", ".learning_rate", "nan is no finite number"),
        ("{learning_rate: [true, 0.1]}", ".learning_rate", "true is none of its values"),
        ("{normalise: [0, 1]}", ".normalise", r"0 is neither true nor false; write \[true, false\]"),
        ("{augment.crop: [0.6, 1.0]}", ".augment.crop", "0.6 is no list"),
        # values that make no arm
        ("{learning_rate: {low: 0, high: 1}}", ".learning_rate", "0 makes no arm: learning_rate 0.0 must be above 0"),
        ("{moco.momentum: {low: 0.9, high: 1.1}}", ".moco.momentum", "1.1 makes no arm: .* must lie in"),
        ("{schedule: [cosine, linear]}", ".schedule", "linear makes no arm: input should be 'cosine' or 'constant'"),
        ("{augment.crop: [null, [1, 0.6]]}", ".augment.crop", r"\[1, 0.6\] makes no arm: .*low <= high"),
        ("{loss: [none, mse], mse.pool: [gap, gpa]}", ".mse.pool", "gpa makes no arm"),
        ("{loss: [none, both], blocks: [1, 2], mse.scale: [-1, 1]}", ".mse.scale", "-1 makes no arm"),
        (
            f"{{{_CHOICE}, epochs: {{choices: [0, 1], when: {{schedule: constant}}}}}}",
            ".epochs",
            "0 makes no arm: epochs 0",
        ),
        # one a block
        ("{learning_rate: {low: 1, high: 2, each: seed}}", ".learning_rate.each", "'seed' is nothing"),
        ("{learning_rate: {low: 1, high: 2, each: block}}", ".learning_rate.each", "mse.scale and barlow.scale alone"),
        ("{loss: [mse], mse.scale: {choices: [auto, 1], each: block}}", ".mse.scale", "auto is no number"),
        ("{loss: [mse], blocks: [1, 2], mse.scale: [[1, 2], 1]}", ".mse.scale", "which blocks are on varies.*each"),
        # conditions
        ("{epochs: {choices: [1, 2], when: }}", ".epochs.when", "is empty"),
        ("{epochs: {choices: [1, 2], when: loss}}", ".epochs.when", "'loss' names no parameter"),
        ("{epochs: {choices: [1, 2], when: {loss: mse}}}", ".epochs.when.loss", "is no parameter of this search"),
        (
            "{loss: [mse], blocks: [1], epochs: {choices: [1, 2], when: {blocks: 1}}}",
            ".epochs.when.blocks",
            "name the switch",
        ),
        (
            f"{{{_CHOICE}, epochs: {{choices: [1, 2], when: {{schedul: cosine}}}}}}",
            ".epochs.when.schedul",
            "did you mean",
        ),
        (
            f"{{{_CHOICE}, epochs: {{choices: [1, 2], when: {{schedule: []}}}}}}",
            ".epochs.when.schedule",
            "names no value",
        ),
        (f"{{{_CHOICE}, epochs: {{choices: [1, 2], when: {{schedule: x}}}}}}", ".epochs.when.schedule", "x is none of"),
        (
            "{learning_rate: {low: 1, high: 2}, epochs: {choices: [1, 2], when: {learning_rate: 1}}}",
            ".epochs.when.learning_rate",
            "no two trials agree",
        ),
        ("{epochs: {choices: [1, 2], when: {epochs: 1}}}", "", "in a circle: epochs needs epochs"),
        (
            f"{{{_CHOICE}, epochs: {{choices: [1, 2], when: {{batch_size: 4}}}},"
            " batch_size: {choices: [4, 8], when: {epochs: 1}}}",
            "",
            "in a circle: epochs needs batch_size needs epochs",
        ),
        (
            "{loss: [mse, barlow], mse.scale: {low: 1, high: 2, when: {loss: barlow}}}",
            ".mse.scale.when.loss",
            "never holds, as mse.scale needs that loss is mse",
        ),
        (
            "{loss: [none, mse], epochs: {choices: [1, 2], when: {loss: none}},"
            " batch_size: {choices: [4, 8], when: {epochs: 1, loss: mse}}}",
            ".batch_size.when",
            "never holds: epochs is there only where loss is none",
        ),
        (
            "{loss: [mse], blocks: [1], mse.scale: {choices: [1, 2], when: {block_1: false}}}",
            ".mse.scale.when",
            "never hold together",
        ),
    ],
)
def test_a_mistake_gets_one_message(text: str, key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^search\.space{key}: .*{message}") as found:
        read(text)
    assert "\n" not in str(found.value)


def test_a_base_has_the_losses_of_its_name() -> None:
    with pytest.raises(ConfigError, match=r"^search.bases.none: has mse; .* so name neither mse nor barlow"):
        read("{loss: [none, mse]}", {**BASES, "none": BASES["mse"]})
    with pytest.raises(ConfigError, match=r"^search.bases.both: has barlow; .* so name mse and barlow"):
        read("{loss: [none, both]}", {**BASES, "both": BASES["barlow"]})


# in a study


def test_a_study_keeps_its_space(tmp_path: Any) -> None:
    study = load("digits_search")
    assert study.search is not None
    (tmp_path / "again.yaml").write_text(study.to_yaml())
    assert load(str(tmp_path / "again.yaml")).search == study.search
    with pytest.raises(ConfigError, match=r"search.space.learning_rate: low 2 is above high 1"):
        load("digits_search", ["search.space.learning_rate={low: 2, high: 1}"])


def test_a_space_is_read_without_optuna() -> None:
    code = (
        "import sys; from tune_jobs.loading import load; load('digits_search');"
        "print([m for m in ('optuna', 'ray', 'torch', 'mlflow', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
