"""Feature reuse: how far full fine-tuning moved each block's features, on the test images (paper section 3.4.1)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import cka
from analysis.config import Kernel, ReuseConfig
from analysis.features import Features, require_same_ids
from ssl_core.config import BLOCKS
from ssl_core.data.dataset import TEST
from ssl_core.errors import DataError
from ssl_core.seeding import generator


def compare(
    config: ReuseConfig, before: Path, after: Path, workdir: Path, *, label_fraction: float
) -> list[dict[str, Any]]:
    """CKA per block and kernel between two features folders: an encoder, and the same one fine-tuned.

    Rows: label_fraction, block, metric ("cka_linear", "cka_rbf", "cka_authors"), value, low and high (over random sets
    of images, "cka_authors" only), n (images compared at a time), null and null_high (mean and 95th percentile with
    the rows of one side permuted), off_diagonal, uninformative (see `cka.Similarity`). An undefined value is None.
    Also written to rows.json. The test split only; a seeded draw of `max_images` of it where it is larger.

    Raises DataError if the two folders are of other images, or of images in another order.
    """
    old, new = Features.open(before), Features.open(after)
    if old.fingerprint != new.fingerprint:  # ids can be mere row numbers, and agree by accident
        raise DataError(f"{before} and {after} are features of different datasets; extract both from the same one")
    of_old, of_new = old.rows(TEST), new.rows(TEST)  # either folder may hold other splits too
    require_same_ids(old.ids[of_old], new.ids[of_new], str(before), str(after))
    if len(of_old) < 4:
        raise DataError(f"{before} holds {len(of_old)} test images; CKA needs at least 4")
    if len(of_old) > config.max_images:
        draw = generator(config.seed, "reuse", "images")
        chosen = np.sort(draw.choice(len(of_old), config.max_images, replace=False))
        of_old, of_new = of_old[chosen], of_new[chosen]
    rows = []
    for block in BLOCKS:
        x, y = np.asarray(old.blocks[block][of_old]), np.asarray(new.blocks[block][of_new])  # (n, C_b) each
        for kernel in config.kernels:
            found = _similarity(config, kernel, x, y, block)
            rows.append({"label_fraction": label_fraction, "block": block, **_row(kernel, found)})
    (workdir / "rows.json").write_text(json.dumps(rows, indent=1, allow_nan=False))
    return rows


def _similarity(
    config: ReuseConfig, kernel: Kernel, x: NDArray[np.float32], y: NDArray[np.float32], block: int
) -> cka.Similarity:
    rng = generator(config.seed, "reuse", kernel, block)  # of its own, so no kernel shifts another's numbers
    permutations = config.permutations
    match kernel:
        case "linear":
            return cka.linear(x, y, permutations=permutations, rng=rng)
        case "rbf":
            return cka.rbf(x, y, bandwidth=config.bandwidth, permutations=permutations, rng=rng)
        case "authors":
            return cka.authors(
                x,
                y,
                sigma=config.bandwidth,
                sets=config.sets,
                set_size=config.set_size,
                permutations=permutations,
                rng=rng,
            )


def _row(kernel: Kernel, found: cka.Similarity) -> dict[str, Any]:
    numbers = {
        name: getattr(found, name) for name in ("value", "low", "high", "n", "null", "null_high", "off_diagonal")
    }
    undefined = {name: None for name, number in numbers.items() if number is not None and math.isnan(number)}
    return {"metric": f"cka_{kernel}", **numbers, **undefined, "uninformative": found.uninformative}
