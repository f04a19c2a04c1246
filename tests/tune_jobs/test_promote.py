"""`intermoco promote` on really trained models: every gate fails once, aliases and tags, kills, and two at a time."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from crowning import crowned, killed_while_crowning
from killed import ended
from mlflow_store import database, mlflow_client
from promotable import LEAK, Trained, forge, swap, train

from analysis.calibration import ece
from analysis.predictions import read
from analysis.temperature import fit_temperature
from ssl_core.data.dataset import Dataset
from ssl_core.temperature import tempered
from tune_jobs import cli
from tune_jobs.ablate import replay
from tune_jobs.promotion.candidate import choose
from tune_jobs.promotion.place import held
from tune_jobs.promotion.promote import Asked, Promotion, promote, roll_back
from tune_jobs.promotion.registry import CHAMPION, COMPLETE, PREVIOUS, REPLACES, UNTIL, Registry

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Tests leave it as it is."""
    return train(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def wards(trained: Trained, tmp_path: Path, empty_database: Path) -> Trained:
    return trained.copy(tmp_path / "wards", empty_database)


def registry(wards: Trained) -> Registry:
    return Registry(mlflow_client(wards.root), "wards", "nobody")


def told(done: Promotion) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in done.gates}


def untouched(wards: Trained) -> None:
    """Nothing was registered, no file was left."""
    assert mlflow_client(wards.root).search_registered_models() == []
    assert list((wards.root / "wards" / "promotion").glob("*")) == []


@dataclass(frozen=True)
class Fitted:
    """A temperature of good's seed 5, the calibration error with it and without, and a bound between the two."""

    temperature: float
    scaled: float
    plain: float

    @property
    def bound(self) -> float:
        return (self.scaled + self.plain) / 2


def fitted(wards: Trained) -> Fitted:
    val = read(wards.folder("good", 5), "val")
    temperature = fit_temperature(val.labels, val.probabilities, val.task)
    scaled = tempered(val.probabilities, temperature, val.task)
    found = Fitted(temperature, *(ece(val.labels, p, val.task) for p in (scaled, val.probabilities)))
    assert found.scaled < found.plain - 0.05, "or a bound says the same of both"
    return found


# every gate fails once


def test_bounds_leaks_and_the_weak_class_each_stop_a_promotion(wards: Trained) -> None:
    strict = (f"promotion.ece={fitted(wards).bound}", "promotion.worst_class=0.999", "dataset.accept=[]")
    force = Asked(arm="good", seed=5, reason="force helps against none of these")
    done = promote(wards.found(*strict), wards.store, force)
    assert told(done) == {
        "champion": True, "calibration": False, "worst class": False, "leaks": False, "weights": True, "reload": True,
    }  # fmt: skip
    assert done.outcome == "refused"
    assert LEAK in next(gate.sentence for gate in done.gates if gate.name == "leaks")
    untouched(wards)


def test_weights_swapped_after_the_evaluation_are_not_promoted(wards: Trained) -> None:
    folder = wards.folder("good", 0)
    swap(folder, wards.folder("good", 1), hidden=False)
    done = promote(wards.found(), wards.store, Asked(arm="good", seed=0))
    assert {name for name, passed in told(done).items() if not passed} == {"weights", "reload"}
    assert "model.pt has the digest" in next(gate.sentence for gate in done.gates if gate.name == "weights")
    swap(folder, wards.folder("good", 1), hidden=True)
    done = promote(wards.found(), wards.store, Asked(arm="good", seed=0, reason="I know better"))
    assert [name for name, passed in told(done).items() if not passed] == ["reload"], "the forged manifest agrees"
    untouched(wards)


# aliases and tags


def test_promote_a_better_arm_and_roll_back(wards: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    first = promote(wards.found(), wards.store, Asked(arm="poor", seed=2))
    assert (first.outcome, first.version, first.former) == ("promoted", "1", None)
    found = registry(wards)
    assert found.aliases() == {CHAMPION: "1"}

    better = promote(wards.found(), wards.store, Asked())
    assert (better.outcome, better.version, better.former) == ("promoted", "2", "1")
    assert better.why.startswith("intermoco best recommends good")
    assert "exact p 0.0312: better" in better.gates[0].sentence
    assert found.aliases() == {CHAMPION: "2", PREVIOUS: "1"}

    chosen = choose(wards.found(), wards.store, arm=None, seed=None)
    tags = dict(found.versions()["2"].tags)
    run = mlflow_client(wards.root).get_run(found.versions()["2"].run)
    for name, value in {
        "study": "wards", "arm": "good", "seed": str(chosen.seed), "stage": chosen.stage.folder, "mode": "scratch",
        "data": chosen.data.folder, "fingerprint": chosen.data.config["fingerprint"], "git_commit": "c" * 40,
        "record": "wards/promotion/2", "complete": "true",
    }.items():  # fmt: skip
        assert tags[f"intermoco.{name}"] == value
        assert run.data.tags[f"intermoco.{name}"] == value
    assert tags["intermoco.code"].startswith("intermoco ")
    parent = mlflow_client(wards.root).get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["intermoco.kind"] == "study"
    assert tags[REPLACES] == "1"
    assert UNTIL in found.versions()["1"].tags

    assert better.record is not None
    assert better.record == wards.root / "wards" / "promotion" / "2"
    assert sorted(p.name for p in better.record.iterdir()) == [
        "calibration.svg", "card.md", "gates.json", "record.json",
    ]  # fmt: skip
    described = mlflow_client(wards.root).get_model_version("wards", "2").description
    assert described.startswith("# wards: good, seed")
    assert "Not for clinical use" in described

    before = database(wards.root)
    again = promote(wards.found(), wards.store, Asked())
    assert (again.outcome, again.version) == ("already", "2")
    replayed = replay(wards.found(), wards.store)
    assert replayed.created == 0
    assert database(wards.root) == before, "promoting the champion again, and `sync`, change nothing"

    back = promote(wards.found(), wards.store, Asked(arm="poor", seed=2))
    assert back.outcome == "refused"
    assert ": worse;" in back.gates[0].sentence
    assert roll_back(wards.found().study, wards.store, "worse on the ward").version == "1"
    assert found.aliases() == {CHAMPION: "1", PREVIOUS: "2"}
    assert roll_back(wards.found().study, wards.store, None).version == "2"
    assert found.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    assert capsys.readouterr().err == ""


# killed


def test_a_promotion_killed_anywhere_is_as_if_it_had_not_been_or_had_ended(
    wards: Trained, tmp_path: Path, empty_database: Path
) -> None:
    """Before any of the writes that make a run, its files, a version, and move the aliases; then all is done again."""
    crowned(wards, "poor")
    old, new = {CHAMPION: "1"}, {CHAMPION: "2", PREVIOUS: "1"}
    seen = []
    for call in (1, 3, 4, 5, 6, 7, 10, 11):
        place = wards.copy(tmp_path / f"killed-{call}", empty_database)
        shutil.copy(wards.root / "mlflow.db", place.root / "mlflow.db")
        assert ended(killed_while_crowning, place, "good", call) == -signal.SIGKILL, call
        aliases = registry(place).aliases()
        seen.append(aliases[CHAMPION])
        assert aliases in (old, {CHAMPION: "1", PREVIOUS: "1"}, new)

        if aliases != new:
            assert crowned(place, "good").outcome == "promoted"
        else:
            with held(place.found().study, place.store) as at:
                at.mend()
        after = registry(place)
        champion = after.champion()
        assert champion is not None
        assert champion.tags["intermoco.arm"] == "good"
        assert after.aliases()[PREVIOUS] == "1"
        assert all(v.complete for v in after.versions().values())
        client = mlflow_client(place.root)
        (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == "wards")
        runs = client.search_runs([experiment], "tags.`intermoco.kind` = 'promotion'")
        assert {r.data.tags.get(COMPLETE) for r in runs} == {"true"}
        assert {r.info.status for r in runs} == {"FINISHED"}
        assert {v.run for v in after.versions().values()} == {r.info.run_id for r in runs}
        records = {
            p.name: json.loads((p / "record.json").read_text()) for p in (place.root / "wards/promotion").iterdir()
        }
        assert ".new" not in records
        assert {r["version"] for r in records.values()} == set(after.versions())
    assert set(seen) == {"1", "2"}


# at the same time


def test_two_promotions_of_one_root_end_as_if_one_had_come_after_the_other(wards: Trained) -> None:
    """Through the command line. Whichever is first, the other is compared with it, and says so."""
    command = [sys.executable, "-m", "tune_jobs.cli", "promote", str(wards.yaml), "--output", str(wards.root), "--json"]
    both = [
        subprocess.Popen(
            [*command, "--arm", arm, "--seed", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for arm in ("good", "poor")
    ]
    said = [process.communicate(timeout=200) for process in both]
    good, poor = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert good["outcome"] == "promoted"
    assert any("waiting for another promotion" in err for _, err in said)
    aliases = registry(wards).aliases()
    if good["version"] == "1":  # it came first, so poor had to beat it
        assert (poor["outcome"], both[1].returncode) == ("refused", 1)
        assert aliases == {CHAMPION: "1"}
    else:
        assert (poor["outcome"], poor["version"], good["former"]) == ("promoted", "1", "1")
        assert aliases == {CHAMPION: "2", PREVIOUS: "1"}
    assert "pass  champion" in said[0][0]


# the command line


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, wards: Trained) -> Callable[..., int]:
    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["intermoco", "promote", str(wards.yaml), "--output", str(wards.root), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--force"], "--force: say why"),
        (["--force", "--reason", " "], "--force: say why"),
        (["--reason", "x"], "--reason: belongs to --force or --rollback"),
        (["--rollback", "--arm", "good"], "--rollback: goes with --reason alone"),
        (["--rollback"], "wards has no champion to go back to"),
        (["--export", "onnx,tflite"], "--export tflite: is no format; use onnx or pt2"),
        (["--arm", "goood"], "did you mean good"),
        (["--seed", "9"], "--seed 9: study wards has the seeds 0, 1, 2, 3, 4, 5"),
    ],
)
def test_bad_words_are_told_before_anything_is_done(
    words: list[str], says: str, command: Callable[..., int], wards: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*words) == 2
    assert says in capsys.readouterr().err
    untouched(wards)


def test_a_temperature_passes_the_calibration_gate_and_is_in_the_exported_files(
    command: Callable[..., int], wards: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model that was trained in bf16 where this machine multiplies it; the files compute in float32."""
    found, test = fitted(wards), read(wards.folder("good", 5), "test")
    settings = ("--set", f"promotion.ece={found.bound}", "--set", "promotion.temperature=true")
    assert command("--arm", "good", "--seed", "5", *settings, "--export", "onnx,pt2", "--json") == 0
    said = capsys.readouterr().out
    assert f"pass  calibration  calibration error (ECE) {found.scaled:.4f}" in said
    record = Path(json.loads(said.splitlines()[-1])["record"])
    tags = registry(wards).versions()["1"].tags
    assert (tags["intermoco.temperature"], tags["intermoco.scaled"]) == (repr(found.temperature), "true")
    card = (record / "card.md").read_text()
    assert f"divided by the temperature {found.temperature:.4g}" in card
    assert "Exported as `model.onnx`, `model.pt2`" in card

    dataset = Dataset.open(wards.store.find("data", wards.stage("good", 5).inputs["data"]))
    images = np.array(dataset.images[np.flatnonzero(np.isin(dataset.ids, test.ids))])
    assert dataset.ids[np.isin(dataset.ids, test.ids)].tolist() == test.ids.tolist()
    session = onnxruntime.InferenceSession(str(record / "model.onnx"), providers=["CPUExecutionProvider"])
    answers = {
        "onnx": session.run(["probabilities"], {"images": images})[0],
        "pt2": torch.export.load(record / "model.pt2").module()(torch.from_numpy(images)).numpy(),
    }
    expected = tempered(test.probabilities, found.temperature, test.task)
    for name, answer in answers.items():
        assert np.abs(answer - expected).max() < 1e-4, name


def test_a_file_that_does_not_answer_as_the_evaluation_did_stops_the_promotion(
    command: Callable[..., int], wards: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    """One test image's stored probability is off by 2e-4, and the manifest says so too: no gate sees it."""
    folder = wards.folder("good", 0)
    with np.load(folder / "predictions.npz") as file:
        arrays = dict(file)
    arrays["test_probabilities"][3, 1] += 2e-4
    np.savez(folder / "predictions.npz", **arrays)
    forge(folder, "predictions.npz")
    assert command("--arm", "good", "--seed", "0", "--export", "pt2") == 1
    said = capsys.readouterr()
    assert said.out.count("pass  ") == 6
    assert (
        "model.pt2 was not written: on 30 images its probabilities are up to 0.0002 from the evaluated ones" in said.err
    )
    untouched(wards)
