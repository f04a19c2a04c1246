"""Exported files answer as the evaluation did, at any batch size, or are not written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from ssl_core.data.dataset import TEST, Dataset
from ssl_core.data.form import Form
from ssl_core.errors import DataError, ExportError
from ssl_core.export import Check, export_onnx, export_program
from ssl_core.predictor import Predictor
from ssl_core.temperature import tempered
from tests.ssl_core.finetuning_runs import config, outputs, run

FORM = Form(size=8, crop=None, channels=1, intensity="image")


@pytest.fixture(scope="module")
def tuned(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Check]:
    folder = tmp_path_factory.mktemp("tuned")
    torch.set_num_threads(1)
    run(config(mode="scratch"), digits, folder)
    return folder / "model.pt", (digits.images[digits.rows(TEST)], outputs(folder)["test_probabilities"])


def onnx(path: Path) -> Callable[[NDArray[np.uint8]], Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["probabilities"], {"images": pixels})[0]


def program(path: Path) -> Callable[[NDArray[np.uint8]], Any]:
    module = torch.export.load(path).module()
    return lambda pixels: module(torch.from_numpy(pixels)).numpy()


@pytest.mark.parametrize(
    ("export", "load", "name"), [(export_onnx, onnx, "model.onnx"), (export_program, program, "model.pt2")]
)
def test_a_file_answers_as_evaluated(
    tuned: tuple[Path, Check], tmp_path: Path, export: Any, load: Any, name: str
) -> None:
    model, check = tuned
    agreement = export(Predictor.load(model, FORM, temperature=1.5), tmp_path / name, check)
    assert agreement.images == 16
    assert agreement.from_evaluated < 1e-5
    assert [p.name for p in tmp_path.iterdir()] == [name]
    answer, expected = load(tmp_path / name), tempered(check[1], 1.5, "multiclass")
    for n in (1, 5, 16):
        found = answer(np.asarray(check[0][:n]))
        assert found.dtype == np.float32
        assert np.abs(found - expected[:n]).max() < 1e-5


def test_files_say_what_their_columns_are(tuned: tuple[Path, Check], tmp_path: Path) -> None:
    predictor = Predictor.load(tuned[0], FORM)
    export_program(predictor, tmp_path / "model.pt2", tuned[1])
    said = {"facts": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=said)
    facts = json.loads(said["facts"])
    assert json.loads(facts["class_names"]) == ["zero", "one", "two"]
    assert json.loads(facts["form"]) == {"size": 8, "crop": None, "channels": 1, "intensity": "image"}


def test_a_graph_that_differs_from_the_evaluation_is_not_written(tuned: tuple[Path, Check], tmp_path: Path) -> None:
    predictor, (images, stored) = Predictor.load(tuned[0], FORM), tuned[1]
    path = tmp_path / "model.pt2"
    other = stored.copy()
    other[3] = np.roll(other[3], 1)  # as if other weights had been evaluated
    with pytest.raises(ExportError, match=r"up to .* from the evaluated ones, above 0.0001. The graph is right"):
        export_program(predictor, path, (images, other))
    assert not list(tmp_path.iterdir())
    assert export_program(predictor, path, (images, other), evaluated_within=1.0).from_float32 < 1e-5
    assert path.exists()


def test_a_graph_that_is_wrong_is_not_written(
    tuned: tuple[Path, Check], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_core.export.normalise", lambda x, mean, std: x)
    with pytest.raises(ExportError, match=r"from the model's, above 0.0001"):
        export_program(Predictor.load(tuned[0], FORM), tmp_path / "m.pt2", tuned[1], evaluated_within=1.0)
    assert not list(tmp_path.iterdir())


def test_the_check_must_be_a_split(tuned: tuple[Path, Check], tmp_path: Path) -> None:
    predictor, (images, stored) = Predictor.load(tuned[0], FORM), tuned[1]
    for check in ((images[:0], stored[:0]), (images[:5], stored), (images[:, :4], stored)):
        with pytest.raises(DataError, match="to check with"):
            export_program(dataclasses.replace(predictor), tmp_path / "m.pt2", check)
