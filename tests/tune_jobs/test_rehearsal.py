"""What a study will need and take, before it runs: real steps, and this machine's memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from studies import few_digits, raw

from ssl_core.config import EncoderConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.errors import InputError
from ssl_core.footprint import footprint
from tune_jobs import machine
from tune_jobs.memory import MARGIN, PIXEL, PROCESS, require_memory
from tune_jobs.plan import plan
from tune_jobs.prepare import packed, planned
from tune_jobs.rehearsal import Rehearsed, rehearse
from tune_jobs.resolution import resolve
from tune_jobs.store import Store
from tune_jobs.study import Study
from tune_jobs.work import opened

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With the few digits packed."""
    store = Store(tmp_path_factory.mktemp("rehearsal"))
    digits = study(store.root)
    (stage,) = planned(digits, store).of_kind("data")
    packed(digits.dataset, store, stage, {})
    return store


def study(folder: Path, **changes: object) -> Study:
    pretrain = {"epochs": 3, "batch_size": 32, "moco": {"queue": 32}} | changes
    arms = {"moco": {}}
    return resolve(raw(dataset=few_digits(folder), seeds=[0, 1], pretrain=pretrain, arms=arms))


def test_steps_are_measured_and_nothing_is_left(store: Store) -> None:
    full = planned(study(store.root), store)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    found = rehearse(full, store)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
    (arm,) = found.arms
    assert (arm.arm, arm.left, found.device) == ("moco", 2, "cpu")
    assert arm.steps >= 5
    assert arm.steps * arm.step_seconds > 2.5  # of five seconds, though a step takes far less
    assert arm.epoch_seconds == pytest.approx(3 * arm.step_seconds)  # 126 // 32 steps
    assert 3 * arm.epoch_seconds < arm.seconds < 30 * arm.epoch_seconds
    assert found.seconds == pytest.approx(2 * arm.seconds / found.at_once)
    assert arm.peak_memory is not None
    assert 0.5 * PROCESS < arm.peak_memory < 2 * machine.GIB
    assert re.search(r"moco +\d+\.\d{3} s .* GiB +2\n", "\n".join(found.lines))

    downstream = list(full.of_kind("finetune"))
    costs = {(each.mode, each.label_fraction): each for each in found.finetunings}
    assert len(costs) == len(found.finetunings)
    assert set(costs) == {(s.config["mode"], s.config["fraction"]) for s in downstream}
    assert sum(each.left for each in found.finetunings) == len(downstream)
    for each in found.finetunings:
        assert each.images == round(each.label_fraction * 126)
        assert each.peak_memory is not None
        assert 0.5 * PROCESS < each.peak_memory < 2 * machine.GIB
        assert re.search(rf"  {each.mode} {100 * each.label_fraction:g}% +\d", "\n".join(found.lines))


def test_steps_are_measured_on_packed_data_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `intermoco data` first"):
        rehearse(plan(study(tmp_path), "unknown"), Store(tmp_path))
    assert list(tmp_path.iterdir()) == [tmp_path / "digits.npz"]


def test_what_the_stage_would_refuse_is_refused_in_its_words(store: Store) -> None:
    with pytest.raises(InputError, match=r"^moco.queue 100 exceeds 0.5 of the 126 training images"):
        rehearse(planned(study(store.root, moco={"queue": 100}, batch_size=20), store), store)


def test_where_nothing_is_left_nothing_is_measured() -> None:
    assert list(Rehearsed("cpu", 2.0, machine.GIB, 1, ()).lines) == [
        "measured: nothing, for every pretraining and fine-tuning is finished"
    ]


def test_a_step_that_cannot_fit_is_refused_with_the_batch_that_does(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = planned(study(store.root, batch_size=126, precision="float32"), store)
    datasets = {config: opened(store.find("data", key)) for key, config in full.datasets.items()}
    require_memory(full, store, datasets)
    config = PretrainConfig(encoder=EncoderConfig(arch="resnet18", stem="small"), moco=MocoConfig(queue=32))
    counted = footprint(config, 1, 8, "float32")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)  # a container's limit
    (tmp_path / "memory.max").write_text(str(counted.of(125)))
    with pytest.raises(InputError, match=r"arm moco: a pretraining step keeps .* no batch fits"):
        require_memory(full, store, datasets)  # nothing is left of so little once a process is there
    monkeypatch.setattr("tune_jobs.memory.PROCESS", 0)
    with pytest.raises(InputError, match="the largest batch that fits is about") as caught:
        require_memory(full, store, datasets)
    (fits,) = re.findall(r"set pretrain.micro_batch to (\d+)", str(caught.value))
    assert counted.of(int(fits)) * MARGIN <= counted.of(125) < counted.of(int(fits) + 1) * MARGIN * 1.01
    require_memory(
        planned(study(store.root, batch_size=126, micro_batch=int(fits), precision="float32"), store), store, datasets
    )


def test_no_encoder_keeps_more_of_a_pixel() -> None:
    """Below it nothing is counted."""
    config = PretrainConfig(
        encoder=EncoderConfig(arch="resnet50", stem="small"),
        moco=MocoConfig(queue=32),
        mse=MseConfig(),
        precision="float32",
    )
    assert 0.5 * PIXEL < footprint(config, 3, 64).image / 64**2 < PIXEL
