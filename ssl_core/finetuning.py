"""Downstream training: a classifier on a share of the labels, judged on the test split (paper section 3.3).

Selection looks at the validation split only. The weights that are saved and tested are those of the best evaluation,
or under `evaluate: last` of the last. A run keeps no checkpoint: it is short, and begun again it ends in the same bits.

Training, and the validation passes that select, run in `config.precision`: the curve in metrics.jsonl is in it. What is
kept of the selected weights, their probabilities and all scores, is computed anew in float32, so that an exported file
and another machine give the same.

Several workers share each batch and each split; batch norm sees whole batches, so they end where one worker ends.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_core import devices, distributed, metrics
from ssl_core.batch_norm import synchronise
from ssl_core.batches import Batches, Rows, statistics
from ssl_core.checkpoint import state_digest
from ssl_core.classifier import Classifier, classification_loss, probabilities, save_classifier
from ssl_core.config import FinetuneConfig, Precision
from ssl_core.data.dataset import TEST, VAL, Dataset
from ssl_core.data.labels import label_subset
from ssl_core.downstream import (
    augmentation,
    batch_stream,
    check_scored,
    evaluation_steps,
    planned_steps,
    samples,
    scored_rows,
    selects_by,
)
from ssl_core.encoder import Encoder, build_encoder, load_encoder
from ssl_core.errors import ConfigError, DataError, NonFiniteError, StageError
from ssl_core.initialisation import random_generator
from ssl_core.optimisation import adaptive, learning_rate, parameter_groups
from ssl_core.reporter import MetricsLog, Reporter
from ssl_core.seeding import derive
from ssl_core.terms import read_terms

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

#: The precision of the probabilities that are stored, whatever the training's.
EVALUATED: Precision = "float32"


def finetune(
    config: FinetuneConfig,
    dataset: Dataset,
    workdir: Path,
    reporter: Reporter,
    *,
    encoder: Path | None,
    device: str | torch.device | None = None,
) -> list[dict[str, Any]]:
    """Train on `config.fraction` of the training labels; return the test split's tidy rows.

    `encoder` is an `encoder.pt` for the modes `linear` (it stays as it is, to the last bit, unless `frozen_norm` is
    moving) and `full`, and None for `scratch`, which starts from the weights that pretraining of the same seed starts
    from. Leaves `model.pt`, `predictions.npz`, `metrics.jsonl`, `rows.json` and `samples.json` in `workdir`.
    predictions.npz holds ids, groups, labels and probabilities [n, K] float64 of the images scored, and `val_score`,
    what `metric` says of those of validation: of a run in float32 the selected evaluation's score in the curve, of one
    in bf16 near it. In an initialised torch.distributed group every worker calls this with the same arguments and a
    `workdir` of its own; worker 0 writes the files and gets the rows, the others get none.

    Raises ConfigError or DataError, before any training, where mode, encoder, dataset and metric do not fit together;
    NonFiniteError if a loss becomes NaN or infinite.
    """
    check_scored(config, dataset)
    start, stats = _start(config, dataset, encoder)
    run, writes = Finetuning(config, dataset, start, stats, devices.choose(device)), distributed.rank() == 0
    if writes:
        _write_json(workdir / "samples.json", run.samples())

    run.train(MetricsLog(workdir / "metrics.jsonl") if writes else None, reporter)
    arrays: dict[str, Any] = {}
    for name, split in (("val", VAL), ("test", TEST)):
        rows = run.scored[split]
        arrays |= {
            f"{name}_ids": dataset.ids[rows],
            f"{name}_groups": dataset.groups[rows],
            f"{name}_labels": dataset.labels[rows],
            f"{name}_probabilities": run.predict(split)[0],
        }
    if not writes:
        return []
    val_score = metrics.score(config.metric, arrays["val_labels"], arrays["val_probabilities"], dataset.task)
    np.savez(workdir / "predictions.npz", val_score=val_score, **arrays)
    about: dict[str, Any] = {"task": dataset.task, "class_names": dataset.class_names}
    save_classifier(workdir / "model.pt", run.model, *stats, **about, precision=EVALUATED)

    scores = intervals(config, dataset, run.scored[TEST], arrays["test_probabilities"])
    tidy = [{"mode": config.mode, "label_fraction": config.fraction, **_without_nan(row)} for row in scores]
    _write_json(workdir / "rows.json", tidy)
    return tidy


def intervals(
    config: FinetuneConfig, dataset: Dataset, rows: Rows, probabilities: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """Every score that the task has, with its intervals, of the probabilities [n, K] of the images `rows` [n]."""
    return metrics.rows(
        dataset.labels[rows],
        probabilities,
        dataset.task,
        groups=dataset.groups[rows],
        metric=config.metric,
        replicates=config.bootstrap,
        seed=derive(config.seed, "bootstrap"),
        resample=config.resample,
        paper_spread=config.paper_spread,
    )


class Finetuning:
    """A model in training on a labelled subset."""

    def __init__(
        self, config: FinetuneConfig, dataset: Dataset, encoder: Encoder, stats: Statistics, device: torch.device
    ) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.rows: Rows = label_subset(
            dataset.labels,
            dataset.splits,
            fraction=config.fraction,
            seed=config.seed,
            config=config.labels,
            groups=dataset.groups,
        )
        self.scored = {split: scored_rows(config, dataset, split) for split in (VAL, TEST)}
        self.selects_by = selects_by(config)
        self.batches = Batches(dataset, *stats, device)
        self.labels = torch.from_numpy(np.asarray(dataset.labels))  # int64 [N] or uint8 [N, L]
        model = Classifier(
            encoder,
            dataset.n_outputs,
            frozen=config.mode == "linear",
            moving_norm=config.frozen_norm == "moving",
            seed=config.seed,
        )
        if distributed.world() > 1:
            synchronise(model)
        self.model = devices.place(model, device)
        self.steps = planned_steps(config, len(self.rows))
        groups = parameter_groups([self.model], config.weight_decay, decay_norms=False)
        self.optimiser = adaptive(
            config.optimiser, groups, learning_rate=config.learning_rate, fused=devices.fuses(device)
        )
        # of a fixed encoder, by split and precision: they never change
        self._embeddings: dict[tuple[int, Precision], list[Tensor]] = {}

    def samples(self) -> dict[str, Any]:
        """Which labelled training samples this run sees."""
        config, dataset = self.config, self.dataset
        return samples(
            config.labels,
            config.fraction,
            config.seed,
            self.rows,
            ids=dataset.ids,
            labels=dataset.labels,
            class_names=dataset.class_names,
        )

    def train(self, log: MetricsLog | None, reporter: Reporter) -> None:
        """Train, evaluate `config.evaluations` times at most, put the weights to be tested back."""
        config, evaluations = self.config, set(evaluation_steps(self.steps, self.config.evaluations))
        best, stale = -math.inf, 0
        weights: dict[str, Tensor] = {}
        recent: list[dict[str, Tensor]] = []
        losses: list[float] = []
        began, seen = time.perf_counter(), 0
        batches = batch_stream(self.rows, config.batch_size, config.seed)
        for step in range(self.steps):
            rows = next(batches)
            recent.append({"train_loss": self.train_step(step, rows)})
            seen += len(rows)
            if self.device.type == "cpu" or step + 1 in evaluations:
                losses += [terms["train_loss"] for terms in read_terms(recent, step + 1 - len(recent))]
                recent = []
            if step + 1 not in evaluations:
                continue
            seconds = time.perf_counter() - began
            values = {
                "step": step + 1,
                "epoch": (step + 1) * len(rows) / len(self.rows),
                "train_loss": math.fsum(losses) / len(losses),
                **self._validate(),
                "learning_rate": self.optimiser.param_groups[0]["lr"],
                "views_per_second": seen / seconds,
            }
            if log:
                log.append(values)
            reporter.metrics(values)
            better = values[f"val_{self.selects_by}"] > best
            if better or config.evaluate == "last":
                weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            best, stale = (values[f"val_{self.selects_by}"], 0) if better else (best, stale + 1)
            if stale == config.patience:
                break
            losses, began, seen = [], time.perf_counter(), 0
        self._put_back(weights)

    def train_step(self, step: int, rows: Rows) -> Tensor:
        """One optimisation step on the global batch `rows`; its loss, still on the device.

        Several workers: of this worker's part, weighted so that the workers' mean is the global batch's.
        """
        config, own = self.config, rows[distributed.share(len(rows))]
        self.model.train()
        (view,) = self.batches.views(rows, augmentation(config), random_generator(config.seed, "views", step), 1)
        with devices.autocast(self.device, config.precision):
            embedding = self.model.encoder(view)[0]
        logits = self.model.head(embedding)  # the classifier never runs in reduced precision
        loss = classification_loss(logits, self._labels(own), self.dataset.task)
        loss = distributed.weighted(loss, len(own), len(rows))
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(step, base=config.learning_rate, steps=self.steps, schedule=config.schedule)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.average_gradients(self.model)
        self.optimiser.step()
        return loss.detach()

    def _validate(self) -> dict[str, float]:
        """Mean loss on the validation split, its score in the reported metric and in the one that selects.

        In the precision of the training, whose evaluations it compares.
        """
        predicted, loss = self.predict(VAL, self.config.precision)
        if not math.isfinite(loss):
            raise NonFiniteError(f"val_loss is {loss}; lower learning_rate, or set precision to float32")
        labels, task = self.dataset.labels[self.scored[VAL]], self.dataset.task
        wanted = dict.fromkeys((self.config.metric, self.selects_by))
        return {"val_loss": loss} | {f"val_{name}": metrics.score(name, labels, predicted, task) for name in wanted}

    @torch.no_grad()
    def predict(self, split: int, precision: Precision = EVALUATED) -> tuple[NDArray[np.float64], float]:
        """(probabilities [n, K] of a split's scored images, mean loss), in eval mode and without augmentation.

        The encoder runs in `precision`, the classifier in float32.
        """
        self.model.eval()
        task, outputs, losses = self.dataset.task, [], []
        for rows, embedding in self._embedded(split, precision):
            logits = distributed.gather(self.model.head(embedding), len(rows))
            losses.append(classification_loss(logits, self._labels(rows), task) * len(rows))
            outputs.append(logits)
        predicted = probabilities(torch.cat(outputs).cpu(), task)
        return predicted.numpy(), float(torch.stack(losses).sum()) / len(predicted)

    def _embedded(self, split: int, precision: Precision) -> Iterator[tuple[Rows, Tensor]]:
        """(rows, this worker's embeddings of them), a batch of a split's scored images at a time.

        A fixed encoder's are computed once in each precision.
        """
        rows, size = self.scored[split], self.config.batch_size
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        embeddings = (self._embed(part, precision) for part in parts)
        if not self.model.fixed:
            return zip(parts, embeddings, strict=True)
        known = split, devices.settled(self.device, precision)
        if known not in self._embeddings:
            self._embeddings[known] = list(embeddings)
        return zip(parts, self._embeddings[known], strict=True)

    def _embed(self, rows: Rows, precision: Precision) -> Tensor:
        """Embeddings [b, D] float32 of this worker's share of the images `rows`, as they are."""
        images = self.batches.plain(rows[distributed.share(len(rows))])
        with devices.inference(self.device, precision):
            embedding: Tensor = self.model.encoder(images)[0]
        return embedding

    def _labels(self, rows: Rows) -> Tensor:
        return devices.to_device(self.labels[torch.from_numpy(rows)], self.device)

    def _put_back(self, weights: Mapping[str, Tensor]) -> None:
        """Load the selected weights, and make sure that it is they that will be tested."""
        self.model.load_state_dict(weights)
        if state_digest(self.model.state_dict()) != state_digest(weights):
            raise StageError(
                "the model to be tested does not hold the selected weights; this is a bug, please report it"
            )


def _start(config: FinetuneConfig, dataset: Dataset, path: Path | None) -> tuple[Encoder, Statistics]:
    """(encoder to start from, mean and std of its inputs): the pretrained one's own, so that it sees what it knows."""
    if config.mode == "scratch":
        if path is not None:
            raise ConfigError(f"mode scratch starts from random weights, but an encoder was given ({path}); give none")
        return build_encoder(config.encoder, dataset.channels, config.seed), statistics(dataset, config.normalise)
    if path is None:
        raise ConfigError(f"mode {config.mode} needs a pretrained encoder; give an encoder.pt, or use mode scratch")
    encoder, channels, mean, std = load_encoder(path)
    if encoder.config != config.encoder:
        raise ConfigError(
            f"{path} holds {encoder.config}, the configuration asks for {config.encoder}; make them agree"
        )
    if channels != dataset.channels:
        raise DataError(f"{path} was trained on images of {channels} channels; {dataset.name} has {dataset.channels}")
    if config.normalise == ((mean, std) == statistics(dataset, normalise=False)):
        raise ConfigError(
            f"normalise is {config.normalise}, but {path} was pretrained with mean {mean} and std {std}; "
            "set normalise as in pretraining"
        )
    return encoder, (mean, std)


def _without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a bound that does not exist is null."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
