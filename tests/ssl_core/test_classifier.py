"""The classifier: what a frozen encoder may do, and outputs that are the formulas, near certainty too."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from ssl_core.checkpoint import state_digest
from ssl_core.classifier import Classifier, classification_loss, load_classifier, probabilities, save_classifier
from ssl_core.config import EncoderConfig
from ssl_core.encoder import build_encoder, save_encoder
from ssl_core.errors import CheckpointError
from ssl_core.metrics import score

ENCODER = EncoderConfig(arch="resnet18", stem="small")


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_eval_mode() -> None:
    model = Classifier(build_encoder(ENCODER, 1, 0), 3, frozen=True, seed=0).train()
    assert model.training
    assert not any(module.training for module in model.encoder.modules())
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.head.parameters())


def test_under_a_moving_norm_a_frozen_encoder_follows_the_mode_and_still_gets_no_gradient() -> None:
    model = Classifier(build_encoder(ENCODER, 1, 0), 3, frozen=True, moving_norm=True, seed=0).train()
    assert all(module.training for module in model.encoder.modules())
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert not any(module.training for module in model.eval().modules())


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


def test_an_encoder_file_is_no_model(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder.pt", build_encoder(ENCODER, 1, 0), (0.0,), (1.0,))
    with pytest.raises(CheckpointError, match=r"encoder\.pt holds no classifier"):
        load_classifier(tmp_path / "encoder.pt")
    model = Classifier(build_encoder(ENCODER, 1, 0), 1, frozen=False, seed=0)
    save_classifier(tmp_path / "model.pt", model, (0.0,), (1.0,), task="binary", class_names=("no", "yes"))
    assert state_digest(load_classifier(tmp_path / "model.pt")[0].state_dict()) == state_digest(model.state_dict())


def test_confident_answers_keep_their_order_so_that_auroc_is_that_of_the_raw_logits() -> None:
    logits = torch.tensor([20.0, 30.0, 40.0, 25.0, 35.0, 18.0, -30.0, -35.0, 0.0])
    labels = np.array([0, 1, 1, 1, 0, 0, 1, 0, 0])
    expected = roc_auc_score(labels, logits.numpy())
    tied = roc_auc_score(labels, logits.sigmoid().numpy())
    assert abs(tied - expected) > 0.01, "float32 must tie, or this test shows nothing"
    for task, columns in (("binary", logits[:, None]), ("multilabel", torch.stack([logits, -logits], 1))):
        predicted = probabilities(columns, task).numpy()
        assert len(np.unique(predicted[:, 0])) == len(logits)
        truth = labels if task == "binary" else np.stack([labels, 1 - labels], 1)
        assert score("auroc", truth, predicted, task) == pytest.approx(expected)
    softmax = probabilities(torch.stack([logits, torch.zeros(9)], 1), "multiclass").numpy()
    assert score("auroc", 1 - labels, softmax, "multiclass") == pytest.approx(expected)
