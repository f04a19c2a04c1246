"""Pooled block features of a frozen encoder, one folder of arrays per encoder and dataset (paper section 3.4.1).

One forward pass serves every probe and every comparison that follows. Rows of all arrays are the same images in the
same order, and their ids travel with them: comparisons of two folders refuse ids that differ.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.config import BLOCKS
from ssl_core.data.dataset import TEST, TRAIN, VAL, Dataset, Task
from ssl_core.errors import DataError, NonFiniteError

if TYPE_CHECKING:
    import torch

    from ssl_core.batches import Batches
    from ssl_core.encoder import Encoder

#: Pixels in a batch, whatever the batch size: block maps of large images would not fit otherwise.
BATCH_PIXELS = 2**21


@dataclass(frozen=True)
class Features:
    """What `extract` left, blocks memory-mapped. Rows: N images; `splits` hold TRAIN, VAL or TEST."""

    blocks: dict[int, NDArray[np.float32]]  # block -> [N, C_b]
    ids: NDArray[np.str_]
    labels: NDArray[Any]  # [N] or [N, L]
    splits: NDArray[np.int8]
    groups: NDArray[np.str_]
    task: Task
    class_names: tuple[str, ...]
    fingerprint: str  # of the dataset
    encoder: str  # digest of the encoder's file

    @classmethod
    def open(cls, folder: Path) -> Features:
        """Raises DataError if the folder holds no features."""
        try:
            about = json.loads((folder / "features.json").read_text())
            arrays = {
                name: np.load(folder / f"{name}.npy", allow_pickle=False)
                for name in ("ids", "labels", "splits", "groups")
            }
            blocks = {b: np.load(folder / f"block{b}.npy", mmap_mode="r", allow_pickle=False) for b in BLOCKS}
        except FileNotFoundError as error:
            raise DataError(f"{folder} holds no features ({error.filename} is missing); extract them first") from error
        except (ValueError, EOFError) as error:
            raise DataError(f"features in {folder} cannot be read ({error}); remove it and run again") from error
        return cls(
            blocks=blocks,
            **arrays,
            task=about["task"],
            class_names=tuple(about["class_names"]),
            fingerprint=about["fingerprint"],
            encoder=about["encoder"],
        )

    @property
    def n_outputs(self) -> int:
        """Columns of a prediction: 1 for two classes, else one a class or label."""
        return 1 if self.task == "binary" else len(self.class_names)

    def rows(self, split: int) -> NDArray[np.int64]:
        """Ascending row indices of a split."""
        return np.flatnonzero(self.splits == split)


def extract(
    encoder: Path,
    dataset: Dataset,
    workdir: Path,
    *,
    splits: tuple[int, ...] = (TRAIN, VAL, TEST),
    batch_size: int = 512,
    norm: Literal["fixed", "moving"] = "fixed",
    norm_batch: int = 64,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> None:
    """Write the global-average-pooled output of blocks 1-4 for every image of `splits`, in the dataset's order.

    `encoder` is an `encoder.pt` or a fine-tuned `model.pt`; it runs in eval mode and float32, so its state is the same
    afterwards and features do not depend on who shares a batch. Leaves block1.npy ... block4.npy (float32 [N, C_b]),
    ids.npy, labels.npy, splits.npy, groups.npy and features.json. Memory: one batch of at most `BATCH_PIXELS` pixels.

    In an initialised torch.distributed group every worker calls this with the same arguments and a `workdir` of its
    own. A batch then holds as many images for each of them, and each encodes its share; worker 0 writes the files.

    `norm: moving` stands for the authors' linear runs, in which the weights are frozen and batch norm's statistics move
    all the same: the training images first pass once, as they are, in an order drawn from `seed` and in batches of at
    most `norm_batch`, and the statistics follow; then it is as above. They move for this call alone, never in the file.
    Several workers share these batches and see them whole, so the statistics are one worker's up to rounding.

    Raises DataError if the dataset's images have other channels than the encoder takes, NonFiniteError (block and
    image) if a feature is NaN or infinite.
    """
    import torch

    from ssl_core import devices, distributed
    from ssl_core.batch_norm import synchronise
    from ssl_core.batches import Batches
    from ssl_core.checkpoint import digest
    from ssl_core.encoder import global_average, load_encoder

    net, channels, mean, std = load_encoder(encoder)
    if channels != dataset.channels:
        raise DataError(
            f"{encoder} takes images of {channels} channels, dataset {dataset.name} has {dataset.channels}; "
            "use an encoder pretrained on such images"
        )
    rows = np.flatnonzero(np.isin(dataset.splits, splits))  # (N,)
    writes = distributed.rank() == 0
    arrays = {
        b: np.lib.format.open_memmap(workdir / f"block{b}.npy", "w+", np.float32, (len(rows), net.widths[b]))
        for b in (BLOCKS if writes else ())
    }
    target = devices.choose(device)
    if distributed.world() > 1:
        synchronise(net)
    net, batches = devices.place(net, target), Batches(dataset, mean, std, target)
    if norm == "moving":
        _move_statistics(net, batches, norm_batch, seed)
    net.eval()
    step = max(1, min(batch_size, BATCH_PIXELS // dataset.size**2)) * distributed.world()
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        with torch.inference_mode(), devices.autocast(target, "float32"):
            for b, maps in net(batches.plain(part[distributed.share(len(part))]), BLOCKS)[1].items():
                pooled = distributed.gather(global_average(maps), len(part)).cpu().numpy()  # on every worker: all raise
                finite = _finite(pooled, b, dataset.ids[part])
                if writes:
                    arrays[b][start : start + step] = finite
    if not writes:
        return
    for array in arrays.values():
        array.flush()
    for name in ("ids", "labels", "splits", "groups"):
        np.save(workdir / f"{name}.npy", getattr(dataset, name)[rows])
    about = {
        "task": dataset.task,
        "class_names": dataset.class_names,
        "fingerprint": dataset.fingerprint,
        "encoder": digest(encoder),
        "norm": norm,
    }
    (workdir / "features.json").write_text(json.dumps(about, indent=1))


def _move_statistics(net: Encoder, batches: Batches, size: int, seed: int) -> None:
    """Let the running statistics of batch norm follow the training images, once through; no weight changes."""
    import torch

    from ssl_core import devices
    from ssl_core.distributed import share
    from ssl_core.seeding import generator

    order = generator(seed, "moving statistics").permutation(batches.dataset.rows(TRAIN))
    net.train()
    with torch.no_grad(), devices.autocast(batches.device, "float32"):
        for rows in np.array_split(
            order, math.ceil(len(order) / size)
        ):  # even sizes: no tiny last batch weighs as much
            net(batches.plain(rows[share(len(rows))]))


def _finite(pooled: NDArray[np.float32], block: int, ids: NDArray[np.str_]) -> NDArray[np.float32]:
    bad = np.flatnonzero(~np.isfinite(pooled).all(axis=1))
    if len(bad):
        raise NonFiniteError(f"block {block} of image {ids[bad[0]]} is NaN or infinite; pretrain at a lower rate")
    return pooled


def require_same_ids(a: NDArray[np.str_], b: NDArray[np.str_], first: str, second: str) -> None:
    """Raise DataError, naming the first difference, unless both sides hold the same images in the same order."""
    if np.array_equal(a, b):
        return
    short = min(len(a), len(b))
    differ = np.flatnonzero(a[:short] != b[:short])
    at = int(differ[0]) if len(differ) else short
    left, right = (str(ids[at]) if at < len(ids) else "no image" for ids in (a, b))
    raise DataError(
        f"{first} and {second} differ in their images at row {at}: {left} against {right} "
        f"({len(a)} and {len(b)} rows); compute both on the same dataset and split"
    )
