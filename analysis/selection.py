"""What a search judges an encoder by: a linear probe on validation images. Test images are never opened.

Selection looks at validation only, so that the test set can still say whether what was selected holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analysis import calibration
from analysis.config import ProbeConfig
from analysis.features import BATCH_PIXELS
from analysis.probing import fit
from ssl_core import devices, metrics
from ssl_core.batches import Batches, statistics
from ssl_core.data.dataset import VAL, Dataset
from ssl_core.data.labels import label_subset
from ssl_core.encoder import Encoder, global_average, load_encoder
from ssl_core.errors import DataError, NonFiniteError
from ssl_core.pretraining import Evaluate

#: Images in a batch at most, where `BATCH_PIXELS` allows as many.
BATCH = 512


def score(
    config: ProbeConfig, encoder: Path, dataset: Dataset, workdir: Path, device: str | torch.device | None = None
) -> None:
    """Leave the `validation_scores` of an `encoder.pt` in `workdir`."""
    net, _, mean, std = load_encoder(encoder)
    target = devices.choose(device)
    found = validation_scores(devices.place(net, target), mean, std, dataset, config, target)
    write_scores(found, config, dataset, workdir)


def write_scores(found: Mapping[str, float], config: ProbeConfig, dataset: Dataset, workdir: Path) -> None:
    """Leave `rows.json` in `workdir`: a row for the score and one for ece, mode "probe", split "val"."""
    cell = {"mode": "probe", "split": "val", "label_fraction": config.fraction, "block": config.blocks[0]}
    n = len(dataset.rows(VAL))
    measured = {config.metric: found["score"], "ece": found["ece"]}
    rows = [{**cell, "metric": metric, "value": value, "n": n} for metric, value in measured.items()]
    (workdir / "rows.json").write_text(json.dumps(rows, indent=1, allow_nan=False))


def read_scores(folder: Path) -> dict[str, float]:
    """The scores that `write_scores` left in `folder`."""
    first, second = json.loads((folder / "rows.json").read_text())
    return {"score": first["value"], "ece": second["value"]}


def evaluation(dataset: Dataset, config: ProbeConfig, device: torch.device, *, normalise: bool) -> Evaluate:
    """`validation_scores` for `ssl_core.pretraining.pretrain` to call, which normalises the images if told to."""
    mean, std = statistics(dataset, normalise)
    return lambda encoder, _: validation_scores(encoder, mean, std, dataset, config, device)


def validation_scores(
    encoder: Encoder,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dataset: Dataset,
    config: ProbeConfig,
    device: torch.device,
) -> dict[str, float]:
    """How well a linear classifier of one block's pooled features does on the validation images.

    It is trained as a probe of `analysis.probing` is, on the labels that `config.fraction` of the training images may
    show, and its best epoch is kept; `encoder` is in eval mode on `device` and stays as it is. Only those training
    images and the validation images are opened.

    Returns `score`, `config.metric` in [0, 1], and `ece`, the expected calibration error of the probabilities. Raises
    DataError where there are no validation images or the fraction is too small to hold every class, NonFiniteError
    (block and image) if a feature is NaN or infinite.
    """
    (block,) = config.blocks
    labelled = label_subset(
        dataset.labels,
        dataset.splits,
        fraction=config.fraction,
        seed=config.seed,
        config=config.labels,
        groups=dataset.groups,
    )
    val = dataset.rows(VAL)
    if len(val) == 0:
        raise DataError(f"dataset {dataset.name} has no validation images to score on; mark some images val")
    batches = Batches(dataset, mean, std, device)
    x, x_val = (_pooled(encoder, batches, rows, block) for rows in (labelled, val))
    found = fit(config, dataset, x, labelled, x_val, val).probabilities(x_val)
    return {
        "score": metrics.score(config.metric, dataset.labels[val], found, dataset.task),
        "ece": calibration.ece(dataset.labels[val], found, dataset.task),
    }


def _pooled(encoder: Encoder, batches: Batches, rows: NDArray[np.int64], block: int) -> NDArray[Any]:
    """Global averages (n, C) of a block's maps, in float32 as extracted features are."""
    dataset, parts = batches.dataset, []
    step = max(1, min(BATCH, BATCH_PIXELS // dataset.size**2))
    for start in range(0, len(rows), step):
        with torch.inference_mode(), devices.autocast(batches.device, "float32"):
            maps = encoder(batches.plain(rows[start : start + step]), (block,))[1][block]
            parts.append(global_average(maps).cpu().numpy())
    pooled = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(pooled).all(axis=1))
    if len(bad):
        image = dataset.ids[rows[bad[0]]]
        raise NonFiniteError(f"block {block} of image {image} is NaN or infinite; pretrain at a lower rate")
    return pooled
