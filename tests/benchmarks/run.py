"""Each way against the straightforward one, in turns within one run: `make bench` prints medians and their ratio.

Absolute rates differ between machines and hours; the ratios are what to compare.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torchvision.transforms import v2

from ssl_core import augment
from ssl_core.config import AugmentConfig, EncoderConfig, MocoConfig, PretrainConfig
from ssl_core.data.dataset import Dataset
from ssl_core.metrics import bootstrap, resamples
from ssl_core.pretraining import Pretraining

TURNS = 5


def paired(ours: Callable[[], object], plain: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both ways, run in turns after one untimed turn each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(TURNS + 1):
        for way, spent in zip((ours, plain), seconds, strict=True):
            began = time.perf_counter()
            way()
            if turn:
                spent.append(time.perf_counter() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def augmentation() -> tuple[float, float]:
    """128 views of 64 px in a batch, against torchvision image by image."""
    config = AugmentConfig(crop=(0.4, 1.0), flip=0.5)
    images = torch.randint(0, 256, (128, 3, 64, 64), dtype=torch.uint8)
    jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    plain = v2.Compose([
        v2.RandomResizedCrop(64, scale=(0.4, 1.0)), v2.RandomHorizontalFlip(), v2.RandomApply([jitter], 0.8),
        v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], 0.5),
        v2.ToDtype(torch.float32, scale=True),
    ])  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return paired(
        lambda: augment.apply(images, augment.draw(config, 128, 3, 64, generator)),
        lambda: torch.stack([plain(image) for image in images]),
    )


def pretraining_step() -> tuple[float, float]:
    """An epoch of eight steps, ResNet-18 on 64 px grey images, batch 32: bf16 where the machine has it, and float32."""
    n = 280
    dataset = Dataset(
        name="noise", images=np.random.default_rng(0).integers(0, 256, (n, 64, 64, 1), dtype=np.uint8),
        labels=np.arange(n) % 2, splits=np.repeat([0, 1, 2], [256, 12, 12]).astype(np.int8),
        groups=np.arange(n).astype(str), ids=np.arange(n).astype(str), class_names=("a", "b"), task="binary",
        mean=(0.5,), std=(0.29,), fingerprint="noise",
    )  # fmt: skip

    def run(precision: str) -> Pretraining:
        config = PretrainConfig(
            encoder=EncoderConfig(arch="resnet18"), moco=MocoConfig(queue=128), batch_size=32,
            precision=precision,  # type: ignore[arg-type]
        )  # fmt: skip
        return Pretraining(config, dataset, torch.device("cpu"))

    fast, plain = run("auto"), run("float32")
    return paired(fast.train_epoch, plain.train_epoch)


def interval() -> tuple[float, float]:
    """Bootstrapped AUROC of 2,000 images, 100 replicates, against scikit-learn in a loop over the same draws."""
    rng, n = np.random.default_rng(0), 2000
    labels = rng.integers(0, 2, n)
    probabilities = np.clip(rng.normal(0.4 + 0.2 * labels, 0.3, n), 0, 1)[:, None]
    groups = np.arange(n).astype(str)

    def loop() -> list[float]:
        scores = []
        for rows in resamples(n, 100, 0):
            scores.append(roc_auc_score(labels[rows], probabilities[rows, 0]))
        return scores

    return paired(
        lambda: bootstrap("auroc", labels, probabilities, "binary", groups=groups, replicates=100, seed=0), loop
    )


def main() -> None:
    paths = {"augmentation": augmentation, "pretraining epoch": pretraining_step, "bootstrap interval": interval}
    rows = {}
    print(f"{'path':20} {'ours':>10} {'plain':>10} {'ratio':>7}   ({torch.get_num_threads()} threads)")
    for name, measure in paths.items():
        ours, plain = measure()
        rows[name] = {"ours_seconds": ours, "plain_seconds": plain, "ratio": plain / ours}
        print(f"{name:20} {1000 * ours:7.1f} ms {1000 * plain:7.1f} ms {plain / ours:6.1f}x", flush=True)
    target = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.gettempdir()) / "intermoco-bench.json"
    target.write_text(json.dumps(rows, indent=1))
    print(target)


if __name__ == "__main__":
    main()
