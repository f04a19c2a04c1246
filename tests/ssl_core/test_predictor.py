"""What is served equals what was evaluated, however an image arrives; what is no image is refused in words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ssl_core.data.dataset import TEST, Dataset
from ssl_core.data.decoding import decode
from ssl_core.data.form import Form, Intensity
from ssl_core.errors import CheckpointError, ConfigError, DataError
from ssl_core.predictor import Predictor
from ssl_core.temperature import tempered
from tests.ssl_core.finetuning_runs import config, outputs, run

Precision = Literal["bf16", "float32"]
FORM = Form(size=8, crop=None, channels=1, intensity="image")


@pytest.fixture(scope="module")
def tuned(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {p: tmp_path_factory.mktemp(p) for p in ("bf16", "float32")}
    torch.set_num_threads(1)
    for precision, folder in folders.items():
        run(config(mode="scratch", precision=precision), digits, folder)
    return folders


@pytest.fixture
def predictor(tuned: dict[str, Path]) -> Predictor:
    return Predictor.load(tuned["float32"] / "model.pt", FORM)


def as_file(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, pixels)
    else:
        Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("trained", ["bf16", "float32"])
@pytest.mark.parametrize("together", [1, 5, 16])
def test_packed_images_get_the_evaluated_probabilities(
    tuned: dict[str, Path], digits: Dataset, trained: Precision, together: int
) -> None:
    predictor = Predictor.load(tuned[trained] / "model.pt", FORM)
    assert predictor.precision == "float32"
    assert (predictor.task, predictor.class_names) == ("multiclass", digits.class_names)
    images = digits.images[digits.rows(TEST)]
    found = np.concatenate([predictor.probabilities(images[i : i + together]) for i in range(0, 16, together)])
    assert np.abs(found - outputs(tuned[trained])["test_probabilities"]).max() < 1e-6


def test_a_model_that_was_evaluated_in_another_precision_answers_in_it(tuned: dict[str, Path], digits: Dataset) -> None:
    """As earlier versions left them."""
    found = [Predictor.load(tuned["bf16"] / "model.pt", FORM)]
    payload = torch.load(tuned["bf16"] / "model.pt", weights_only=True) | {"precision": "bf16"}
    other = tuned["bf16"] / "other.pt"
    torch.save(payload, other)
    found.append(Predictor.load(other, FORM))
    a, b = (p.probabilities(digits.images[digits.rows(TEST)]) for p in found)
    assert np.abs(a - b).max() > 1e-6


def test_pixels_files_and_arrays_in_files_are_one(predictor: Predictor, digits: Dataset) -> None:
    pixels = digits.images[3]
    ways: list[Any] = [pixels, pixels[..., 0], as_file(pixels), as_file(pixels, "npy"), as_file(pixels, "BMP")]
    rows = predictor.probabilities(ways)
    assert (np.abs(rows - rows[0]) < 1e-6).all()


@pytest.mark.parametrize("intensity", ["image", "full"])
def test_a_file_of_any_size_is_shaped_as_packing_shapes_it(
    tuned: dict[str, Path], tmp_path: Path, intensity: Intensity
) -> None:
    form = Form(size=12, crop=8, channels=1, intensity=intensity)
    deep = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30) * 20
    colour = np.random.default_rng(0).integers(256, size=(17, 23, 3), dtype=np.uint8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(colour).save(tmp_path / "colour.png")
    predictor = Predictor.load(tuned["float32"] / "model.pt", form)
    for name in ("deep.png", "colour.png"):
        packed = decode(tmp_path / name, form).pixels
        sent = decode((tmp_path / name).read_bytes(), form).pixels
        assert packed.tobytes() == sent.tobytes()
        in_form = Predictor.load(tuned["float32"] / "model.pt", FORM).probabilities([packed])
        found = predictor.probabilities([(tmp_path / name).read_bytes()])
        assert np.abs(found - in_form).max() < 1e-6
    assert np.abs(predictor.probabilities([colour]) - found).max() < 1e-6


def test_temperature_divides_logits(tuned: dict[str, Path], digits: Dataset, predictor: Predictor) -> None:
    images = digits.images[digits.rows(TEST)]
    warm = Predictor.load(tuned["float32"] / "model.pt", FORM, temperature=2.5).probabilities(images)
    cold = predictor.probabilities(images)
    assert np.abs(warm - tempered(cold, 2.5, "multiclass")).max() < 1e-12
    assert np.abs(warm - cold).max() > 1e-3


def huge(kind: str) -> bytes:
    """The first bytes of 50 million pixels: whoever decoded them would find the rest missing."""
    if kind == "npy":
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (10_000, 5_000)}
        )  # fmt: skip
        return file.getvalue()
    file = io.BytesIO()
    Image.new("1", (10_000, 5_000)).save(file, kind)
    return file.getvalue()[:200]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"", "is empty"),
        (b"no image at all", "is no image of a known format"),
        (as_file(np.zeros((64, 64, 3), np.uint8))[:60], "is cut short"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image of a known format"),
        (as_file(np.zeros((8, 8)), "npy"), "is float64; scale"),
        (as_file(np.zeros((8, 8), np.uint8), "npy")[:-9], "is an .npy file that cannot be read"),
        (as_file(np.array([[{}]], dtype=object), "npy"), r"cannot be read \(Object arrays cannot be loaded"),
        (np.zeros((8, 8), np.float32), "is float32; scale"),
        (np.zeros(64, np.uint8), r"has shape \(64,\)"),
        (np.zeros((8, 8, 4), np.uint8), r"has shape \(8, 8, 4\)"),
        (np.zeros((0, 8), np.uint8), r"has shape \(0, 8\)"),
        (np.broadcast_to(np.uint8(0), (10_000, 5_000)), "is 5000 x 10000 pixels, more than the 40000000 allowed"),
        (huge("PNG"), "is 10000 x 5000 pixels, more than"),
        (huge("TIFF"), "more than the 40000000 allowed|is no image|is damaged|is cut short"),
        (huge("npy"), "is 5000 x 10000 pixels, more than"),
        (None, "is a NoneType; give"),
        ("text", "is a str; give"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_by_its_number(predictor: Predictor, image: Any, says: str) -> None:
    good = np.zeros((8, 8), np.uint8)
    with pytest.raises(DataError, match=rf"^image 2 .*({says})"):
        predictor.probabilities([good, good, image, good])
    assert len(predictor.probabilities([good])) == 1


def test_no_images_are_refused(predictor: Predictor) -> None:
    with pytest.raises(DataError, match="no images"):
        predictor.probabilities([])


def test_a_form_that_does_not_fit_is_refused(tuned: dict[str, Path], tmp_path: Path) -> None:
    model = tuned["float32"] / "model.pt"
    with pytest.raises(ConfigError, match="takes images of 1 channels, the form has 3"):
        Predictor.load(model, Form(size=8, crop=None, channels=3, intensity="image"))
    with pytest.raises(ConfigError, match="neither size nor crop"):
        Predictor.load(model, Form(size=None, crop=None, channels=1, intensity="image"))
    with pytest.raises(ConfigError, match="temperature 0"):
        Predictor.load(model, FORM, temperature=0)
    with pytest.raises(CheckpointError, match="does not exist"):
        Predictor.load(tmp_path / "model.pt", FORM)
