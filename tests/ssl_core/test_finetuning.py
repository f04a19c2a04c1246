"""Fine-tuning, run: what is frozen stays frozen, what is tested is what was selected, what is written fits together."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ssl_core import batches, checkpoint, finetuning
from ssl_core.checkpoint import state_digest
from ssl_core.classifier import Classifier, classification_loss, load_classifier, probabilities, save_classifier
from ssl_core.config import AugmentConfig, EncoderConfig, FinetuneConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset, Task
from ssl_core.encoder import build_encoder, load_encoder, save_encoder
from ssl_core.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from ssl_core.finetuning import Finetuning, batch_stream, evaluation_steps, finetune
from ssl_core.metrics import score

ENCODER = EncoderConfig(arch="resnet18", stem="small")
CPU = torch.device("cpu")


def config(**changes: Any) -> FinetuneConfig:
    settings: dict[str, Any] = {
        "encoder": ENCODER,
        "augment": AugmentConfig(flip=0.5),
        "epochs": 1,
        "min_steps": 4,
        "batch_size": 16,
        "evaluations": 2,
        "bootstrap": 20,
        "precision": "float32",
    }
    return FinetuneConfig(**settings | changes)


class Recorder:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def metrics(self, values: Mapping[str, float]) -> None:
        self.rows.append(dict(values))

    def checkpoint(self, path: Path) -> None:
        raise AssertionError(path)


def run(config: FinetuneConfig, dataset: Dataset, workdir: Path, encoder: Path | None = None) -> list[dict[str, Any]]:
    workdir.mkdir(exist_ok=True)
    return finetune(config, dataset, workdir, Recorder(), encoder=encoder, device="cpu")


def outputs(folder: Path) -> dict[str, Any]:
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """An encoder whose batch norm statistics are not those it was born with."""
    encoder = build_encoder(ENCODER, 1, 7)
    view = batches.Batches(digits, digits.mean, digits.std, CPU).plain(digits.rows(TRAIN))
    with torch.no_grad():
        for _ in range(3):
            encoder(view)
    path = tmp_path_factory.mktemp("pretrained") / "encoder.pt"
    save_encoder(path, encoder, digits.mean, digits.std)
    return path


def with_task(digits: Dataset, task: Task) -> Dataset:
    """The same images with the labels of another task."""
    match task:
        case "multiclass":
            return digits
        case "binary":
            return dataclasses.replace(
                digits, labels=(digits.labels == 1).astype(np.int64), class_names=("other", "one"), task=task
            )
        case "multilabel":
            labels = np.stack([digits.labels == 0, digits.labels != 1], axis=1).astype(np.uint8)
            return dataclasses.replace(digits, labels=labels, class_names=("zero", "not one"), task=task)


def test_linear_mode_leaves_the_encoder_as_it_was_to_the_last_bit(
    digits: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    before = load_encoder(pretrained)[0].state_dict()
    run(config(mode="linear"), digits, tmp_path, pretrained)
    after = load_encoder(tmp_path / "model.pt")[0].state_dict()
    assert any(name.endswith("running_var") for name in before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_eval_mode() -> None:
    model = Classifier(build_encoder(ENCODER, 1, 0), 3, frozen=True, seed=0).train()
    assert model.training
    assert not any(module.training for module in model.encoder.modules())
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())


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
        assert (predicted.dtype, predicted.shape) == (np.float32, (16, 3))
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

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    expected_keys = {"step", "epoch", "train_loss", "val_loss", "val_auroc", "learning_rate", "views_per_second"}
    assert set(lines[0]) == expected_keys
    assert float(found["val_score"]) == max(line["val_auroc"] for line in lines)


def test_the_saved_model_is_the_tested_one_and_carries_its_preprocessing(
    digits: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    run(config(mode="full"), digits, tmp_path, pretrained)
    model, about = load_classifier(tmp_path / "model.pt")
    assert about == {
        "mean": list(digits.mean),
        "std": list(digits.std),
        "task": "multiclass",
        "class_names": ["zero", "one", "two"],
        "channels": 1,
    }
    pixels = torch.from_numpy(digits.images[digits.rows(TEST)]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        logits = model((pixels - about["mean"][0]) / about["std"][0])
    np.testing.assert_allclose(logits.softmax(1).numpy(), outputs(tmp_path)["test_probabilities"], atol=1e-5)


def test_the_weights_tested_are_those_of_the_best_evaluation(digits: Dataset, pretrained: Path, tmp_path: Path) -> None:
    """The run is repeated up to the best evaluation by hand; the last weights are others."""
    settings = config(mode="linear", min_steps=8, evaluations=8, patience=8, learning_rate=0.1)
    run(settings, digits, tmp_path, pretrained)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["val_auroc"] for line in lines]
    best = scores.index(max(scores))
    assert best < 7, "the best evaluation must not be the last, or this test shows nothing"

    encoder, stats = finetuning._start(settings, digits, pretrained)
    again = Finetuning(settings, digits, encoder, stats, CPU)
    for step, rows in enumerate(islice(batch_stream(again.rows, 16, 0), best + 1)):
        again._step(step, rows)
    found = outputs(tmp_path)
    assert score("auroc", found["val_labels"], found["val_probabilities"], "multiclass") == max(scores)
    assert np.array_equal(again.predict(TEST)[0], found["test_probabilities"])
    saved = load_classifier(tmp_path / "model.pt")[0]
    assert state_digest(saved.state_dict()) == state_digest(again.model.state_dict())


def test_training_stops_after_as_many_evaluations_without_a_better_score_as_patience_allows(
    digits: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    run(
        config(mode="linear", min_steps=20, evaluations=20, patience=2, learning_rate=1e-9),
        digits,
        tmp_path,
        pretrained,
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["val_auroc"] for line in lines]
    assert len(scores) < 20
    assert max(scores[:-2]) >= max(scores[-2:])
    assert scores[-3] > max([0.0, *scores[:-3]])


@pytest.mark.parametrize("mode", ["linear", "full"])
def test_a_rerun_is_bit_identical(digits: Dataset, pretrained: Path, tmp_path: Path, mode: str) -> None:
    for name in ("first", "second"):
        torch.manual_seed(len(name))  # the global random state has no say
        run(config(mode=mode), digits, tmp_path / name, pretrained)
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


def test_losses_and_probabilities_are_the_formulas() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=rng)
    classes = torch.tensor([0, 2, 1, 1, 0])
    softmax = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    sigmoid = 1 / (1 + np.exp(-logits.numpy()))
    np.testing.assert_allclose(probabilities(logits, "multiclass"), softmax, rtol=1e-5)
    np.testing.assert_allclose(probabilities(logits, "multilabel"), sigmoid, rtol=1e-5)
    np.testing.assert_allclose(probabilities(logits[:, :1], "binary"), sigmoid[:, :1], rtol=1e-5)

    expected = -np.mean([math.log(softmax[i, c]) for i, c in enumerate(classes)])
    assert float(classification_loss(logits, classes, "multiclass")) == pytest.approx(expected, rel=1e-6)
    labels = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]], dtype=torch.uint8)
    truth = labels.numpy().astype(float)
    cross = -(truth * np.log(sigmoid) + (1 - truth) * np.log(1 - sigmoid))
    assert float(classification_loss(logits, labels, "multilabel")) == pytest.approx(cross.mean(), rel=1e-6)
    binary = classification_loss(logits[:, :1], labels[:, 0].long(), "binary")
    assert float(binary) == pytest.approx(cross[:, 0].mean(), rel=1e-6)


def test_the_classifier_depends_on_the_seed_alone() -> None:
    heads = [
        Classifier(build_encoder(ENCODER, 1, e), 3, frozen=False, seed=s).head for e, s in ((0, 0), (1, 0), (0, 1))
    ]
    assert isinstance(heads[0], nn.Linear)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (4, 4), (3, 4), (2, 64), (1, 1)])
def test_every_batch_is_full_and_every_sample_is_seen_equally_often(n: int, size: int) -> None:
    rows, full = np.arange(100, 100 + n), min(size, n)
    steps = n * 3
    seen = list(islice(batch_stream(rows, size, 0), steps))
    assert {len(batch) for batch in seen} == {full}
    stream = np.concatenate(seen)
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == rows.tolist()
    if n > 3:
        assert stream[:n].tolist() != stream[n : 2 * n].tolist()  # each epoch has its own order


@pytest.mark.parametrize(
    ("steps", "evaluations", "expected"),
    [(10, 2, [5, 10]), (3, 20, [1, 2, 3]), (7, 3, [2, 5, 7]), (1, 1, [1])],
)
def test_evaluations_are_spread_and_include_the_end(steps: int, evaluations: int, expected: list[int]) -> None:
    assert evaluation_steps(steps, evaluations) == expected


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
    with pytest.raises(DataError, match="metric f1 is not defined for multiclass"):
        run(config(mode="linear", metric="f1"), digits, tmp_path, pretrained)


def test_a_non_finite_loss_stops_the_run(digits: Dataset, pretrained: Path, tmp_path: Path) -> None:
    payload = checkpoint.load(pretrained)
    payload["state"]["conv1.weight"][:] = torch.nan
    checkpoint.save(tmp_path / "encoder.pt", payload)
    with pytest.raises(NonFiniteError, match="train_loss is nan at step 0"):
        run(config(mode="linear"), digits, tmp_path / "run", tmp_path / "encoder.pt")


def test_an_encoder_file_is_no_model(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"encoder\.pt holds no classifier"):
        load_classifier(pretrained)
    model = Classifier(build_encoder(ENCODER, 1, 0), 1, frozen=False, seed=0)
    save_classifier(tmp_path / "model.pt", model, (0.0,), (1.0,), task="binary", class_names=("no", "yes"))
    assert state_digest(load_classifier(tmp_path / "model.pt")[0].state_dict()) == state_digest(model.state_dict())
