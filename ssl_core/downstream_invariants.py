"""What must hold of fine-tuning, of the labels it sees, and of the weights that arms start from (section 3.3)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core import checkpoint, devices, finetuning, metrics
from ssl_core.batches import Batches
from ssl_core.checkpoint import state_digest
from ssl_core.classifier import Classifier, load_classifier, probabilities
from ssl_core.config import BarlowConfig, Mode, MseConfig, Precision
from ssl_core.data import splits
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.encoder import Encoder, build_encoder, load_encoder
from ssl_core.errors import NonFiniteError
from ssl_core.toy import ENCODER, Seen, Silent, Toy

#: The same sum in another batch or order differs by less.
CLOSE = 1e-6
SEEDS = 5  # tried until the best evaluation is not the last, else there is nothing to tell apart


def frozen_encoder_stays(toy: Toy) -> Seen:
    """The encoder that a linear run leaves is the one it was given, to the bit."""
    work, config = toy.workdir("linear"), toy.finetuning("linear", learning_rate=0.01)
    finetuning.finetune(config, toy.dataset, work, Silent(), encoder=toy.encoder, device=toy.device)
    given, left = (load_encoder(path)[0].state_dict() for path in (toy.encoder, work / "model.pt"))
    moved = [name for name, value in given.items() if not torch.equal(value, left[name])]
    born = Classifier(build_encoder(ENCODER, toy.dataset.channels, 0), 1, frozen=True, seed=config.seed).head.weight
    step = float((load_classifier(work / "model.pt")[0].head.weight - born).detach().abs().max())
    text = (
        f"the encoder's digest is {state_digest(given)[:12]} before and {state_digest(left)[:12]} after a linear run "
        f"that moved the classifier by up to {step:.2g}"
    )
    if moved:
        text += f"; {len(moved)} of {len(given)} tensors changed, e.g. {moved[0]}"
    return Seen(passed=state_digest(given) == state_digest(left) and step > 0, text=text)


def evaluated_weights_are_the_selected(toy: Toy) -> Seen:
    """The saved model gives the saved predictions; in the precision of training its score is the best of the run."""
    for seed in range(SEEDS):
        work = toy.workdir(f"selected{seed}")
        config = toy.finetuning("full", min_steps=6, evaluations=6, learning_rate=3e-3, seed=seed)
        finetuning.finetune(config, toy.dataset, work, Silent(), encoder=toy.encoder, device=toy.device)
        lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        scores = [line[f"val_{config.metric}"] for line in lines]
        if scores[-1] < max(scores):
            break
    else:
        return Seen(passed=False, text=f"in {SEEDS} runs the last evaluation was the best; this shows nothing")
    model, facts = load_classifier(work / "model.pt")
    batches = Batches(toy.dataset, tuple(facts["mean"]), tuple(facts["std"]), toy.device)
    with np.load(work / "predictions.npz", allow_pickle=False) as file:
        saved = dict(file)
    again = {split: _predict(model, batches, split, config.batch_size, "float32") for split in (VAL, TEST)}
    off = max(float(np.abs(again[s] - saved[f"{n}_probabilities"]).max()) for n, s in (("val", VAL), ("test", TEST)))
    stored = float(saved["val_score"])
    trained = _predict(model, batches, VAL, config.batch_size, config.precision)
    kept, best = (metrics.score(config.metric, saved["val_labels"], p, toy.dataset.task) for p in (again[VAL], trained))
    tolerance = CLOSE if toy.device.type == "cpu" else 1e3 * CLOSE
    return Seen(
        passed=off <= tolerance and abs(best - max(scores)) < CLOSE and abs(stored - kept) < CLOSE,
        text=f"model.pt gives the predictions to {off:.1g} and a validation {config.metric} of {kept:.4f} (stored "
        f"{stored:.4f}); in {devices.settled(toy.device, config.precision)}, as in training, of {best:.4f}: the best "
        f"of {len(scores)} evaluations had {max(scores):.4f}, the last {scores[-1]:.4f}",
    )


def fractions_augment_alike(toy: Toy) -> Seen:
    """A run on half the labels sees the views that a run on all of them sees of the same image."""
    pixels = np.array(toy.dataset.images[np.arange(len(toy.dataset))])
    pixels[toy.dataset.splits == TRAIN] = pixels[0]  # wherever a run looks, it looks at one image
    alike = dataclasses.replace(toy.dataset, images=pixels)
    seen = {f: _training_views(toy, alike, f) for f in (0.5, 1.0)}
    spread = {f: torch.stack(views).std(0).mean().item() for f, views in seen.items()}  # over steps
    pairs = list(zip(seen[0.5], seen[1.0], strict=False))
    off = max(float((half - full).abs().max()) for half, full in pairs)
    return Seen(
        passed=off < CLOSE and spread[1.0] > 0.1 and len(pairs) == 3,
        text=f"views of one image differ by {off:.1g} between half and all labels over {len(pairs)} steps; their "
        f"spread is {spread[0.5]:.3f} and {spread[1.0]:.3f} standard deviations",
    )


def _training_views(toy: Toy, dataset: Dataset, fraction: float) -> list[Tensor]:
    """What the encoder was trained on, step by step."""
    views: list[Tensor] = []
    config = toy.finetuning("scratch", fraction=fraction, min_steps=3, precision="float32")
    with _watched_encoders(lambda encoder, x: views.append(x.detach().float().cpu()) if encoder.training else None):
        finetuning.finetune(
            config, dataset, toy.workdir(f"views{fraction:g}"), Silent(), encoder=None, device=toy.device
        )
    return views[:3]


def arms_start_from_the_same_weights(toy: Toy) -> Seen:
    """All arms of a seed start from the same encoder, pretraining's from the same head and queue too."""
    losses: Mapping[str, Mapping[str, Any]] = {
        "moco": {},
        "+mse": {"mse": MseConfig(scale=0.25, pool="grid")},
        "+barlow": {"barlow": BarlowConfig(width=8, scale=5e-5)},
    }
    encoders: dict[str, str] = {}
    others: dict[str, str] = {}
    for arm, chosen in losses.items():
        moco = toy.run(toy.pretraining(seed=3, **chosen)).moco
        encoders[arm] = state_digest(moco.query.encoder.state_dict())
        encoders[f"{arm}, h"] = state_digest(moco.key.encoder.state_dict())
        queue = {"keys": moco.queue.keys, "codes": moco.queue.codes}
        others[arm] = state_digest({**moco.query.head.state_dict(), **queue})
    first: list[str] = []

    def remember(encoder: Encoder, _: Tensor) -> None:
        if not first:
            first.append(state_digest(encoder.state_dict()))

    with _watched_encoders(remember):
        config = toy.finetuning("scratch", min_steps=1, seed=3)
        finetuning.finetune(config, toy.dataset, toy.workdir("scratch"), Silent(), encoder=None, device=toy.device)
    encoders["scratch"] = first[0]
    apart = [arm for arm, digest in encoders.items() if digest != encoders["moco"]]
    apart += [f"head or queue of {arm}" for arm, digest in others.items() if digest != others["moco"]]
    text = f"encoder {encoders['moco'][:12]} in {', '.join(losses)} and scratch; head and queue {others['moco'][:12]}"
    return Seen(passed=not apart, text=f"others start elsewhere than moco: {', '.join(apart)}" if apart else text)


def label_fractions_are_nested(toy: Toy) -> Seen:
    """A smaller fraction's labels lie inside a larger one's, and every mode and arm of a seed sees the same ones."""
    encoder, channels, mean, std = load_encoder(toy.encoder)
    other = build_encoder(ENCODER, channels, 7)  # another arm's
    drawn: dict[float, list[set[str]]] = {}
    for fraction in (0.25, 0.5, 1.0):
        configs = [toy.finetuning(mode, fraction=fraction) for mode in get_args(Mode)]
        runs = [
            finetuning.Finetuning(config, toy.dataset, weights, (mean, std), toy.device)
            for config, weights in zip(configs, (encoder, other, other), strict=True)
        ]
        drawn[fraction] = [set(run.samples()["ids"]) for run in runs]
    sizes = [len(sets[0]) for sets in drawn.values()]
    alike = all(ids == sets[0] for sets in drawn.values() for ids in sets)
    nested = drawn[0.25][0] < drawn[0.5][0] < drawn[1.0][0]
    return Seen(
        passed=alike and nested,
        text=f"25, 50 and 100% see {sizes[0]}, {sizes[1]} and {sizes[2]} images, {'each' if nested else 'not'} inside "
        f"the next, {'the same' if alike else 'others'} in full, linear and scratch runs",
    )


def no_group_is_in_two_splits(_: Toy) -> Seen:
    """Splits that are made keep every group (patient) in one of them."""
    rng = np.random.default_rng(0)
    groups = np.array([f"patient{i}" for i in rng.integers(0, 60, 300)])
    labels = rng.integers(0, 2, 300)
    made = splits.make_splits(labels, groups, validation=0.2, test=0.2, seed=0)
    straddling = [str(g) for g in np.unique(groups) if len(np.unique(made[groups == g])) > 1]
    counts = np.bincount(made, minlength=3).tolist()
    text = f"300 images of {len(np.unique(groups))} groups became {counts[0]} to train, {counts[1]} and {counts[2]}"
    return Seen(
        passed=not straddling and min(counts) > 0,
        text=f"{text}; {len(straddling)} groups are in more than one" if straddling else f"{text}; none is in two",
    )


def finetuning_stops_at_nan(toy: Toy) -> Seen:
    """A fine-tuning whose loss is NaN stops, and leaves no result."""
    payload, work = checkpoint.load(toy.encoder), toy.workdir("nan")
    payload["state"]["conv1.weight"][:] = torch.nan
    checkpoint.save(work / "encoder.pt", payload)
    try:
        finetuning.finetune(
            toy.finetuning("full"), toy.dataset, work, Silent(), encoder=work / "encoder.pt", device=toy.device
        )
    except NonFiniteError as error:
        left = [name for name in ("model.pt", "predictions.npz", "rows.json") if (work / name).exists()]
        return Seen(passed=not left, text=f"weights of NaN stop with: {error}; left behind: {left or 'nothing'}")
    return Seen(passed=False, text="weights of NaN stop nothing")


@torch.no_grad()
def _predict(model: Classifier, batches: Batches, split: int, size: int, precision: Precision) -> Any:
    """Probabilities [n, K] of a split's images in row order, the encoder in `precision`."""
    devices.place(model, batches.device).eval()
    rows, parts = batches.dataset.rows(split), []
    for start in range(0, len(rows), size):
        with devices.autocast(batches.device, precision):
            embedding = model.encoder(batches.plain(rows[start : start + size]))[0]
        parts.append(probabilities(model.head(embedding), "binary"))
    return torch.cat(parts).cpu().numpy()


@contextmanager
def _watched_encoders(see: Callable[[Encoder, Tensor], object]) -> Iterator[None]:
    """Inside the block `see(encoder, images)` is called before any encoder looks at images."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, Encoder):
            see(module, args[0])

    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
