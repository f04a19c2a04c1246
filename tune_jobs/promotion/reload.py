"""A packaged model loaded anew, in a process of its own, against the probabilities that its evaluation stored."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import Dataset
from ssl_core.data.listing import Listing, listing
from tune_jobs.promotion.gates import TOLERANCE, Reloaded

if TYPE_CHECKING:
    from analysis.predictions import Predictions

#: Validation images that are asked for again, and original files of the source, beside packed images and where those
#: cannot be given: each spread evenly, for neighbours are often of one class, one scanner and one format.
IMAGES, FILES, FILES_ALONE = 300, 4, 48
#: Allowed where the evaluation ran on another kind of device: arithmetic differs there, in float32 too.
ELSEWHERE = 1e-4
SECONDS = 300
DEVICE = "cpu"  # of the reload: a server need not have another

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Asked:
    """Images, and the probabilities that they should get."""

    pixels: Pixels  # (n, H, W, C), may be none
    of_pixels: NDArray[np.float64]  # (n, K)
    files: tuple[Path, ...]  # original ones
    of_files: NDArray[np.float64]
    evaluated: str  # device, as the manifest says


def ask(dataset: Dataset, config: DatasetConfig, found: Predictions, *, evaluated: str) -> Asked:
    """Some of the validation images that `found` holds the probabilities of.

    Packed images are given as they are, for preprocessing leaves alone what has its form already. A crop does not:
    then the source's own images are given.
    """
    picked = _spread(len(found.ids), IMAGES)
    ids, expected = found.ids[picked].tolist(), found.probabilities[picked]
    listed = listing(config) if config.crop is not None or config.source not in _ARRAYS else None
    if config.crop is None:
        pixels = dataset.images[_places(dataset.ids, ids)]
    elif listed is not None and listed.pixels is not None:
        pixels = listed.pixels()[_places(listed.ids, ids)]
    else:
        pixels = np.empty((0, 1, 1, dataset.channels), dtype=np.uint8)
    some = _spread(len(ids), FILES if len(pixels) else FILES_ALONE)
    files = () if listed is None else _originals(listed, [ids[i] for i in some])
    of_files = expected[some] if files else expected[:0]
    return Asked(pixels, expected[: len(pixels)], files, of_files, evaluated)


def _spread(length: int, most: int) -> NDArray[np.int64]:
    """So many places among `length`, the first and the last included."""
    return np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(np.int64))


_ARRAYS = ("digits", "npz", "medmnist")  # sources without files, whose listing costs something all the same


def _places(known: NDArray[np.str_], ids: Sequence[str]) -> NDArray[np.int64]:
    place = {name: row for row, name in enumerate(known.tolist())}
    return np.array([place[name] for name in ids], dtype=np.int64)


def _originals(listed: Listing, ids: Sequence[str]) -> tuple[Path, ...]:
    """Files of these images; none where the source has no files, or one is gone."""
    if listed.paths is None:
        return ()
    found = tuple(listed.paths[row] for row in _places(listed.ids, ids))
    return found if all(path.is_file() for path in found) else ()


def reloaded(model: Path, asked: Asked, work: Path) -> Reloaded:
    """What the packaged `model` says in a fresh process, on the CPU; `work` is a folder for what goes in and out."""
    tolerance = TOLERANCE if asked.evaluated == DEVICE else ELSEWHERE
    nothing = Reloaded(0, math.nan, asked.evaluated, DEVICE, tolerance)
    if len(asked.pixels) + len(asked.files) == 0:
        why = "the dataset is cropped, so its original images are needed to try it, and they are not where they were"
        return replace(nothing, error=why)
    with tempfile.TemporaryDirectory(prefix="reload-", dir=work) as folder:
        given, answers = Path(folder) / "images.npz", Path(folder) / "answers.npz"
        arrays: dict[str, Any] = {"images": asked.pixels}
        for i, path in enumerate(asked.files):
            arrays[f"file{i:02d}"] = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        np.savez(given, **arrays)
        if (error := _run(model, given, answers)) is not None:
            return replace(nothing, error=error)
        with np.load(answers, allow_pickle=False) as file:
            said = [(file["images"], asked.of_pixels), (file["files"], asked.of_files)]
    said = [(_as_stored(got, expected), expected) for got, expected in said]
    for got, expected in said:
        if got.shape != expected.shape:
            return replace(nothing, error=f"it gives probabilities of shape {got.shape}, stored are {expected.shape}")
    (images, difference), sources = ((len(got), _difference(got, expected)) for got, expected in said)
    return replace(nothing, images=images, difference=difference, sources=sources if sources[0] else None)


def _run(model: Path, given: Path, answers: Path) -> str | None:
    """Why the process did not answer, if it did not."""
    script = Path(__file__).with_name("alone.py")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "PYTHON"))}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-I", str(script), str(model), str(given), str(answers)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False, cwd=given.parent
        )
    except subprocess.TimeoutExpired:
        return f"it did not answer within {SECONDS} s"
    if done.returncode == 0 and answers.is_file():
        return None
    return (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1][:300]


def _as_stored(got: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of two classes the second one alone is stored; and nothing has a column for each output, too."""
    if len(got) == len(expected) == 0:
        return expected
    return got[:, 1:] if expected.shape[1] == 1 and got.shape[1] == 2 else got


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.abs(a - b).max()) if a.size else 0.0
