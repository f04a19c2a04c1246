"""One of several workers that extract features together. Reads `data` and two encoders in their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.features import extract
from ssl_core.data.dataset import TEST, TRAIN, Dataset
from ssl_core.errors import NonFiniteError

#: Of two workers, and 11, 5 and 7 images in the splits: batches that are shared unevenly, and one of a lone image.
RUNS: dict[str, dict[str, Any]] = {
    "all": {"batch_size": 5},
    "some": {"batch_size": 5, "splits": (TRAIN, TEST)},
    "lone": {"batch_size": 3, "splits": (TEST,)},
    "moving": {"norm": "moving", "norm_batch": 6, "seed": 3},
}


def work(rank: int, world: int, folder: Path) -> None:
    dataset = Dataset.open(folder / "data")
    for name, settings in RUNS.items():
        workdir = folder / f"{name}-{rank}"
        workdir.mkdir()
        extract(folder / "encoder.pt", dataset, workdir, device="cpu", **settings)
    (folder / f"infinite-{rank}").mkdir()
    try:
        extract(folder / "infinite.pt", dataset, folder / f"infinite-{rank}", device="cpu")
    except NonFiniteError as error:
        (folder / f"error-{rank}").write_text(str(error))
