"""The pretraining loop: batches of two views in, an encoder out (paper section 4.1).

It knows neither what runs it nor who records it. A step's randomness is derived from (seed, purpose, step), so a run
can resume after any step with no generator's state to keep, and any number of workers sees the same global batches.
Nor is there a gradient scaler: bfloat16 has the range of float32.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core import checkpoint, devices, distributed, resume, scales
from ssl_core.accumulation import Statistics, backward
from ssl_core.batches import Batches, Rows, statistics
from ssl_core.config import PretrainConfig
from ssl_core.data.dataset import TRAIN, VAL, Dataset
from ssl_core.due import Due
from ssl_core.encoder import Encoder, save_encoder
from ssl_core.errors import ConfigError, MemoryExhaustedError
from ssl_core.feasibility import check_pretrain, settle
from ssl_core.initialisation import random_generator
from ssl_core.moco import Moco
from ssl_core.optimisation import learning_rate, parameter_groups
from ssl_core.reporter import MetricsLog, Reporter
from ssl_core.seeding import generator
from ssl_core.terms import read_terms

log = logging.getLogger(__name__)

#: Says something of an encoder after so many epochs, e.g. how well it does on validation images.
Evaluate = Callable[[Encoder, int], Mapping[str, float]]

#: Steps between looks at the losses on an accelerator, where a look waits for all that was asked of it so far.
CHECK_EVERY = 50


def pretrain(
    config: PretrainConfig,
    dataset: Dataset,
    workdir: Path,
    reporter: Reporter,
    *,
    checkpoint_seconds: float = 60.0,
    device: str | torch.device | None = None,
    evaluate: Evaluate | None = None,
) -> None:
    """Pretrain on the training split; leave `encoder.pt`, `metrics.jsonl` and `checkpoint.pt` in `workdir`.

    If `workdir/checkpoint.pt` is there the run continues from it, and ends as if it had never stopped. A checkpoint is
    due after the first step `checkpoint_seconds` after the last one, where `reporter` says that it is urgent (see
    `ssl_core.due`), and at the end. `reporter.metrics` gets an epoch's means once an epoch; `kept_epoch` among them is
    the epoch whose encoder is left if the run ends there. In an initialised torch.distributed group every worker calls
    this with the same arguments and, on a resume, the same checkpoint in its `workdir`; worker 0 writes the files.

    On as many workers as before, a resumed run ends in the same bits on a CPU. On another number it goes on; a warning
    says what that changes.

    `evaluate` is called on worker 0 at each epoch's end with a copy of the query encoder in eval mode and the number of
    epochs done; what it returns joins that epoch's `reporter.metrics` and nothing else. The run is the same without it.

    Raises ConfigError if the configuration does not fit the dataset, CheckpointError if the checkpoint is damaged or
    another configuration's, NonFiniteError naming the step and the term if a loss becomes NaN or infinite.
    """
    run = Pretraining(config, dataset, devices.choose(device))
    due = Due(checkpoint_seconds, reporter.urgent, run.device)
    path, writes = workdir / "checkpoint.pt", distributed.rank() == 0
    if distributed.agree(path.exists()):
        run.restore(path)
    metrics = MetricsLog(workdir / "metrics.jsonl", run.history) if writes else None

    def save() -> None:
        run.save(path)
        distributed.barrier()
        reporter.checkpoint(path)
        due.saved()

    while not run.finished:
        while run.train_steps(due.after_step):
            save()
        values = run.end_epoch(run.close_epoch() | run.validate())
        if metrics:
            metrics.append(values)
        found = evaluate(run.current_encoder().eval(), run.epoch) if evaluate and writes else {}
        reporter.metrics({**values, **found})
        if due.now() or run.finished:
            save()

    if writes:
        save_encoder(workdir / "encoder.pt", run.kept_encoder(), run.batches.mean, run.batches.std)
    distributed.barrier()


class Pretraining:
    """A run's state after any step, and what happens in one."""

    def __init__(self, config: PretrainConfig, dataset: Dataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.rows: Rows = dataset.rows(TRAIN)
        self.config = config = settle(config, len(self.rows))
        for warning in check_pretrain(config, len(self.rows), distributed.world(), dataset.channels):
            log.warning(warning)
        self.batches = Batches(dataset, *statistics(dataset, config.normalise), device)
        self.codes = _codes(config, dataset)  # [N] of every image, whatever its split
        self.steps_per_epoch = len(self.rows) // config.batch_size  # an incomplete last batch is dropped
        self.epoch = 0  # epochs done
        self.step = 0  # optimisation steps done
        self.terms: list[dict[str, float]] = []  # of the steps of the epoch under way
        self.seconds = 0.0  # that these took
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None  # the encoder's state with `keep: best`

        self.moco = devices.place(Moco(config, dataset.channels), device)
        self.model = distributed.parallel(self.moco)
        groups = parameter_groups(
            (self.moco.query, self.moco.projectors), config.weight_decay, decay_norms=config.decay_norms
        )
        given = config.micro_batch
        self.pieces = math.ceil(config.batch_size / given) if isinstance(given, int) else 1  # of a batch, one a time
        self.optimiser = torch.optim.SGD(groups, lr=0.0, momentum=config.sgd_momentum, fused=devices.fuses(device))

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training split in a seeded order; the epoch's mean terms and speed."""
        self.train_steps()
        return self.close_epoch()

    def train_steps(self, pause: Callable[[], bool] = lambda: False) -> bool:
        """Train to the end of the epoch, or to the first step after which `pause` says so; whether it did.

        Their terms have been read, and found to be finite, when this returns.
        """
        self.settle_scales()
        self.moco.train()
        size, order, first = self.config.batch_size, self._order(), self.epoch * self.steps_per_epoch
        recent: list[dict[str, Tensor]] = []
        paused = False
        while not paused and self.step < first + self.steps_per_epoch:
            began, i = time.perf_counter(), self.step - first
            recent.append(self._step(self.step, order[i * size : (i + 1) * size]))
            self.step += 1
            last, paused = i + 1 == self.steps_per_epoch, pause()
            if self.device.type == "cpu" or len(recent) == CHECK_EVERY or last or paused:
                self.terms += read_terms(recent, self.step - len(recent))
                recent = []
            self.seconds += time.perf_counter() - began
        return paused

    def close_epoch(self) -> dict[str, float]:
        """Count the epoch whose steps are done; its mean terms and speed."""
        distributed.average_statistics(self.moco)
        self.epoch += 1
        terms, seconds = self.terms, self.seconds
        self.terms, self.seconds = [], 0.0
        means = {name: math.fsum(t[name] for t in terms) / len(terms) for name in terms[0]}
        return {
            "step": self.step,
            "epoch": float(self.epoch),
            **means,
            **{f"scale_{name}": scale for name, scale in self.scales.items()},
            **_ratios(means, self.scales),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            **({} if self.config.micro_batch is None else {"micro_batch": float(self.piece)}),
            "views_per_second": 2 * self.config.batch_size * self.steps_per_epoch / seconds,
            "epoch_seconds": seconds,
        }

    def _step(self, step: int, rows: Rows) -> dict[str, Tensor]:
        """One optimisation step on the global batch `rows`; its loss terms, still on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate(step)
        try:
            terms, keys, codes = self._backward(step, rows)
        except torch.OutOfMemoryError as error:
            raise MemoryExhaustedError(
                f"the accelerator's memory does not hold {self.piece} samples of the global batch of {len(rows)} on "
                f"{distributed.world()} workers: set pretrain.micro_batch to {max(2, self.piece // 2)} or auto, lower "
                f"batch_size, or set precision to bf16 ({' '.join(str(error).split())})"
            ) from error
        self.optimiser.step()
        self.moco.update_keys()
        self.moco.queue.enqueue(distributed.gather(keys, len(rows)), codes)
        return {name: term.detach() for name, term in terms.items()}

    def _backward(self, step: int, rows: Rows) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Leave the step's gradients in the parameters; loss terms, this worker's keys, all codes [B].

        Under `micro_batch: auto` a batch that the accelerator's memory does not hold is cut in twice as many pieces.
        """
        before = Statistics(self.moco) if self.config.micro_batch == "auto" else None
        while True:
            self.optimiser.zero_grad()
            try:
                if self.pieces == 1:
                    terms, keys, codes = self._forward(self.model, step, rows)
                    terms["loss"].backward()  # type: ignore[no-untyped-call]
                    return terms, keys, codes
                config, codes = self.config, self._codes_of(rows)
                views = self.batches.views(rows, config.augment, random_generator(config.seed, "views", step), 2)
                own, autocast = codes[distributed.share(len(rows))], devices.autocast(self.device, config.precision)
                return *backward(self.moco, views, own, step, len(rows), self.pieces, autocast), codes
            except torch.OutOfMemoryError:
                if before is None or self.piece <= 2:
                    raise
            before.put_back()  # the key encoder's have moved, maybe the query encoder's too
            self.pieces *= 2
            torch.cuda.empty_cache()
            log.warning("the accelerator's memory is full: from step %d on a step takes %d samples", step, self.piece)

    @property
    def piece(self) -> int:
        """Samples of the global batch whose activations are in memory at once."""
        return math.ceil(self.config.batch_size / self.pieces)

    def _forward(self, model: nn.Module, step: int, rows: Rows) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Loss terms and keys of this worker's part of the global batch `rows`, and all its codes [B]."""
        config, codes = self.config, self._codes_of(rows)
        view1, view2 = self.batches.views(rows, config.augment, random_generator(config.seed, "views", step), 2)
        with devices.autocast(self.device, config.precision):
            terms, keys = model(view1, view2, codes[distributed.share(len(rows))], step, len(rows))
        return terms, keys, codes

    def settle_scales(self) -> None:
        """Measure the scales that are `auto`, unless they are known already; see `ssl_core.scales`."""
        if None not in self.moco.scales.values():
            return
        size, order = self.config.batch_size, self._order()
        steps = min(scales.STEPS, self.steps_per_epoch)
        found = scales.measure(
            self.moco, lambda moco, i: self._forward(moco, i, order[i * size : (i + 1) * size]), steps
        )
        self.moco.scales = {name: found.get(name, scale) for name, scale in self.moco.scales.items()}

    @property
    def scales(self) -> dict[str, float]:
        """Scale of each block loss, by the term's name, once it is settled."""
        return {name: scale for name, scale in self.moco.scales.items() if scale is not None}

    def _order(self) -> Rows:
        """The training rows in the order of the epoch to come."""
        return generator(self.config.seed, "order", self.epoch).permutation(self.rows)

    def _codes_of(self, rows: Rows) -> Tensor:
        return devices.to_device(self.codes[torch.from_numpy(rows)], self.device)  # [B] int64

    def _learning_rate(self, step: int) -> float:
        config = self.config
        growth = config.batch_size / config.learning_rate_batch if config.learning_rate_batch else 1.0
        return learning_rate(
            step,
            base=config.learning_rate * growth,
            steps=config.epochs * self.steps_per_epoch,
            warmup=round(config.warmup_epochs * self.steps_per_epoch),
            schedule=config.schedule,
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss terms on the validation split against the queue as it is, `val_` before their names.

        Batch norm uses its running statistics; the views are the same after every epoch. Batches are of even size, at
        most `batch_size`. Nothing of the run changes by it, unless `validation` is moving: then h follows g and keys
        are queued after each batch, as in training.
        """
        self.settle_scales()
        self.moco.eval()
        config, rows = self.config, self.dataset.rows(VAL)
        parts: list[dict[str, Tensor]] = []
        for i, batch in enumerate(np.array_split(rows, math.ceil(len(rows) / config.batch_size))):
            view1, view2 = self.batches.views(batch, config.augment, random_generator(config.seed, "val-views", i), 2)
            codes = self._codes_of(batch)
            own = codes[distributed.share(len(batch))]
            with devices.autocast(self.device, config.precision):
                terms, keys = self.moco(view1, view2, own, i, len(batch))
            parts.append({f"val_{name}": term * (len(batch) / len(rows)) for name, term in terms.items()})
            if config.validation == "moving":
                self.moco.update_keys()
                self.moco.queue.enqueue(distributed.gather(keys, len(batch)), codes)
        values = read_terms(parts, self.epoch * self.steps_per_epoch)
        return {name: math.fsum(part[name] for part in values) for name in values[0]}

    def end_epoch(self, values: dict[str, float]) -> dict[str, float]:
        """Enter an epoch's metrics in the history, `kept_epoch` with them; keep the encoder if it is to be kept."""
        best = best_epoch([*(row["val_loss"] for row in self.history), values["val_loss"]])
        if self.config.keep == "best" and best == self.epoch:
            state = self.moco.query.encoder.state_dict()
            self.best = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
        kept = best if self.config.keep == "best" else self.epoch
        self.history.append({**values, "kept_epoch": float(kept)})
        return self.history[-1]

    @property
    def finished(self) -> bool:
        """Whether no epoch is left, or with `keep: saturated` the validation loss falls no more."""
        losses = [row["val_loss"] for row in self.history]
        stop = self.config.keep == "saturated" and saturated(losses, self.config.saturation)
        return stop or self.epoch == self.config.epochs

    def kept_encoder(self) -> Encoder:
        """The encoder that the run leaves: of the last epoch, or with `keep: best` of the best."""
        encoder = self.current_encoder()
        if self.best is not None:
            encoder.load_state_dict(self.best)
        return encoder

    def current_encoder(self) -> Encoder:
        """A copy of the query encoder as it is: whatever becomes of it, the run goes on as if nobody had asked."""
        return copy.deepcopy(self.moco.query.encoder)

    def save(self, path: Path) -> None:
        """Everything that `restore` needs to go on as if the run had not stopped. All workers call it, worker 0 writes.

        Between two epochs, or while one is under way, whose steps are done then. `statistics` holds batch norm's
        running statistics [workers, C], in which workers differ until an epoch ends.
        """
        norms = {name: distributed.gather(value[None]) for name, value in _statistics(self.moco)}
        if distributed.rank() > 0:
            return
        payload = {
            "config": self._identity(),
            "workers": distributed.world(),
            "moco": self.moco.state_dict(),
            "statistics": norms if distributed.world() > 1 else {},
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "terms": list(self.terms[0]) if self.terms else [],
            "values": torch.tensor([list(t.values()) for t in self.terms], dtype=torch.float64),  # [steps, terms]
            "seconds": self.seconds,
            "history": self.history,
            "scales": self.moco.scales,
            "best": self.best,
            "pieces": self.pieces,
        }
        checkpoint.save(path, payload)

    def restore(self, path: Path) -> None:
        """Continue from `path`, which must have been written under this configuration and on this dataset.

        Another number of workers than wrote it starts from the mean of their batch norm statistics.
        """
        payload = resume.read(path, self._identity())
        self.moco.load_state_dict(payload["moco"])
        if payload["workers"] != distributed.world():
            log.warning(resume.other_workers(path, payload["workers"], self.config))
        for name, value in _statistics(self.moco):
            if name in payload["statistics"]:
                found = payload["statistics"][name]  # [workers, C]
                same = payload["workers"] == distributed.world()
                value.copy_(found[distributed.rank()] if same else found.mean(dim=0))
        self.optimiser.load_state_dict(payload["optimiser"])
        self.epoch, self.step, self.history = payload["epoch"], payload["step"], payload["history"]
        self.terms = [dict(zip(payload["terms"], row, strict=True)) for row in payload["values"].tolist()]
        self.seconds = payload["seconds"]
        self.moco.scales, self.best, self.pieces = payload["scales"], payload["best"], payload["pieces"]

    def _identity(self) -> dict[str, Any]:
        return {**asdict(self.config), "dataset": self.dataset.fingerprint}


def _statistics(moco: Moco) -> list[tuple[str, Tensor]]:
    """Batch norm's running means and variances [C], with their names."""
    return [(n, b) for n, b in moco.named_buffers() if n.endswith(("running_mean", "running_var"))]


def best_epoch(losses: Sequence[float]) -> int:
    """The epoch (from 1) with the lowest of the epochs' validation losses, the first of equals."""
    return int(np.argmin(losses)) + 1


def saturated(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` epochs brought no lower validation loss."""
    return len(losses) > 0 and len(losses) - best_epoch(losses) >= patience


def _ratios(means: Mapping[str, float], scales: Mapping[str, float]) -> dict[str, float]:
    """Scaled block losses by InfoNCE: section 4.1 chooses scales that keep them of the same order of magnitude."""
    if means["info_nce"] == 0:
        return {}
    return {f"ratio_{name}": scale * means[name] / means["info_nce"] for name, scale in scales.items()}


def _codes(config: PretrainConfig, dataset: Dataset) -> Tensor:
    """A number for each image [N] int64, equal where `moco.mask` says that one is no negative of the other."""
    if config.moco.mask == "group":
        if len(np.unique(dataset.groups[dataset.rows(TRAIN)])) < 2:
            raise ConfigError(
                f"all training images of {dataset.name} are of one group, so moco.mask group leaves no negatives; "
                "set moco.mask to image"
            )
        return torch.from_numpy(np.unique(dataset.groups, return_inverse=True)[1].astype(np.int64))
    return torch.arange(len(dataset))
