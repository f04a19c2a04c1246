"""A packaged model asked for the source's own images: raw files of many kinds, and datasets that are cropped."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from analysis.predictions import Predictions, read
from ssl_core.data.config import DatasetConfig
from ssl_core.data.dataset import Dataset
from ssl_core.data.packing import pack
from ssl_core.predictor import Predictor
from tests.ssl_core.finetuning_runs import config as finetuning
from tests.ssl_core.finetuning_runs import run
from tune_jobs.promotion.gates import TOLERANCE, reloads
from tune_jobs.promotion.package import form_of, save_model
from tune_jobs.promotion.reload import FILES, FILES_ALONE, Asked, ask, reloaded

pytestmark = pytest.mark.timeout(300)

IMAGES = 192


@dataclass(frozen=True)
class Tuned:
    """A dataset packed from a source, and a model fine-tuned on it."""

    config: DatasetConfig
    dataset: Dataset
    folder: Path

    @property
    def stored(self) -> Predictions:
        return read(self.folder / "tuned", "val")

    def asked(self) -> Asked:
        return ask(self.dataset, self.config, self.stored, evaluated="cpu")

    def said(self, images: Any) -> np.ndarray:
        model = Predictor.load(self.folder / "tuned" / "model.pt", form_of(self.folder / "data"), device="cpu")
        return model.probabilities(images)


def write_files(folder: Path) -> Path:
    """The CSV of real digits as files of several sizes and formats: 16 bits, palette, transparent, turned, colour."""
    digits, rng, rows = load_digits(), np.random.default_rng(0), []
    for i in range(IMAGES):
        pixels = np.round(digits.images[i] * 15.9375).astype(np.uint8)
        width, height = (int(side) for side in rng.integers(24, 60, size=2))
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        deep, exif, about = Image.fromarray(np.asarray(image).astype(np.uint16) * 150 + 900), Image.Exif(), {}
        match i % 6:
            case 0:
                name = f"{i}.png"
            case 1:
                name, image = f"{i}.png", deep
            case 2:
                name, image = f"{i}.tif", deep
            case 3:
                name, image = f"{i}.png", image.convert("RGB").quantize(32)
            case 4:
                name, image = f"{i}.png", image.convert("RGBA")
                image.putalpha(200)
            case _:
                exif[274] = 6  # to be turned by 90 degrees
                name, about = f"{i}.jpg", {"exif": exif}
        image.save(folder / name, **about)
        rows.append((name, digits.target[i] % 2, ("train", "train", "val", "test")[i // 6 % 4]))
    table = folder / "images.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return table


def tuned(config: DatasetConfig, folder: Path) -> Tuned:
    dataset = pack(config, folder / "data")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(finetuning(mode="scratch", min_steps=2, evaluations=1, bootstrap=2), dataset, folder / "tuned")
    torch.set_num_threads(threads)
    return Tuned(config, dataset, folder)


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("cropped")
    table = write_files(folder)
    return tuned(DatasetConfig(source="manifest", path=str(table), size=20, crop=16), folder)


def test_files_of_every_kind_get_the_stored_probabilities(tmp_path: Path) -> None:
    found = tuned(DatasetConfig(source="manifest", path=str(write_files(tmp_path)), size=16), tmp_path)
    asked = found.asked()
    assert len(asked.pixels) == len(found.stored.ids)
    assert [path.name for path in (asked.files[0], asked.files[-1])] == found.stored.ids[[0, -1]].tolist()
    assert len(asked.files) == FILES
    assert np.abs(found.said(list(asked.pixels)) - asked.of_pixels).max() <= TOLERANCE
    assert np.abs(found.said([path.read_bytes() for path in asked.files]) - asked.of_files).max() <= TOLERANCE


def test_a_cropped_dataset_of_files_is_tried_on_its_files_alone(cropped: Tuned, tmp_path: Path) -> None:
    """Packed images are cropped already, and the model would crop them again."""
    asked = cropped.asked()
    assert (len(asked.pixels), len(asked.files)) == (0, FILES_ALONE)
    save_model(tmp_path / "model", tuned=cropped.folder / "tuned", data=cropped.folder / "data")
    gate = reloads(reloaded(tmp_path / "model", asked, tmp_path))
    assert gate.passed, gate.sentence
    assert gate.numbers["sources"]["files"] == FILES_ALONE


def test_a_cropped_dataset_of_arrays_is_tried_on_the_arrays(tmp_path: Path) -> None:
    digits = load_digits()
    images = np.round(digits.images[:IMAGES] * 15.9375).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", images=images, labels=digits.target[:IMAGES] % 2)
    found = tuned(DatasetConfig(source="npz", path=str(tmp_path / "digits.npz"), size=12, crop=9), tmp_path)
    asked = found.asked()
    assert asked.pixels.shape == (len(found.stored.ids), 8, 8, 1)
    assert asked.files == ()
    assert np.abs(found.said(list(asked.pixels)) - asked.of_pixels).max() <= TOLERANCE


def test_a_cropped_dataset_whose_files_are_gone_is_not_promoted(cropped: Tuned, tmp_path: Path) -> None:
    asked = replace(cropped.asked(), files=(), of_files=np.empty((0, 1)))
    gate = reloads(reloaded(tmp_path / "model", asked, tmp_path))
    assert not gate.passed
    assert "the dataset is cropped, so its original images are needed" in gate.sentence
