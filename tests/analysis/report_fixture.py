"""A made-up study as the report receives it: four arms, two seeds, every kind of stage. The numbers are synthetic."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis.config import DecisionConfig
from analysis.facts import Facts, Tracking
from analysis.tables import Finished

ARMS = ("moco", "moco_mse", "moco_barlow", "supervised")
TRACKING = Tracking(experiment="synthetic", study_key="0123456789abcdef", address="https://mlflow.example.org/lab")
FRACTIONS = (0.01, 0.06, 1.0)
SMALL = (0.01, 0.06)
#: True score of an arm per fraction, before the seeds' noise.
FULL = {
    "moco": (0.612, 0.781, 0.902),
    "moco_mse": (0.661, 0.803, 0.911),
    "moco_barlow": (0.648, 0.809, 0.907),
    "supervised": (0.553, 0.694, 0.893),
}
LINEAR = {"moco": 0.742, "moco_mse": 0.788, "moco_barlow": 0.771}
PRETRAINING = {"moco": 61.0, "moco_mse": 67.0, "moco_barlow": 148.0}  # seconds
REUSED = {"moco": -1, "moco_mse": 0.5, "moco_barlow": 1}
N_TEST = 297
N_VAL = 200
CLASSES = ("no finding", "effusion", "mass <2 cm & rising")


def study(folder: Path, *, arms: Sequence[str] = ARMS, seeds: Sequence[int] = (0, 1)) -> list[Finished]:
    """Finished stages of the study, with the files that the report opens below `folder`."""
    return list(_stages(folder, arms, seeds))


def facts(arms: Sequence[str] = ARMS, seeds: Sequence[int] = (0, 1), **changes: object) -> Facts:
    """What the study says about itself."""
    given: dict[str, object] = {
        "name": "synthetic",
        "description": "Made-up numbers in the shape of a real study, for tests of the report.",
        "question": "Do losses on intermediate blocks help when labels are few?",
        "command": "intermoco ablate quickstart --set dataset.name=synthetic",
        "dataset": dataset(),
        "arms": {arm: pretraining(arm) for arm in arms},
        "seeds": tuple(seeds),
        "versions": {"intermoco": "0.1.0", "python": "3.11.2", "torch": "2.15.0", "ray": "2.60.0"},
        "git_commits": ("0123456789abcdef0123456789abcdef01234567",),
        "failed": {},
        "metric": "auroc",
        "baseline": arms[0],
        "decision": DecisionConfig(),
        "promote": "intermoco promote quickstart --set dataset.name=synthetic",
    }
    return Facts(**{**given, **changes})  # type: ignore[arg-type]


def dataset() -> dict[str, object]:
    return {
        "name": "synthetic",
        "task": "multiclass",
        "class_names": list(CLASSES),
        "channels": 1,
        "size": 32,
        "n": {"train": 1300, "val": N_VAL, "test": N_TEST},
        "classes": {
            "train": dict(zip(CLASSES, (800, 300, 200), strict=True)),
            "val": dict(zip(CLASSES, (123, 46, 31), strict=True)),
            "test": dict(zip(CLASSES, (183, 68, 46), strict=True)),
        },
        "groups": {"train": 410, "val": 66, "test": 99},
        "splits": "made, seed 0, group-aware",
        "fingerprint": "5f" * 32,
    }


def pretraining(arm: str) -> dict[str, object] | None:
    """An arm's resolved configuration as the study hands it over; the parts that the page speaks of."""
    if arm == "supervised":
        return None
    blocks = {"blocks": [1, 2, 3, 4]}
    return {
        "encoder": {"arch": "resnet18", "stem": "small", "zero_init_residual": True},
        "moco": {"queue": 640, "temperature": 0.07, "momentum": 0.996, "dim": 128, "head": "mlp", "mask": "group"},
        "mse": {**blocks, "scale": 0.25, "pool": "gap"} if arm == "moco_mse" else None,
        "barlow": {**blocks, "scale": 5e-05, "width": 256, "lambd": 0.0051} if arm == "moco_barlow" else None,
        "augment": {"crop": [0.6, 1.0], "flip": 0.0, "rotate": 15.0, "jitter": 0.8, "grey": 0.2, "blur": 0.5},
        "epochs": 30,
        "batch_size": 128,
        "learning_rate": 0.03,
        "schedule": "cosine",
    }


def _stages(folder: Path, arms: Sequence[str], seeds: Sequence[int]) -> Iterator[Finished]:
    models = []
    for seed in seeds:
        for arm in arms:
            noise = np.random.default_rng([seed, ARMS.index(arm)])
            labels = {"arm": arm, "seed": seed}
            if arm != "supervised":
                yield _pretrain(folder, labels, noise)
                yield _finetune(folder, {**labels, "mode": "linear", "label_fraction": 1.0}, LINEAR[arm], noise)
                yield _probe(folder, labels, noise)
            for fraction, truth in zip(FRACTIONS, FULL[arm], strict=True):
                mode = "scratch" if arm == "supervised" else "full"
                tuned = {**labels, "mode": mode, "label_fraction": fraction}
                models.append(tuned)
                yield _finetune(folder, tuned, truth, noise)
                if fraction < 1 and mode == "full":
                    yield _reuse(folder, tuned, noise)
    yield _ks(folder, models)


def _stage(folder: Path, kind: str, labels: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> Finished:
    key = "-".join(str(v).replace(".", "p") for v in labels.values()) or "all"
    (folder / f"{kind}-{key}").mkdir(parents=True, exist_ok=True)
    seconds = {
        "pretrain": PRETRAINING.get(str(labels.get("arm")), 0.0),
        "finetune": 12.5,
        "probe": 2.25,
        "reuse": 4.0,
        "ks": 1.5,
    }[kind]
    return Finished(kind, key, labels, folder / f"{kind}-{key}", rows, seconds, seconds / 2)


def _pretrain(folder: Path, labels: Mapping[str, object], noise: np.random.Generator) -> Finished:
    stage = _stage(folder, "pretrain", labels, ())
    term = {"moco_mse": "mse", "moco_barlow": "barlow"}.get(str(labels["arm"]))
    with (stage.folder / "metrics.jsonl").open("w") as file:
        for epoch in range(1, 31):
            fall = math.exp(-epoch / 9)
            line = {"step": 10 * epoch, "epoch": float(epoch), "info_nce": 2.1 + 3.6 * fall + 0.08 * noise.normal()}
            for block in (1, 2, 3, 4) if term else ():
                line[f"{term}_{block}"] = (40.0 if term == "barlow" else 0.08) * (0.4 + fall) / block
            file.write(json.dumps(line) + "\n")
    return stage


def _scores(truth: float, noise: np.random.Generator, **extra: object) -> list[dict[str, object]]:
    """A run's rows: its score around `truth`, with a bootstrap interval."""
    rows = []
    for metric, shift in (("auroc", 0.0), ("f1_macro", -0.06)):
        value, half = truth + shift + 0.006 * float(noise.normal()), 0.024 * (1.1 - truth) / 0.3
        row = {"metric": metric, "value": value, "low": value - half, "high": value + half, "n": N_TEST}
        rows.append({**extra, **row, "paper_low": value - 0.001, "paper_high": value + 0.001})
    return rows


def _finetune(folder: Path, labels: Mapping[str, object], truth: float, noise: np.random.Generator) -> Finished:
    own = {"mode": labels["mode"], "label_fraction": labels["label_fraction"]}
    stage = _stage(folder, "finetune", labels, _scores(truth, noise, **own))
    seen = max(3, round(1300 * float(str(labels["label_fraction"]))))
    (stage.folder / "samples.json").write_text(json.dumps({"fraction": 1.0, "seed": 0, "ids": list(range(seen))}))
    _predict(stage.folder, truth, int(str(labels["seed"])))
    return stage


def _predict(folder: Path, truth: float, seed: int) -> None:
    """Predictions of a model that is right in a share `truth` of the images, and states more."""
    arrays: dict[str, np.ndarray] = {}
    for place, (split, n) in enumerate((("test", N_TEST), ("val", N_VAL))):
        noise = np.random.default_rng([round(1000 * truth), seed, place][: 2 + place])  # the scores' stays as it is
        labels = noise.integers(len(CLASSES), size=n)
        answers = np.where(noise.random(n) < truth, labels, (labels + 1) % len(CLASSES))
        stated = noise.uniform(0.45, 1.0, n)
        probabilities = np.repeat((1 - stated)[:, None] / (len(CLASSES) - 1), len(CLASSES), axis=1)
        probabilities[np.arange(n), answers] = stated
        ids = np.array([f"{split[0]}{i}" for i in range(n)])
        named = {"ids": ids, "groups": ids, "labels": labels, "probabilities": probabilities}
        arrays |= {f"{split}_{name}": values for name, values in named.items()}
    np.savez(folder / "predictions.npz", **arrays)


def _probe(folder: Path, labels: Mapping[str, object], noise: np.random.Generator) -> Finished:
    rows: list[dict[str, object]] = []
    for block in (1, 2, 3, 4):
        truth = LINEAR[str(labels["arm"])] - 0.055 * (4 - block)
        rows += _scores(truth, noise, block=block, label_fraction=1.0)
    return _stage(folder, "probe", {**labels, "mode": "probe", "label_fraction": 1.0}, rows)


def _reuse(folder: Path, labels: Mapping[str, object], noise: np.random.Generator) -> Finished:
    rows: list[dict[str, object]] = []
    for kernel, block in ((k, b) for k in ("linear", "rbf", "authors") for b in (1, 2, 3, 4)):
        saturated = kernel == "authors" and block == 4
        shift = 0.04 * REUSED[str(labels["arm"])] + 0.012 * float(noise.normal())
        value = 1.0 if saturated else 0.93 - 0.17 * (block - 1) + shift
        null = 0.999 if saturated else 0.02 if kernel != "authors" else 0.11 * block
        row: dict[str, object] = {"metric": f"cka_{kernel}", "block": block, "value": value, "n": N_TEST}
        row |= {"null": null, "null_high": min(1.0, null + 0.03), "off_diagonal": 0.99 if saturated else 0.2}
        row |= {"low": value - 0.01, "high": value + 0.01} if kernel == "authors" else {"low": None, "high": None}
        rows.append({**row, "uninformative": saturated, "label_fraction": labels["label_fraction"]})
    return _stage(folder, "reuse", labels, rows)


def _ks(folder: Path, models: Sequence[Mapping[str, object]]) -> Finished:
    rows: list[dict[str, object]] = []
    lines: list[tuple[object, ...]] = []
    top = next((m for m in models if (m["arm"], m["label_fraction"]) == ("moco_mse", 1.0)), models[-1])
    note = {"reference_arm": top["arm"], "reference_seed": top["seed"]}
    for model in models:
        position = FRACTIONS.index(float(str(model["label_fraction"])))
        lag = 1 - FULL[str(model["arm"])][position]
        values = {"ks": 0.7 * lag - 0.03 + 0.004 * int(str(model["seed"])), "ece": 0.2 * lag, "brier": 0.9 * lag}
        for metric, value in values.items():
            if metric == "ks" and model == top:
                continue
            floor = {"floor": 0.031, "floor_note": None} if metric == "ks" else {"floor": None, "floor_note": None}
            rows.append({**model, "metric": metric, "value": value, "n": N_TEST, **floor, **note})
        if model == top:
            continue
        for output, x in ((o, x) for o in range(len(CLASSES)) for x in np.linspace(0, 1, 101)):
            power = 1 + lag * (3 + output)
            label = (model["arm"], model["seed"], model["mode"], model["label_fraction"])
            lines.append((*label, output, float(x), float(x ** (0.4 * power)), float(x**0.4)))
    stage = _stage(folder, "ks", {}, rows)
    with (stage.folder / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", "mode", "label_fraction", "output", "x", "cdf", "reference_cdf"])
        writer.writerows(lines)
    return stage
