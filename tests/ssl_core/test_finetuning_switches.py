"""Every switch of fine-tuning shows in what a run leaves, and nothing but the switch does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_core import finetuning
from ssl_core.config import NO_AUGMENT, AugmentConfig, LabelsConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.encoder import Encoder, load_encoder
from ssl_core.finetuning import Finetuning
from ssl_core.metrics import score
from tests.ssl_core.finetuning_runs import CPU, config, curve, outputs, pretrained_encoder, run, with_task


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    return pretrained_encoder(tmp_path_factory.mktemp("pretrained") / "encoder.pt", digits)


def linear(digits: Dataset, pretrained: Path, **changes: Any) -> Finetuning:
    settings = config(mode="linear", **changes)
    return Finetuning(settings, digits, *finetuning._start(settings, digits, pretrained), CPU)


def test_adam_and_adamw_are_one_until_weights_decay(digits: Dataset, pretrained: Path, tmp_path: Path) -> None:
    def predicted(optimiser: str, decay: float) -> np.ndarray:
        folder = tmp_path / f"{optimiser}{decay}"
        settings = config(mode="linear", optimiser=optimiser, weight_decay=decay, learning_rate=0.05, evaluate="last")
        run(settings, digits, folder, pretrained)
        return outputs(folder)["test_probabilities"]

    plain = predicted("adamw", 0.0)
    assert np.array_equal(plain, predicted("adam", 0.0))
    decayed = [plain, predicted("adamw", 2.0), predicted("adam", 2.0)]
    assert all(abs(a - b).max() > 1e-3 for a, b in zip(decayed, decayed[1:] + decayed[:1], strict=True))


def test_a_constant_schedule_keeps_the_rate(digits: Dataset, pretrained: Path, tmp_path: Path) -> None:
    for schedule in ("constant", "cosine"):
        run(config(mode="linear", schedule=schedule, learning_rate=0.5), digits, tmp_path / schedule, pretrained)
    assert curve(tmp_path / "constant", "learning_rate") == [0.5, 0.5]
    assert curve(tmp_path / "cosine", "learning_rate") == pytest.approx([0.5 * 0.853553, 0.5 * 0.146447], rel=1e-5)


def test_under_a_moving_norm_statistics_move_and_weights_do_not(
    digits: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    run(config(mode="linear", frozen_norm="moving"), digits, tmp_path, pretrained)
    before, after = (load_encoder(path)[0] for path in (pretrained, tmp_path / "model.pt"))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new), name
    moved = after.state_dict()
    assert moved["bn1.num_batches_tracked"] - before.state_dict()["bn1.num_batches_tracked"] in (2, 4)  # an evaluation
    for name in ("bn1.running_mean", "layer4.1.bn2.running_var"):
        assert not torch.equal(before.state_dict()[name], moved[name]), name


def test_evaluation_moves_nothing_and_sees_statistics_as_they_are(digits: Dataset, pretrained: Path) -> None:
    run = linear(digits, pretrained, frozen_norm="moving")
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    first = run.predict(VAL)[0]
    assert np.array_equal(run.predict(VAL)[0], first)
    assert all(torch.equal(state[name], tensor) for name, tensor in run.model.state_dict().items())
    run.model.encoder.train()(run.batches.plain(digits.rows(TRAIN)))
    assert abs(run.predict(VAL)[0] - first).max() > 1e-4


def test_only_a_fixed_encoder_embeds_the_validation_images_once(
    digits: Dataset, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    forward = Encoder.forward

    def spy(self: Encoder, x: Tensor, *args: Any) -> Any:
        modes.append(self.training)
        return forward(self, x, *args)

    monkeypatch.setattr(Encoder, "forward", spy)
    run(config(mode="linear"), digits, tmp_path / "fixed", pretrained)
    assert modes == [False] * 6  # four steps, validation once, test once
    modes.clear()
    run(config(mode="linear", precision="bf16"), digits, tmp_path / "fixed in bf16", pretrained)
    assert modes == [False] * 7  # validation in bf16 to select, in float32 to be stored
    modes.clear()
    run(config(mode="linear", frozen_norm="moving"), digits, tmp_path / "moving", pretrained)
    assert modes == [True, True, False, True, True, False, False, False]


def test_a_small_fraction_is_only_flipped_where_asked(digits: Dataset, pretrained: Path, tmp_path: Path) -> None:
    """The first loss tells the views: weights have not moved yet."""
    strong = AugmentConfig(rotate=90.0, blur=1.0)

    def loss(fraction: float, small: str, augment: AugmentConfig) -> float:
        settings = {"fraction": fraction, "small_augment": small, "augment": augment, "min_steps": 1}
        folder = tmp_path / f"{fraction}{small}{augment.rotate}{augment.flip}"
        run(config(mode="linear", epochs=1, batch_size=64, **settings), digits, folder, pretrained)
        return curve(folder, "train_loss")[0]

    flip = AugmentConfig(flip=0.5, jitter=0.0, grey=0.0, blur=0.0)
    assert loss(0.5, "flip", strong) == loss(0.5, "same", flip) != loss(0.5, "same", strong)
    assert loss(0.5, "same", flip) != loss(0.5, "same", NO_AUGMENT)
    assert loss(1.0, "flip", strong) == loss(1.0, "same", strong)


def test_the_best_is_selected_by_the_score_that_select_names(
    digits: Dataset, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script of validation scores: AUROC is best first, macro F1 second, accuracy third."""
    label = digits.labels[digits.rows(VAL)]
    script = {"auroc": [0.9, 0.8, 0.7, 0.6], "f1_macro": [0.3, 0.5, 0.4, 0.2], "accuracy": [0.1, 0.2, 0.3, 0.3]}
    settings: dict[str, Any] = {"mode": "linear", "evaluations": 4, "patience": None}
    for select, at in (("metric", 0), ("f1_macro", 1), ("accuracy", 2)):
        with monkeypatch.context() as patched:
            seen: list[Any] = []  # what an evaluation would have stored

            def scores(self: Finetuning, seen: list[Any] = seen) -> dict[str, float]:
                seen.append(self.predict(VAL)[0])
                return {"val_loss": 1.0} | {f"val_{name}": values[len(seen) - 1] for name, values in script.items()}

            patched.setattr(Finetuning, "_validate", scores)
            run(config(**settings, select=select), digits, tmp_path / select, pretrained)
        found = outputs(tmp_path / select)
        assert [np.array_equal(found["val_probabilities"], p) for p in seen] == [i == at for i in range(4)]
        assert float(found["val_score"]) == score("auroc", label, seen[at], "multiclass")


def test_curves_hold_the_reported_score_and_the_selecting_one(
    digits: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    run(config(mode="linear", select="accuracy"), digits, tmp_path, pretrained)
    found = outputs(tmp_path)
    accuracy, auroc = curve(tmp_path, "val_accuracy"), curve(tmp_path, "val_auroc")
    best = accuracy.index(max(accuracy))
    assert float(found["val_score"]) == auroc[best]
    right = found["val_probabilities"].argmax(axis=1) == found["val_labels"]
    assert accuracy[best] == pytest.approx(right.mean())


def test_a_dropped_batch_is_missing_everywhere_and_changes_no_other_prediction(
    digits: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    labels = np.arange(len(digits.labels)) % 3
    settings: dict[str, Any] = {"mode": "linear", "batch_size": 10, "evaluate": "last"}
    assert digits.labels.tolist() == labels.tolist()  # so that ten images hold every class
    all_rows = run(config(**settings), digits, tmp_path / "all", pretrained)
    rows = run(config(**settings, drop_last=True), digits, tmp_path / "dropped", pretrained)
    assert {row["n"] for row in all_rows} == {16}
    assert {row["n"] for row in rows} == {10}
    whole, found = outputs(tmp_path / "all"), outputs(tmp_path / "dropped")
    for split, number in (("val", VAL), ("test", TEST)):
        assert found[f"{split}_ids"].tolist() == digits.ids[digits.rows(number)][:10].tolist()
        for name in ("ids", "groups", "labels", "probabilities"):
            assert np.array_equal(found[f"{split}_{name}"], whole[f"{split}_{name}"][:10]), name
    assert rows[0]["value"] == score("auroc", found["test_labels"], found["test_probabilities"], "multiclass")
    last = found["val_labels"], found["val_probabilities"]
    assert (
        float(found["val_score"]) == curve(tmp_path / "dropped", "val_auroc")[-1] == score("auroc", *last, "multiclass")
    )


def test_labels_are_drawn_as_the_configuration_says(
    digits: Dataset, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def subset(labels: Any, splits: Any, **how: Any) -> Any:
        asked.append(how)
        return np.flatnonzero((splits == TRAIN) & (labels != 2))

    monkeypatch.setattr(finetuning, "label_subset", subset)
    drawn = LabelsConfig(draw="random", unit="group", missing="warn", salt="arm")
    run(config(mode="linear", fraction=0.3, seed=5, labels=drawn), digits, tmp_path, pretrained)
    (how,) = asked
    assert (how["fraction"], how["seed"], how["config"]) == (0.3, 5, drawn)
    assert how["groups"].tolist() == digits.groups.tolist()
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert (samples["draw"], samples["unit"], samples["absent"]) == ("random", "group", ["class two"])
    assert len(samples["ids"]) == np.sum(digits.labels[digits.rows(TRAIN)] != 2)


def test_whole_groups_are_labelled_where_groups_are_the_unit(digits: Dataset, pretrained: Path) -> None:
    rows = linear(digits, pretrained, fraction=0.5, labels=LabelsConfig(unit="group")).rows
    groups, count = np.unique(digits.groups[rows], return_counts=True)
    assert 1 < len(groups) < 20
    assert set(count) == {2}


def test_the_interval_resamples_what_it_is_told_and_spreads_as_told(
    digits: Dataset, pretrained: Path, tmp_path: Path
) -> None:
    dataset = with_task(digits, "multilabel")

    def row(**changes: Any) -> dict[str, Any]:
        folder = tmp_path / "-".join(changes.values())
        return run(config(mode="linear", bootstrap=50, **changes), dataset, folder, pretrained)[0]

    groups, images = row(resample="groups"), row(resample="images")
    assert groups["value"] == images["value"]
    assert (groups["low"], groups["high"]) != (images["low"], images["high"])
    labels = row(resample="groups", paper_spread="labels")
    assert [labels[key] for key in ("value", "low", "high")] == [groups[key] for key in ("value", "low", "high")]
    assert (labels["paper_low"], labels["paper_high"]) != (groups["paper_low"], groups["paper_high"])


def test_confident_predictions_do_not_tie(digits: Dataset, pretrained: Path) -> None:
    """Logits of 18 to 36, which are all 1 as float32 probabilities: the score is that of the logits."""
    dataset = with_task(digits, "binary")
    run = linear(dataset, pretrained)
    with torch.no_grad():
        embedding = run._embed(dataset.rows(TEST), "float32")
        raw = run.model.head(embedding)
        low, high = float(raw.min()), float(raw.max())
        run.model.head.weight *= 18 / (high - low)
        run.model.head.bias.copy_(18 + (run.model.head.bias - low) * 18 / (high - low))
        logits = run.model.head(embedding)
    assert len(logits.sigmoid().unique()) == 1
    predicted = run.predict(TEST)[0]
    assert predicted.dtype == np.float64
    truth = dataset.labels[dataset.rows(TEST)]
    pairs = np.sign(logits.numpy()[truth == 1] - logits.numpy()[truth == 0].T)
    assert score("auroc", truth, predicted, "binary") == pytest.approx((pairs.mean() + 1) / 2)
