"""Distance of a model's test probabilities from those of the best model trained on all labels (paper section 3.4.3)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.calibration import brier, ece
from analysis.config import KsConfig
from analysis.features import require_same_ids
from analysis.predictions import Predictions, read
from ssl_core.errors import DataError
from ssl_core.metrics import score

CURVE_POINTS = 201  # of a cumulative distribution written to curves.csv, at most


@dataclass(frozen=True)
class KsModel:
    """A fine-tuned model; `folder` holds its predictions.npz."""

    arm: str
    seed: int
    mode: str
    label_fraction: float
    folder: Path


def distance(p: NDArray[np.floating], q: NDArray[np.floating]) -> NDArray[np.float64]:
    """Two-sample Kolmogorov-Smirnov distance per output, in [0, 1]: p [N, K], q [M, K] -> [K].

    The greatest separation of the two empirical distribution functions, max over x of |F_p(x) - F_q(x)|.
    """
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise DataError(f"probabilities of shapes {p.shape} and {q.shape} do not have the same outputs")
    return np.array([_gaps(p[:, k], q[:, k])[1].max() for k in range(p.shape[1])])


def compare(config: KsConfig, models: Sequence[KsModel], workdir: Path) -> list[dict[str, Any]]:
    """KS distance to the reference, ECE and Brier score of every model, on the test images.

    The reference is the model of label fraction 1 with the best validation score on `config.metric`, whichever arm,
    mode and seed; among equals the first in order of (arm, mode, seed). It has no distance to itself, only ECE and
    Brier rows. The distance is averaged over outputs. `floor` is the same distance between the reference and the other
    seeds of its arm, mode and fraction, averaged: what differs by chance alone; None, with a `floor_note`, where there
    are none.

    Rows: arm, seed, mode, label_fraction, metric ("ks", "ece", "brier"), value, n (test images), floor, floor_note,
    reference_arm, reference_seed. Also written to rows.json; the distribution functions to curves.csv.

    Raises DataError if no model saw all labels, or if the models were not tested on the same images.
    """
    ordered = sorted(models, key=lambda m: (m.arm, m.mode, m.seed, m.label_fraction))
    reference = _reference(config, ordered)
    target = read(reference.folder, "test")
    predictions = {}
    for model in ordered:
        predictions[model] = read(model.folder, "test")
        require_same_ids(target.ids, predictions[model].ids, str(reference.folder), str(model.folder))
    distances = {
        model: float(distance(found.probabilities, target.probabilities).mean())
        for model, found in predictions.items()
        if model != reference
    }
    twins = [d for m, d in distances.items() if _replicate(m) == _replicate(reference)]
    floor = float(np.mean(twins)) if twins else None
    note = None if twins else f"{reference.arm} has one seed at label fraction 1, so chance alone cannot be measured"

    rows = []
    for model in ordered:
        found = predictions[model]
        calibration = ece(found.labels, found.probabilities, found.task, bins=config.calibration_bins)
        values = {"ks": distances.get(model), "ece": calibration}
        values["brier"] = brier(found.labels, found.probabilities, found.task)
        for metric, value in values.items():
            if value is None:
                continue
            of_ks = metric == "ks"
            rows.append(
                {
                    "arm": model.arm,
                    "seed": model.seed,
                    "mode": model.mode,
                    "label_fraction": model.label_fraction,
                    "metric": metric,
                    "value": value,
                    "n": len(found.ids),
                    "floor": floor if of_ks else None,
                    "floor_note": note if of_ks else None,
                    "reference_arm": reference.arm,
                    "reference_seed": reference.seed,
                }
            )
    (workdir / "rows.json").write_text(json.dumps(rows, indent=1, allow_nan=False))
    with (workdir / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "seed", "mode", "label_fraction", "output", "x", "cdf", "reference_cdf"])
        for model in distances:
            label = (model.arm, model.seed, model.mode, model.label_fraction)
            writer.writerows((*label, *point) for point in _curves(predictions[model], target))
    return rows


def _replicate(model: KsModel) -> tuple[str, str, float]:
    """What seeds of one model share."""
    return (model.arm, model.mode, model.label_fraction)


def _reference(config: KsConfig, ordered: Sequence[KsModel]) -> KsModel:
    candidates = [m for m in ordered if m.label_fraction == 1.0]
    if not candidates:
        seen = sorted({m.label_fraction for m in ordered})
        raise DataError(f"KS needs a model trained on all labels, there are fractions {seen}; add label fraction 1.0")
    scores = []
    for model in candidates:
        found = read(model.folder, "val")
        scores.append(score(config.metric, found.labels, found.probabilities, found.task))
    return candidates[int(np.argmax(scores))]  # the first among equals


def _gaps(p: NDArray[np.floating], q: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """All x where either distribution function of p [N], q [M] steps, ascending, and |F_p - F_q| there, [N + M]."""
    x = np.sort(np.concatenate([p, q]))
    return x, np.abs(_cdf(p, x) - _cdf(q, x))


def _cdf(sample: NDArray[np.floating], x: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.searchsorted(np.sort(sample), x, side="right") / len(sample)


def _curves(found: Predictions, target: Predictions) -> Iterator[tuple[int, float, float, float]]:
    """(output, x, cdf, reference cdf) at quantiles of both samples together, and where the two are furthest apart."""
    for k in range(target.probabilities.shape[1]):
        p, q = found.probabilities[:, k], target.probabilities[:, k]
        x, gaps = _gaps(p, q)
        at = np.linspace(0, len(x) - 1, CURVE_POINTS - 1).round().astype(np.int64)
        points = np.unique(x[np.append(at, gaps.argmax())])
        for row in zip(points.tolist(), _cdf(p, points).tolist(), _cdf(q, points).tolist(), strict=True):
            yield k, *row
