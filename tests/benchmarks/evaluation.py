"""Probing, reuse, intervals: what is done with an encoder once it is trained."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from analysis import cka
from analysis.config import ProbeConfig
from analysis.features import Features, extract
from analysis.probing import probe
from ssl_core import metrics
from ssl_core.batches import Batches
from ssl_core.classifier import classification_loss, probabilities
from ssl_core.config import BLOCKS, EncoderConfig
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset
from ssl_core.data.labels import label_subset
from ssl_core.encoder import build_encoder, global_average, save_encoder
from ssl_core.metrics import resampled_scores, resamples
from ssl_core.optimisation import learning_rate
from tests.benchmarks import all_images
from tests.benchmarks.rows import Measured, Row, faster, in_turns

FRACTIONS = (0.01, 0.06, 1.0)
EPOCHS, BATCH = 100, 256  # of the linear evaluation that is usual: He et al. 2020 and most since
RATES = (0.1, 1.0, 10.0)  # of SGD; its score is that of the best on validation, its time that of one


# ---------------------------------------------------------------------------------------------------- probing


def pictures(counts: Sequence[int], side: int = 64, seed: int = 0) -> Dataset:
    """So many grey images in train, val and test; those of class 1 are brighter somewhere, under noise."""
    rng, n = np.random.default_rng(seed), sum(counts)
    labels = rng.integers(0, 2, n)
    at = np.arange(side)
    centre = rng.uniform(0.2 * side, 0.8 * side, (2, n, 1))
    across, down = np.exp(-((at - centre) ** 2) / (2 * (side / 8) ** 2))  # (n, side) each
    noise = rng.normal(128, 40, (n, side, side))
    pixels = noise + 25 * labels[:, None, None] * down[:, :, None] * across[:, None, :]
    names = np.array([f"image{i}" for i in range(n)])
    return Dataset(
        name="pictures",
        images=np.clip(pixels, 0, 255).astype(np.uint8)[..., None],
        labels=labels,
        splits=np.repeat([TRAIN, VAL, TEST], counts).astype(np.int8),
        groups=names,
        ids=names,
        class_names=("no", "yes"),
        task="binary",
        mean=(0.5,),
        std=(0.2,),
        fingerprint="pictures",
    )


class Probing:
    """A frozen ResNet-18, images for it, and both ways to read four blocks at three label fractions."""

    def __init__(
        self,
        folder: Path,
        counts: Sequence[int] = (2000, 500, 500),
        *,
        fractions: Sequence[float] = FRACTIONS,
        epochs: int = EPOCHS,
        side: int = 64,
    ) -> None:
        self.folder, self.dataset = folder, pictures(counts, side)
        self.fractions, self.epochs = fractions, epochs
        config = EncoderConfig(arch="resnet18", zero_init_residual=False)  # else a new encoder has half its blocks
        self.encoder = build_encoder(config, 1, 0).eval().requires_grad_(False)
        save_encoder(folder / "encoder.pt", self.encoder, self.dataset.mean, self.dataset.std)
        self.batches = Batches(self.dataset, self.dataset.mean, self.dataset.std, torch.device("cpu"))
        self.scores: list[float] = []  # AUROC on test, of each fraction and block

    def labelled(self, fraction: float) -> NDArray[np.int64]:
        return label_subset(self.dataset.labels, self.dataset.splits, fraction=fraction, seed=0)

    def ours(self) -> None:
        """Features once, then twelve linear classifiers on them. Intervals are left out, as the other way has none."""
        extract(self.folder / "encoder.pt", self.dataset, self.folder, device="cpu")
        found = itertools.chain.from_iterable(
            probe(ProbeConfig(fraction=f, epochs=self.epochs, batch_size=BATCH, bootstrap=0), self.folder, self.folder)
            for f in self.fractions
        )
        self.scores = [row["value"] for row in found if row["metric"] == "auroc"]

    def through_the_network(self, images: int) -> torch.Tensor:
        """The weights of a linear layer on block 4 after SGD steps over so many images."""
        rows = self.dataset.rows(TRAIN)[:images]
        layer = nn.Linear(self.encoder.widths[4], 1)
        sgd = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            with torch.no_grad():
                pooled = global_average(self.encoder(self.batches.plain(batch), (4,))[1][4])
            _descend(sgd, layer, pooled, torch.from_numpy(self.dataset.labels[batch]))
        return layer.weight

    def images_of_sgd(self) -> int:
        """That pass through the network when each block and fraction is trained for itself, without validation."""
        return self.epochs * len(BLOCKS) * sum(len(self.labelled(f)) for f in self.fractions)

    def scores_of_sgd(self) -> list[float]:
        """Of the whole recipe: it sees each image without augmentation, so features extracted once are the same."""
        found = Features.open(self.folder)
        test = found.rows(TEST)
        scores = []
        for fraction, block in itertools.product(self.fractions, BLOCKS):
            x = torch.from_numpy(np.array(found.blocks[block]))
            layers = [self._sgd(x, self.labelled(fraction), rate) for rate in RATES]
            best = max(layers, key=lambda layer: self._auroc(layer, x, found.rows(VAL)))
            scores.append(self._auroc(best, x, test))
        return scores

    def _sgd(self, x: torch.Tensor, rows: NDArray[np.int64], rate: float) -> nn.Linear:
        torch.manual_seed(0)
        layer = nn.Linear(x.shape[1], 1)
        sgd = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
        starts, step = range(0, len(rows), BATCH), 0
        for epoch in range(self.epochs):
            order = np.random.default_rng(epoch).permutation(rows)
            for start in starts:
                sgd.param_groups[0]["lr"] = learning_rate(step, base=rate, steps=self.epochs * len(starts))
                step += 1
                batch = order[start : start + BATCH]
                _descend(sgd, layer, x[batch], torch.from_numpy(self.dataset.labels[batch]))
        return layer

    def _auroc(self, layer: nn.Linear, x: torch.Tensor, rows: NDArray[np.int64]) -> float:
        with torch.inference_mode():
            p = probabilities(layer(x[rows]), "binary").numpy()
        return metrics.score("auroc", self.dataset.labels[rows], p, "binary")


def _descend(sgd: torch.optim.Optimizer, layer: nn.Linear, x: torch.Tensor, labels: torch.Tensor) -> None:
    sgd.zero_grad()
    classification_loss(layer(x), labels, "binary").backward()  # type: ignore[no-untyped-call]
    sgd.step()


@cache
def probed() -> Measured:
    """ResNet-18 on 3,000 images of 64 px. The other way is timed on 1,024 images a turn and scaled to all that pass."""
    some = 1024
    with tempfile.TemporaryDirectory() as name:
        way = Probing(Path(name))
        share = way.images_of_sgd() / some
        seconds = in_turns(way.ours, lambda: way.through_the_network(some), turns=3)
        found = faster([(ours, other * share) for ours, other in seconds])
        ours, theirs = statistics.mean(way.scores), statistics.mean(way.scores_of_sgd())
    return Measured(found.figure, found.ours, found.other, found.facts | {"auroc": ours, "auroc_of_sgd": theirs})


def probing_score() -> Measured:
    """Mean test AUROC over blocks and fractions, less that of SGD."""
    found = probed()
    return Measured(found.facts["auroc"] - found.facts["auroc_of_sgd"], found.ours, found.other, found.facts)


# ------------------------------------------------------------------------------------------------------- reuse


def dense_cka(x: NDArray[np.floating], y: NDArray[np.floating], sigma: float) -> float:
    """Biased RBF CKA by the definition: Gram matrices, centred with H = I - 11'/N from both sides."""
    h = np.eye(len(x)) - 1 / len(x)
    a, b = (h @ _gram(np.asarray(side, np.float64), sigma) @ h for side in (x, y))
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _gram(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    norms = np.square(x).sum(axis=1)
    return np.exp(-np.maximum(norms[:, None] + norms - 2 * x @ x.T, 0) / (2 * sigma**2))


def sets_of(n: int, sets: int, size: int, permutations: int) -> Iterator[tuple[NDArray[np.int64], list[Any]]]:
    """The random sets that `cka.authors` draws, and the permutations within each."""
    rng = np.random.default_rng(0)
    for rows in [np.sort(rng.choice(n, size, replace=False)) for _ in range(sets)]:
        yield rows, [rng.permutation(size) for _ in range(permutations)]


def rbf_of_sets() -> Measured:
    """Value and null (20 permutations) of 50 sets out of 5,000 images, of one block: the four are alike.

    The other way is timed on one set, its value and one permutation, and scaled. `off` is how far the two are apart on
    those.
    """
    sets, size, permutations, sigma = 50, 1000, 20, 40.0
    x, y = all_images.features(5000, 2048)

    def ours(sets: int = sets, permutations: int = permutations) -> cka.Similarity:
        about: Any = {"sets": sets, "set_size": size, "permutations": permutations, "rng": np.random.default_rng(0)}
        return cka.authors(x, y, sigma=sigma, **about)

    ((rows, (order,)),) = sets_of(len(x), 1, size, 1)

    def dense() -> list[float]:
        return [dense_cka(x[rows], y[rows[other]], sigma) for other in (np.arange(size), order)]

    seconds = in_turns(ours, dense, turns=3)
    found = faster([(a, b * sets * (1 + permutations) / 2) for a, b in seconds])
    once = ours(1, 1)
    off = max(abs(a - b) for a, b in zip(dense(), (once.value, once.null), strict=True))
    return Measured(found.figure, found.ours, found.other, found.facts | {"off": off})


def seconds_on_all(kernel: str) -> Measured:
    """Value and null (20 permutations) of 22,432 images with 2,048 features a side."""
    found = all_images.measured(kernel)
    return Measured(found["seconds"], found["seconds"], facts=found)


def memory_on_all(kernel: str) -> Measured:
    """The same process's peak, the features of both sides included."""
    found = all_images.measured(kernel)
    return Measured(found["peak_GiB"], found["seconds"])


# --------------------------------------------------------------------------------------------------- intervals


def labelled_scores(images: int, labels: int = 14) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Labels (N, L), 0.2% to 18% of them positive as in ChestX-ray14, and probabilities that go with them somewhat."""
    rng = np.random.default_rng(0)
    truth = (rng.random((images, labels)) < np.geomspace(0.002, 0.18, labels)).astype(np.uint8)
    return truth, 1 / (1 + np.exp(2 - truth - rng.standard_normal((images, labels))))


def interval() -> Measured:
    """Macro AUROC of 14 labels x 22,432 images on 1,000 resamples; the loop is timed on ten of them and scaled."""
    some, every = 10, 1000
    labels, p = labelled_scores(all_images.IMAGES)
    draws = list(resamples(len(labels), some, 0))
    ours: list[Any] = []
    other: list[float] = []

    def at_once() -> None:
        groups = np.arange(len(labels))
        ours[:] = resampled_scores("auroc", labels, p, "multilabel", groups=groups, replicates=every, seed=0)

    def loop() -> None:
        other[:] = [float(roc_auc_score(labels[draw], p[draw])) for draw in draws]

    found = faster([(a, b * every / some) for a, b in in_turns(at_once, loop)])
    off = float(np.abs(np.array(ours[:some]) - other).max())
    return Measured(found.figure, found.ours, found.other, found.facts | {"off": off})


ROWS = (
    Row("probing, 4 blocks x 3 label fractions", "SGD through the frozen network", 50, probed),
    Row("probing, its mean AUROC less SGD's", "SGD through the frozen network", -0.001, probing_score, unit="AUROC"),
    Row("RBF CKA, 50 sets of 1,000 x 2,048", "dense HKH, each Gram matrix anew", 20, rbf_of_sets),
    Row("linear CKA, 22,432 x 2,048", "-", 60, lambda: seconds_on_all("linear"), most=True, unit="s"),
    Row("linear CKA, 22,432 x 2,048, memory", "-", 2, lambda: memory_on_all("linear"), most=True, unit="GiB"),
    Row("RBF CKA, 22,432 x 2,048", "-", 60, lambda: seconds_on_all("rbf"), most=True, unit="s"),
    Row("RBF CKA, 22,432 x 2,048, memory", "-", 2, lambda: memory_on_all("rbf"), most=True, unit="GiB"),
    Row("bootstrap, 14 AUROCs x 22,432 images x 1,000", "roc_auc_score in a loop", 50, interval),
)
