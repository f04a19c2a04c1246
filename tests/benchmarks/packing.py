"""From image files to a packed dataset."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssl_core.data.config import DatasetConfig
from ssl_core.data.decoding import decode
from ssl_core.data.form import Form
from ssl_core.data.packing import pack
from tests.benchmarks.rows import Measured, Row, faster, in_turns

THREADS = min(4, os.cpu_count() or 1)


def radiographs(folder: Path, files: int, side: int, different: int = 8) -> list[Path]:
    """Grey PNG files in two class folders, as compressible as chest X-rays: 0.4 bytes a pixel. Copies of a few."""
    rng = np.random.default_rng(0)
    paths = [folder / f"class{i % 2}" / f"{i:04d}.png" for i in range(files)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < different:
            Image.fromarray(_radiograph(rng, side)).save(path)
        else:
            shutil.copy(paths[i % different], path)
    return paths


def _radiograph(rng: np.random.Generator, side: int) -> Any:
    """Structures of many sizes, the larger the stronger, and noise."""
    values = rng.normal(128, 0.8, (side, side)).astype(np.float32)
    for waves, strength in ((4, 40), (16, 16), (64, 6), (256, 1.5)):
        octave = Image.fromarray(rng.standard_normal((waves, waves), dtype=np.float32))
        values += strength * np.asarray(octave.resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def packing() -> Measured:
    """128 files, both ways in as many threads. Packing also reads all files for the fingerprint, and writes its folder.

    `of_pillow` is the same rate against Pillow's decoder alone, which does not resize.
    """
    with tempfile.TemporaryDirectory() as name:
        source, packed, fresh = Path(name) / "source", Path(name) / "packed", itertools.count()
        paths = radiographs(source, 128, 1024)
        config = DatasetConfig(source="folder", path=str(source), size=256)
        form = Form(size=256, crop=None, channels=1, intensity="image")

        def ours() -> None:
            pack(config, packed / str(next(fresh)), threads=THREADS)

        def decoder(work: Any) -> None:
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(work, paths))

        found = faster(in_turns(ours, lambda: decoder(lambda path: decode(path, form))))
        of_pillow = faster(in_turns(ours, lambda: decoder(_load), turns=3)).figure
    return Measured(found.figure, found.ours, found.other, found.facts | {"of_pillow": of_pillow})


def _load(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


ROWS = (Row("packing, PNG of 1,024 px to 256 px", "decoding and resizing alone", 0.85, packing),)
