"""Layer-wise probing: how much of the task a linear classifier reads from each block (paper section 3.4.2)."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.config import ProbeConfig
from analysis.features import Features
from ssl_core import metrics
from ssl_core.classifier import classification_loss, probabilities
from ssl_core.data.dataset import TEST, VAL, Task
from ssl_core.data.labels import label_subset
from ssl_core.downstream import samples
from ssl_core.errors import DataError
from ssl_core.optimisation import learning_rate
from ssl_core.seeding import generator


def probe(config: ProbeConfig, features: Path, workdir: Path) -> list[dict[str, Any]]:
    """One linear classifier a block on pooled, frozen features; best epoch on validation, measured on test.

    Each channel is standardised by the mean and standard deviation of the labelled training images alone. AdamW with
    half a cosine from `learning_rate` to 0, from zero weights: the problem is convex, so the start does not matter.
    A block's numbers do not depend on which other blocks are probed.

    Rows: mode "probe", label_fraction, block and what `ssl_core.metrics.rows` gives. Also written to rows.json;
    predictions.npz holds `test_ids`, `test_groups`, `test_labels` and probabilities `block1`... [N, K], and the same of
    validation as `val_ids`, ..., `val_block1`...; samples.json the labelled images and how they were drawn.

    Raises DataError if validation or test images are missing, or the fraction is too small to hold every class.
    """
    found = Features.open(features)
    labelled = label_subset(
        found.labels,
        found.splits,
        fraction=config.fraction,
        seed=config.seed,
        config=config.labels,
        groups=found.groups,
    )
    held = {"val": found.rows(VAL), "test": found.rows(TEST)}
    for split, images in held.items():
        if len(images) == 0:
            raise DataError(f"{features} holds no {split} images; extract the features of all splits")
    arrays: dict[str, NDArray[Any]] = {}
    for split, images in held.items():
        for name in ("ids", "groups", "labels"):
            arrays[f"{split}_{name}"] = getattr(found, name)[images]

    rows: list[dict[str, Any]] = []
    for block in config.blocks:
        val, test = _probabilities(config, found, block, labelled, held["val"], held["test"])
        arrays |= {f"val_block{block}": val, f"block{block}": test}
        measured = metrics.rows(
            arrays["test_labels"],
            test,
            found.task,
            groups=arrays["test_groups"],
            metric=config.metric,
            replicates=config.bootstrap,
            seed=config.seed,
        )
        cell = {"mode": "probe", "label_fraction": config.fraction, "block": block}
        rows += [cell | {k: None if v != v else v for k, v in row.items()} for row in measured]  # NaN is not JSON
    np.savez(workdir / "predictions.npz", **arrays)  # type: ignore[arg-type]  # numpy types ** as its own flag
    seen = samples(
        config.labels,
        config.fraction,
        config.seed,
        labelled,
        ids=found.ids,
        labels=found.labels,
        class_names=found.class_names,
    )
    (workdir / "samples.json").write_text(json.dumps(seen))
    (workdir / "rows.json").write_text(json.dumps(rows, indent=1, allow_nan=False))
    return rows


def _probabilities(
    config: ProbeConfig,
    found: Features,
    block: int,
    labelled: NDArray[np.int64],
    val: NDArray[np.int64],
    test: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(validation, test) probabilities [N, K] of one block's classifier."""
    features = found.blocks[block]
    fitted = fit(config, found, np.asarray(features[labelled]), labelled, np.asarray(features[val]), val)
    return fitted.probabilities(features[val]), fitted.probabilities(features[test])


class Labelled(Protocol):
    """What a probe must know of the images beside their features: a dataset, or features that were extracted."""

    @property
    def labels(self) -> NDArray[Any]: ...  # [N] or [N, L]
    @property
    def task(self) -> Task: ...
    @property
    def n_outputs(self) -> int: ...


@dataclass(frozen=True)
class Probe:
    """A fitted linear classifier, and the standardisation of its inputs."""

    classifier: nn.Linear
    mean: NDArray[np.float32]  # (C,)
    std: NDArray[np.float32]
    task: Task

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Features (N, C) -> probabilities (N, K)."""
        return _predict(self.classifier, _standardised(features, self.mean, self.std), self.task)


def fit(
    config: ProbeConfig,
    found: Labelled,
    x: NDArray[np.float32],  # (n, C)
    labelled: NDArray[np.int64],
    x_val: NDArray[np.float32],  # (m, C)
    val: NDArray[np.int64],
) -> Probe:
    """Train on the features of the rows `labelled`; keep the epoch that is best on those of the rows `val`."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    std[std < 1e-6] = 1.0  # a channel that no labelled image moves stays as small as it is
    x_train, x_held = (_standardised(features, mean, std) for features in (x, x_val))
    return Probe(_train(config, found, x_train, labelled, x_held, val), mean, std, found.task)


def _standardised(x: NDArray[np.float32], mean: NDArray[np.float32], std: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy((x - mean) / std)


def _train(
    config: ProbeConfig,
    found: Labelled,
    x: Tensor,  # (n, C)
    labelled: NDArray[np.int64],
    x_val: Tensor,
    val: NDArray[np.int64],
) -> nn.Linear:
    """The classifier of the epoch with the best validation score, the earliest among equals."""
    labels, truth = torch.from_numpy(found.labels[labelled]), found.labels[val]
    classifier = nn.Linear(x.shape[1], found.n_outputs).requires_grad_(False)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    weight, bias = _AdamW(classifier.weight, config.weight_decay), _AdamW(classifier.bias, 0.0)
    starts = range(0, len(x), config.batch_size)
    step, best, kept = 0, -np.inf, copy.deepcopy(classifier)
    for epoch in range(config.epochs):
        order = torch.from_numpy(generator(config.seed, "probe", epoch).permutation(len(x)))
        for start in starts:
            batch = order[start : start + config.batch_size]
            rate = learning_rate(step, base=config.learning_rate, steps=config.epochs * len(starts))
            step += 1
            images = x.index_select(0, batch)
            error = loss_gradient(classifier(images), labels[batch], found.task)
            weight.step(error.t() @ images, rate, step)
            bias.step(error.sum(dim=0), rate, step)
        score = metrics.score(config.metric, truth, _predict(classifier, x_val, found.task), found.task)
        if score > best:
            best, kept = score, copy.deepcopy(classifier)
    return kept


def loss_gradient(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    """The gradient of `classification_loss`, [B, K]: probability less label, by the number of terms in its mean.

    Written out where it is the same bits: to record and replay the few operations of a step takes longer than they do.
    """
    match task:
        case "multiclass":
            free = logits.requires_grad_()
            return torch.autograd.grad(classification_loss(free, labels, task), free)[0]
        case "binary":
            return logits.sigmoid().sub_(labels[:, None]).div_(len(logits))
        case "multilabel":
            return logits.sigmoid().sub_(labels).div_(logits.numel())


class _AdamW:
    """`torch.optim.AdamW` for one tensor, to the bit: of a step of a linear layer the general one would be most."""

    def __init__(self, parameter: Tensor, weight_decay: float) -> None:
        self.parameter = parameter
        self.weight_decay = weight_decay
        self.mean, self.square = torch.zeros_like(parameter), torch.zeros_like(parameter)  # moving averages
        self.first, self.second = 0.9, 0.999  # the share of the last average that a step keeps

    def step(self, gradient: Tensor, rate: float, step: int) -> None:
        """The `step`th, from 1."""
        if self.weight_decay:
            self.parameter.mul_(1 - rate * self.weight_decay)
        self.mean.lerp_(gradient, 1 - self.first)
        self.square.mul_(self.second).addcmul_(gradient, gradient, value=1 - self.second)
        spread = self.square.sqrt().div_((1 - self.second**step) ** 0.5).add_(1e-8)
        self.parameter.addcdiv_(self.mean, spread, value=-rate / (1 - self.first**step))


@torch.inference_mode()
def _predict(classifier: nn.Linear, x: Tensor, task: Task) -> NDArray[np.float64]:
    return probabilities(classifier(x), task).numpy()
