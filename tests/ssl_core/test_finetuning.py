"""Fine-tuning, run: what is frozen stays frozen, what is tested is what was selected, what is written fits together."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core import checkpoint, finetuning
from ssl_core.checkpoint import state_digest
from ssl_core.classifier import Classifier, load_classifier
from ssl_core.config import EncoderConfig, Precision
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset, Task
from ssl_core.downstream import batch_stream
from ssl_core.encoder import build_encoder, load_encoder, save_encoder
from ssl_core.errors import ConfigError, DataError, NonFiniteError, StageError
from ssl_core.finetuning import Finetuning
from ssl_core.metrics import score
from tests.ssl_core.finetuning_runs import CPU, ENCODER, config, curve, outputs, pretrained_encoder, run, with_task


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    return pretrained_encoder(tmp_path_factory.mktemp("pretrained") / "encoder.pt", digits)


def test_linear_mode_leaves_the_encoder_as_it_was_to_the_last_bit(
    digits: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    before = load_encoder(pretrained)[0].state_dict()
    run(config(mode="linear"), digits, tmp_path, pretrained)
    after = load_encoder(tmp_path / "model.pt")[0].state_dict()
    assert any(name.endswith("running_var") for name in before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("mode", ["full", "scratch"])
def test_full_and_scratch_train_weights_and_statistics(
    digits: Dataset, pretrained: Path, tmp_path: Path, mode: str
) -> None:
    path = pretrained if mode == "full" else None
    start = load_encoder(pretrained)[0] if mode == "full" else build_encoder(ENCODER, 1, 0)
    run(config(mode=mode), digits, tmp_path, path)
    after = load_encoder(tmp_path / "model.pt")[0].state_dict()
    for name in ("conv1.weight", "layer4.0.bn2.bias", "bn1.running_mean"):
        assert not torch.equal(after[name], start.state_dict()[name]), name


def test_scratch_starts_from_the_weights_that_pretraining_starts_from(digits: Dataset) -> None:
    start, _ = finetuning._start(config(mode="scratch", seed=3), digits, None)
    assert state_digest(start.state_dict()) == state_digest(build_encoder(ENCODER, 1, 3).state_dict())


def test_the_files_fit_together(digits: Dataset, pretrained: Path, tmp_path: Path) -> None:
    rows = run(config(fraction=0.5, mode="full", seed=2), digits, tmp_path, pretrained)
    assert {p.name for p in tmp_path.iterdir()} == {
        "model.pt",
        "predictions.npz",
        "metrics.jsonl",
        "rows.json",
        "samples.json",
    }
    found = outputs(tmp_path)
    for name, split in (("val", VAL), ("test", TEST)):
        of_split = digits.rows(split)
        assert found[f"{name}_ids"].tolist() == digits.ids[of_split].tolist()
        assert found[f"{name}_groups"].tolist() == digits.groups[of_split].tolist()
        assert found[f"{name}_labels"].tolist() == digits.labels[of_split].tolist()
        predicted = found[f"{name}_probabilities"]
        assert (predicted.dtype, predicted.shape) == (np.float64, (16, 3))
        np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-6)

    assert rows == json.loads((tmp_path / "rows.json").read_text())
    assert [r["metric"] for r in rows] == ["auroc", "f1_macro"]
    for row in rows:
        assert (row["mode"], row["label_fraction"], row["n"]) == ("full", 0.5, 16)
        expected = score(row["metric"], found["test_labels"], found["test_probabilities"], "multiclass")
        assert row["value"] == pytest.approx(expected, rel=1e-6)

    samples = json.loads((tmp_path / "samples.json").read_text())
    assert (samples["fraction"], samples["seed"], len(set(samples["ids"]))) == (0.5, 2, 20)
    assert set(samples["ids"]) <= set(digits.ids[digits.rows(TRAIN)])
    assert (samples["draw"], samples["unit"], samples["absent"]) == ("stratified", "image", [])

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    expected_keys = {"step", "epoch", "train_loss", "val_loss", "val_auroc", "learning_rate", "views_per_second"}
    assert set(lines[0]) == expected_keys
    assert float(found["val_score"]) == max(line["val_auroc"] for line in lines)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "full"},
        {"mode": "full", "precision": "bf16"},
        {"mode": "linear", "precision": "bf16"},
        {"mode": "linear", "frozen_norm": "moving"},
    ],
)
def test_the_saved_model_is_the_tested_one_and_carries_its_preprocessing(
    digits: Dataset, pretrained: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run(config(**changes), digits, tmp_path, pretrained)
    model, about = load_classifier(tmp_path / "model.pt")
    assert about == {
        "mean": list(digits.mean),
        "std": list(digits.std),
        "task": "multiclass",
        "class_names": ["zero", "one", "two"],
        "channels": 1,
        "precision": "float32",
    }
    pixels = torch.from_numpy(digits.images[digits.rows(TEST)]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = model((pixels - about["mean"][0]) / about["std"][0])
    np.testing.assert_allclose(logits.softmax(1).numpy(), outputs(tmp_path)["test_probabilities"], atol=1e-5)


@pytest.mark.parametrize(("evaluate", "precision"), [("best", "float32"), ("last", "float32"), ("best", "bf16")])
def test_the_weights_tested_are_those_of_the_best_evaluation_or_of_the_last(
    digits: Dataset, pretrained: Path, tmp_path: Path, evaluate: str, precision: Precision
) -> None:
    """The run is repeated by hand up to the evaluation in question: selected in its precision, tested in float32."""
    how = {"evaluate": evaluate, "precision": precision}
    settings = config(mode="linear", min_steps=8, evaluations=8, patience=None, learning_rate=0.1, **how)
    run(settings, digits, tmp_path, pretrained)
    scores = curve(tmp_path, "val_auroc")
    best = scores.index(max(scores))
    assert scores[best] > scores[7], "the best evaluation must not be the last, or this test shows nothing"
    tested = best if evaluate == "best" else 7

    encoder, stats = finetuning._start(settings, digits, pretrained)
    again = Finetuning(settings, digits, encoder, stats, CPU)
    for step, rows in enumerate(islice(batch_stream(again.rows, 16, 0), tested + 1)):
        again.train_step(step, rows)
    found = outputs(tmp_path)
    labels = found["val_labels"]
    assert score("auroc", labels, again.predict(VAL, precision)[0], "multiclass") == scores[tested]
    assert score("auroc", labels, found["val_probabilities"], "multiclass") == float(found["val_score"])
    assert float(found["val_score"]) == pytest.approx(scores[tested], abs=0.0 if precision == "float32" else 0.02)
    for name, split in (("val", VAL), ("test", TEST)):
        assert np.array_equal(again.predict(split, "float32")[0], found[f"{name}_probabilities"])
        same = np.array_equal(again.predict(split, precision)[0], found[f"{name}_probabilities"])
        assert same == (precision == "float32")
    saved = load_classifier(tmp_path / "model.pt")[0]
    assert state_digest(saved.state_dict()) == state_digest(again.model.state_dict())


@pytest.mark.parametrize("evaluate", ["best", "last"])
def test_weights_that_do_not_come_back_as_selected_stop_the_run(
    digits: Dataset, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate: str
) -> None:
    def load(self: Classifier, weights: Any) -> None:
        with torch.no_grad():
            self.head.bias += 1

    monkeypatch.setattr(Classifier, "load_state_dict", load)
    with pytest.raises(StageError, match="does not hold the selected weights"):
        run(config(mode="linear", evaluate=evaluate), digits, tmp_path, pretrained)


def test_training_stops_after_as_many_evaluations_without_a_better_score_as_patience_allows(
    digits: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    settings = {"mode": "linear", "min_steps": 20, "evaluations": 20, "learning_rate": 1e-9}
    run(config(**settings, patience=2), digits, tmp_path / "patient", pretrained)
    scores = curve(tmp_path / "patient", "val_auroc")
    assert len(scores) < 20
    assert max(scores[:-2]) >= max(scores[-2:])
    assert scores[-3] > max([0.0, *scores[:-3]])
    run(config(**settings, patience=None), digits, tmp_path / "endless", pretrained)
    assert len(curve(tmp_path / "endless", "val_auroc")) == 20


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "linear"},
        {"mode": "full"},
        {"mode": "linear", "frozen_norm": "moving", "optimiser": "adam", "evaluate": "last", "drop_last": True},
    ],
)
def test_a_rerun_is_bit_identical(digits: Dataset, pretrained: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # the global random state has no say
        run(config(**changes), digits, tmp_path / name, pretrained)
    for file in ("model.pt", "predictions.npz", "rows.json", "samples.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_every_task_is_trained_and_scored(digits: Dataset, pretrained: Path, tmp_path: Path, task: Task) -> None:
    dataset = with_task(digits, task)
    rows = run(config(mode="linear"), dataset, tmp_path, pretrained)
    predicted = outputs(tmp_path)["test_probabilities"]
    assert predicted.shape == (16, dataset.n_outputs)
    assert ((predicted > 0) & (predicted < 1)).all()
    assert rows[0]["metric"] == "auroc"
    assert 0 <= rows[0]["value"] <= 1


def test_a_model_can_learn_what_it_is_shown(digits: Dataset, tmp_path: Path) -> None:
    rows = run(config(mode="scratch", min_steps=30, learning_rate=3e-3), digits, tmp_path)
    assert rows[0]["value"] > 0.95


def test_small_fractions_train_at_least_min_steps_and_large_ones_their_epochs(
    digits: Dataset, pretrained: Path
) -> None:
    encoder, stats = finetuning._start(config(mode="linear"), digits, pretrained)

    def steps(**changes: Any) -> int:
        return Finetuning(config(mode="linear", **changes), digits, encoder, stats, CPU).steps

    assert steps(fraction=0.1, epochs=2, min_steps=9) == 9
    assert steps(fraction=1.0, epochs=5, min_steps=9) == 15  # 40 images: 2.5 batches of 16, rounded up


def test_the_pretrained_encoder_brings_its_own_normalisation(digits: Dataset, tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder.pt", build_encoder(ENCODER, 1, 0), (0.4,), (0.2,))
    run(config(mode="linear"), digits, tmp_path / "run", tmp_path / "encoder.pt")
    assert load_encoder(tmp_path / "run" / "model.pt")[2:] == ((0.4,), (0.2,))


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"mode": "scratch"}, True, "mode scratch starts from random weights.*give none"),
        ({"mode": "full"}, False, "mode full needs a pretrained encoder"),
        ({"mode": "linear", "normalise": False}, True, "set normalise as in pretraining"),
        ({"mode": "full", "encoder": EncoderConfig(arch="resnet34", stem="small")}, True, "resnet34.*make them agree"),
    ],
)
def test_mode_encoder_and_normalisation_must_fit(
    digits: Dataset, pretrained: Path, tmp_path: Path, changes: dict[str, Any], given: bool, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(config(**changes), digits, tmp_path, pretrained if given else None)


def test_an_encoder_of_other_channels_is_refused(digits: Dataset, tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder.pt", build_encoder(ENCODER, 3, 0), (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(DataError, match="3 channels; toy digits has 1"):
        run(config(), digits, tmp_path / "run", tmp_path / "encoder.pt")


@pytest.mark.parametrize(("split", "name"), [(VAL, "validation"), (TEST, "test")])
def test_a_split_on_which_the_metric_is_undefined_is_refused_before_training(
    digits: Dataset, pretrained: Path, tmp_path: Path, split: int, name: str
) -> None:
    lacking = dataclasses.replace(digits, labels=np.where(digits.splits == split, digits.labels % 2, digits.labels))
    with pytest.raises(DataError, match=f"{name} split of toy digits: auroc is undefined"):
        run(config(mode="linear"), lacking, tmp_path, pretrained)
    assert not list(tmp_path.iterdir())
    for changes in ({"metric": "f1"}, {"select": "f1"}):
        with pytest.raises(DataError, match=r"validation split.*metric f1 is not defined for multiclass"):
            run(config(mode="linear", **changes), digits, tmp_path, pretrained)
    assert not list(tmp_path.iterdir())


def test_a_non_finite_loss_stops_the_run(digits: Dataset, pretrained: Path, tmp_path: Path) -> None:
    payload = checkpoint.load(pretrained)
    payload["state"]["conv1.weight"][:] = torch.nan
    checkpoint.save(tmp_path / "encoder.pt", payload)
    with pytest.raises(NonFiniteError, match="train_loss is nan at step 0"):
        run(config(mode="linear"), digits, tmp_path / "run", tmp_path / "encoder.pt")
