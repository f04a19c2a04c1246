"""A trial: its stages are those of an ablation, what is there is taken, what was killed goes on, nothing is left."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.config import ProbeConfig
from ssl_core import checkpoint, pretraining
from ssl_core.config import AugmentConfig, EncoderConfig, MocoConfig, MseConfig, PretrainConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.errors import NonFiniteError
from tune_jobs.plan import as_config, pretrain_stage
from tune_jobs.search.curve import Curve
from tune_jobs.search.trial import TrialSettings, run_trial, score_stage
from tune_jobs.stage import Demand, Stage
from tune_jobs.store import Store
from tune_jobs.study import Resources
from tune_jobs.work import perform

EPOCHS = 2
ARM = PretrainConfig(
    encoder=EncoderConfig(arch="resnet18", stem="small"),
    moco=MocoConfig(queue=16, dim=8),
    mse=MseConfig(scale=0.25, blocks=(4,)),
    augment=AugmentConfig(crop=(0.5, 1.0), saturation=0.0, hue=0.0, grey=0.0),
    batch_size=32,
    epochs=EPOCHS,
)
RESOURCES = Resources(checkpoint_seconds=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def settings(root: Path) -> TrialSettings:
    """Those of a search on 32 + 24 + 24 images of noise around a shape a class, packed in the store at `root`."""
    draw, labels = np.random.default_rng(0), np.arange(80) % 2
    shapes = draw.integers(0, 120, (2, 8, 8, 1))
    dataset = Dataset(
        name="shapes",
        images=(shapes[labels] + draw.integers(0, 130, (80, 8, 8, 1))).astype(np.uint8),
        labels=labels.astype(np.int64),
        splits=np.repeat(np.array([TRAIN, VAL, TEST], dtype=np.int8), (32, 24, 24)),
        groups=np.array([f"group{i}" for i in range(80)]),
        ids=np.array([f"image{i}" for i in range(80)]),
        class_names=("a", "b"),
        task="binary",
        mean=(0.4,),
        std=(0.2,),
        fingerprint="shapes",
    )
    store = Store(root)
    stage = Stage(kind="data", config={"fingerprint": "shapes", "name": "shapes"})
    if not store.finished(stage):
        work = store.begin(stage)
        dataset.save(work)
        store.publish(stage, work, {})
    return TrialSettings(
        root=str(root),
        data=stage.key,
        resources=RESOURCES,
        demand=Demand(cpus=1, accelerators=0.0, checkpoint_seconds=0),
        score=ProbeConfig(blocks=(4,), fraction=0.5, epochs=5, batch_size=8),
        curves=root / "study" / "search" / "curves",
        facts={"commit": "c0ffee"},
    )


def trial(arm: PretrainConfig = ARM, seeds: tuple[int, ...] = (5,)) -> dict[str, Any]:
    return json.loads(json.dumps({"number": 7, "arm": as_config(arm), "seeds": seeds}))  # type: ignore[no-any-return]


def run(
    shared: TrialSettings, config: Mapping[str, Any], stop: Callable[[Mapping[str, Any]], None] | None = None
) -> Any:
    """The trial's reports; `stop` sees each one first."""
    reports: list[dict[str, Any]] = []

    def report(values: Mapping[str, Any]) -> None:
        json.dumps(values, allow_nan=False)
        reports.append(dict(values))
        if stop:
            stop(values)

    run_trial(config, shared, report)
    return reports


def stages(root: Path, kind: str) -> list[str]:
    return sorted(path.name for path in (root / "stages").glob(f"{kind}-*"))


def left_over(root: Path) -> list[str]:
    """What lies in the folders of work under way."""
    return [path.name for name in (".work", ".train") for path in (root / "stages" / name).glob("*")]


def planned(root: Path, **changes: Any) -> list[Stage]:
    """The stages that an ablation of the same arm has."""
    data = stages(root, "data")[0].removeprefix("data-")
    return [pretrain_stage(dataclasses.replace(ARM, seed=s, **changes), Resources(cpus=2), data) for s in (5, 6)]


def encoder_of(root: Path) -> str:
    return checkpoint.digest(Store(root).path(planned(root)[0]) / "encoder.pt")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A trial of two seeds, run."""
    root = tmp_path_factory.mktemp("done")
    return root, run(settings(root), trial(seeds=(5, 6)))


def test_a_trial_reports_each_epoch_of_its_first_seed_and_means_over_all(done: tuple[Path, Any]) -> None:
    root, reports = done
    *evaluations, end = reports
    keys = {"event", "step", "score", "ece", "seconds", "accelerator_seconds"}
    assert [set(e) for e in evaluations] == [keys] * EPOCHS
    assert [(e["event"], e["step"], e["accelerator_seconds"]) for e in evaluations] == [
        ("evaluation", epoch, 0.0) for epoch in range(1, EPOCHS + 1)
    ]
    seconds = [e["seconds"] for e in evaluations]
    assert 0 < seconds[0] < seconds[1] < end["seconds"]
    assert end["event"] == "end"
    assert set(end["scores"]) == {5, 6}
    assert end["scores"][5] == evaluations[-1]["score"]
    assert end["score"] == pytest.approx(statistics.mean(end["scores"].values()))
    assert end["score_sd"] == pytest.approx(statistics.stdev(end["scores"].values()))
    assert (end["epochs"], end["cached"], end["stages"]) == (2 * EPOCHS, 0, [s.folder for s in planned(root)])
    assert end["peak_memory"] > 50 << 20
    assert left_over(root) == []


def test_what_a_trial_trained_is_what_an_ablation_looks_for(done: tuple[Path, Any]) -> None:
    root, _ = done
    store = Store(root)
    for stage in planned(root):
        manifest = store.manifest(stage)
        assert set(manifest["files"]) == {"encoder.pt", "metrics.jsonl"}
        assert (manifest["commit"], manifest["resumed_epoch"]) == ("c0ffee", 0)
        assert manifest["peak_memory"] > 50 << 20
    assert stages(root, "pretrain") == sorted(stage.folder for stage in planned(root))


def test_scores_are_stages_whether_an_evaluation_knew_them_or_not(done: tuple[Path, Any], tmp_path: Path) -> None:
    root, reports = done
    shared, store = settings(root), Store(root)
    for stage in planned(root):
        scored = score_stage(stage, shared.score, shared.demand)
        assert scored.config["seed"] == stage.config["seed"]
        known = (store.path(scored) / "rows.json").read_text()
        store.path(scored).rename(tmp_path / scored.folder)
        perform(scored, store, scored.demand, {}, lambda values: None)  # from the encoder's file
        assert (store.path(scored) / "rows.json").read_text() == known
        assert json.loads(known)[0]["value"] == reports[-1]["scores"][stage.config["seed"]]


def test_a_trial_that_is_in_the_store_trains_nothing_and_says_the_same(
    done: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, reports = done
    monkeypatch.setattr(pretraining, "pretrain", None)
    again = run(settings(root), trial(seeds=(5, 6)))
    assert again == [*reports[:-1], {**reports[-1], "cached": 2}]
    # another search has no curve of it
    elsewhere = dataclasses.replace(settings(root), curves=root / "other" / "curves")
    assert run(elsewhere, trial(seeds=(5,)))[0]["event"] == "end"


def test_one_seed_has_no_spread(done: tuple[Path, Any]) -> None:
    root, reports = done
    (*_, end) = run(settings(root), trial(seeds=(6,)))
    assert (end["score"], end["score_sd"], end["ece_sd"]) == (reports[-1]["scores"][6], None, None)


def test_a_stopped_trial_leaves_its_curve_and_nothing_else(tmp_path: Path) -> None:
    def stop(values: Mapping[str, Any]) -> None:
        if values["step"] == 2:
            raise SystemExit(0)  # as Tune's report does

    with pytest.raises(SystemExit):
        run(settings(tmp_path), trial(), stop)
    assert stages(tmp_path, "pretrain") == stages(tmp_path, "score") == left_over(tmp_path) == []
    (curve,) = settings(tmp_path).curves.glob("*")
    assert [row["step"] for row in Curve(curve).read()] == [1, 2]


def test_an_interrupted_trial_keeps_its_checkpoint_and_goes_on(done: tuple[Path, Any], tmp_path: Path) -> None:
    def interrupt(values: Mapping[str, Any]) -> None:
        if values.get("step") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings(tmp_path), trial(), interrupt)
    assert left_over(tmp_path) == [planned(tmp_path)[0].folder]
    reports = run(settings(tmp_path), trial())
    uninterrupted = done[1]
    assert [(r["step"], r["score"]) for r in reports[:-1]] == [(r["step"], r["score"]) for r in uninterrupted[:EPOCHS]]
    assert Store(tmp_path).manifest(planned(tmp_path)[0])["resumed_epoch"] == 1  # the second was reported, not saved
    assert encoder_of(tmp_path) == encoder_of(done[0])
    assert left_over(tmp_path) == []


def test_a_killed_trial_goes_on_as_if_it_had_not_been(done: tuple[Path, Any], tmp_path: Path) -> None:
    """SIGKILL after the first epoch's checkpoint, in a process of its own."""
    settings(tmp_path)
    code = (
        "import sys; from pathlib import Path; from tests.tune_jobs.search.test_trial import run, settings, trial\n"
        "run(settings(Path(sys.argv[1])), trial(), lambda v: print(v['step'], flush=True) or sys.stdin.readline())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "2\n"  # at the second report the first checkpoint is there
        process.send_signal(signal.SIGKILL)
    (curve,) = settings(tmp_path).curves.glob("*")
    with curve.open("a") as file:
        file.write('{"step": 3, "sco')  # a kill may cut a line short
    (work,) = (tmp_path / "stages" / ".work").iterdir()
    reports = run(settings(tmp_path), trial())
    scores = [(r["step"], r["score"]) for r in done[1][:EPOCHS]]
    assert [(r["step"], r["score"]) for r in reports[:-1]] == scores
    assert [(r["step"], r["score"]) for r in Curve(curve).read()] == scores
    assert Store(tmp_path).manifest(planned(tmp_path)[0])["resumed_epoch"] == 1
    assert encoder_of(tmp_path) == encoder_of(done[0])
    assert reports[-1]["scores"] == {5: done[1][-1]["scores"][5]}
    assert left_over(tmp_path) == [work.name]  # of the killed process, swept by the next run


def test_a_training_that_fails_says_so_on_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (report,) = run(settings(tmp_path), trial(dataclasses.replace(ARM, batch_size=128)))
    assert report["event"] == "failed"
    assert report["error"].startswith("ConfigError: batch_size 128 exceeds the 32 training images")

    def diverge(*arguments: Any, **named: Any) -> None:
        (arguments[2] / "checkpoint.pt").touch()
        raise NonFiniteError("step 3: mse_4 is NaN;\nlower it")

    monkeypatch.setattr(pretraining, "pretrain", diverge)
    assert run(settings(tmp_path), trial()) == [
        {"event": "failed", "error": "NonFiniteError: step 3: mse_4 is NaN; lower it"}
    ]
    assert left_over(tmp_path) == stages(tmp_path, "pretrain") == []


def test_a_damaged_checkpoint_costs_the_training_and_not_the_trial(tmp_path: Path) -> None:
    shared = settings(tmp_path)
    folder = Store(tmp_path).train_folder(planned(tmp_path, epochs=1)[0])
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").write_bytes(b"half a checkpoint")
    reports = run(shared, trial(dataclasses.replace(ARM, epochs=1)))
    assert [r["event"] for r in reports] == ["evaluation", "end"]


def test_the_score_is_of_the_encoder_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`keep: best` leaves the encoder of another epoch than the last."""
    monkeypatch.setattr(pretraining, "best_epoch", lambda losses: 1)
    *evaluations, end = run(settings(tmp_path), trial(dataclasses.replace(ARM, keep="best")))
    assert (end["score"], end["ece"]) == (evaluations[0]["score"], evaluations[0]["ece"])
    assert len({e["ece"] for e in evaluations}) == EPOCHS


def test_a_curve_drops_what_lies_beyond_the_restored_epoch(tmp_path: Path) -> None:
    curve = Curve(tmp_path / "curves" / "key.jsonl")
    assert curve.read() == curve.cut(0) == []
    for step in (1, 2, 3):
        curve.append({"step": step, "score": step / 10})
    assert curve.cut(2) == curve.read() == [{"step": 1, "score": 0.1}, {"step": 2, "score": 0.2}]
    assert [path.name for path in curve.path.parent.iterdir()] == ["key.jsonl"]


def test_a_trial_computes_with_the_threads_that_it_asked_for_whatever_thread_it_is_in(done: tuple[Path, Any]) -> None:
    """Tune runs each trial in a new thread of a process that others used before."""
    counts: list[int] = []

    def own() -> None:
        torch.set_num_threads(3)
        arm = dataclasses.replace(ARM, epochs=1, learning_rate=0.1)
        run(settings(done[0]), trial(arm), lambda values: counts.append(torch.get_num_threads()))

    thread = threading.Thread(target=own)
    thread.start()
    thread.join()
    assert counts == [1, 1]
