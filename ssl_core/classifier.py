"""An encoder with a linear classifier on its embedding (paper section 3.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_core import checkpoint
from ssl_core.config import Precision
from ssl_core.data.dataset import Task
from ssl_core.encoder import Encoder, encoder_of, encoder_payload
from ssl_core.errors import CheckpointError
from ssl_core.initialisation import seeded


class Classifier(nn.Module):
    """Normalised images [B, C, H, W] -> logits [B, K].

    A frozen encoder's weights never change. It stays in eval mode whatever the mode asked, so that its state is the
    same to the last bit afterwards; under `moving_norm` it follows the mode, and in train mode batch norm's statistics
    follow the data (the authors' linear runs).
    """

    def __init__(self, encoder: Encoder, outputs: int, *, frozen: bool, seed: int, moving_norm: bool = False) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(not frozen)
        with seeded(seed, "classifier"):
            self.head = nn.Linear(encoder.dim, outputs)
        self.fixed = frozen and not moving_norm  # whether an image's embedding is the same whenever it is asked for

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images)[0])
        return logits

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.fixed:
            self.encoder.eval()  # else batch norm's statistics would follow the labelled samples
        return self


def classification_loss(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Mean cross-entropy of logits [B, K] with labels int64 [B] or uint8 [B, L]; sigmoid but for multiclass."""
    match task:
        case "multiclass":
            return F.cross_entropy(logits.float(), labels)
        case "binary":
            return F.binary_cross_entropy_with_logits(logits[:, 0].float(), labels.float())
        case "multilabel":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """[B, K] float64: softmax over classes, or sigmoid of each output.

    In float32 logits above 17 round to 1, and confident answers would tie where the logits have an order, which costs
    or wins AUROC. In float64 they keep it up to 36.
    """
    return logits.double().softmax(dim=1) if task == "multiclass" else logits.double().sigmoid()


def save_classifier(
    path: Path,
    model: Classifier,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    task: Task,
    class_names: tuple[str, ...],
    precision: Precision = "auto",
) -> None:
    """Write `model.pt`: an encoder file (`load_encoder` reads it) with a classifier, and what its outputs mean.

    `precision` is the encoder's when it was evaluated, not trained: in another one its probabilities are other numbers.
    """
    head = {name: tensor.detach().cpu() for name, tensor in model.head.state_dict().items()}
    payload = encoder_payload(model.encoder, mean, std)
    about = {"task": task, "class_names": list(class_names), "precision": precision}
    checkpoint.save(path, payload | {"head": head} | about)


def load_classifier(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """(model in eval mode on the CPU, {"mean", "std", "task", "class_names", "channels", "precision"}) of a `model.pt`.

    Files that do not say in which precision they were evaluated are old, and taken for `auto`: evaluation was then in
    that of the training, which most studies left at it.
    """
    payload = checkpoint.load(path)
    if "head" not in payload:
        raise CheckpointError(f"{path} holds no classifier; give the model.pt of a fine-tuning")
    model = Classifier(encoder_of(payload, path), len(payload["head"]["bias"]), frozen=False, seed=0)
    model.head.load_state_dict(payload["head"])
    facts = {key: payload[key] for key in ("mean", "std", "task", "class_names", "channels")}
    return model.eval(), facts | {"precision": payload.get("precision", "auto")}
