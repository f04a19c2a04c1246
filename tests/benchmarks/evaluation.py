"""Probing, reuse, intervals: what is done with an encoder once it is trained."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from ssl_core.metrics import bootstrap, resamples
from tests.benchmarks.rows import Measured, Row, faster, in_turns


def interval() -> Measured:
    """Bootstrapped AUROC of 2,000 images, 100 replicates, against scikit-learn in a loop over the same draws."""
    rng, n = np.random.default_rng(0), 2000
    labels = rng.integers(0, 2, n)
    probabilities = np.clip(rng.normal(0.4 + 0.2 * labels, 0.3, n), 0, 1)[:, None]
    groups = np.arange(n).astype(str)

    def loop() -> list[float]:
        return [roc_auc_score(labels[rows], probabilities[rows, 0]) for rows in resamples(n, 100, 0)]

    return faster(
        in_turns(
            lambda: bootstrap("auroc", labels, probabilities, "binary", groups=groups, replicates=100, seed=0), loop
        )
    )


ROWS = (Row("bootstrap, AUROC, 2,000 images", "roc_auc_score in a loop", 3, interval),)
