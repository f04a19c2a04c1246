"""A fine-tuned model as others use it: image files or pixels of any size in, probabilities out.

Pixels come to their form by the code that packs datasets, and to the encoder by the code that evaluates, in the
precision of the evaluation: float32, whatever the training's. So on the machine that evaluated, a packed image's
probabilities are those that the evaluation stored. On two CPU cores they differed by 1e-7 at most, whatever the batch
and the threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_core import devices
from ssl_core.batches import plain
from ssl_core.classifier import Classifier, load_classifier, probabilities
from ssl_core.config import Precision
from ssl_core.data.dataset import Task
from ssl_core.data.decoding import decode, look
from ssl_core.data.form import Form, from_array
from ssl_core.errors import ConfigError, DataError

Image = bytes | NDArray[np.uint8]

#: Pixels of the largest image that is decoded: a mammogram has 27 million at most, a chest film 10.
MAX_PIXELS = 40_000_000

#: Images shaped and passed through the model together.
BATCH = 64

_NPY = b"\x93NUMPY"  # how an array's file begins


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A model with all that its inputs need."""

    model: Classifier  # in eval mode, on the device
    form: Form
    mean: tuple[float, ...]
    std: tuple[float, ...]
    task: Task
    class_names: tuple[str, ...]
    precision: Precision  # of the evaluation
    temperature: float  # what logits are divided by
    device: torch.device
    max_pixels: int

    @classmethod
    def load(
        cls,
        model: Path,
        form: Form,
        *,
        temperature: float = 1.0,
        device: str | torch.device | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Predictor:
        """The predictor of a fine-tuning's `model.pt`, for images in the `form` that its dataset was packed in.

        Raises CheckpointError if the file is missing, damaged or no classifier, ConfigError if the form does not fit.
        """
        if form.size is None and form.crop is None:
            raise ConfigError("the form has neither size nor crop; set its size to the side of the packed images")
        if not 0 < temperature < float("inf"):
            raise ConfigError(f"temperature {temperature} must be a number above 0; 1 changes nothing")
        classifier, facts = load_classifier(model)
        if facts["channels"] != form.channels:
            raise ConfigError(
                f"{model} takes images of {facts['channels']} channels, the form has {form.channels}; "
                "give the form of the dataset that it was fine-tuned on"
            )
        chosen = devices.choose(device)
        return cls(
            model=devices.place(classifier, chosen),
            form=form,
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
            task=facts["task"],
            class_names=tuple(facts["class_names"]),
            precision=facts["precision"],
            temperature=temperature,
            device=chosen,
            max_pixels=max_pixels,
        )

    @property
    def side(self) -> int:
        """Pixels a side of what the model sees."""
        side = self.form.size if self.form.crop is None else self.form.crop
        assert side is not None  # `load` has looked
        return side

    def probabilities(self, images: Sequence[Image]) -> NDArray[np.float64]:
        """Probabilities [n, K] float64, as the evaluation stores them: K is 1 for two classes (of the second one).

        An image is the bytes of a file (PNG, JPEG, TIFF, BMP, WebP, GIF, JPEG 2000, PPM, DICOM, or .npy with pixels) or
        pixels, uint8 (H, W), (H, W, 1) or (H, W, 3). Memory: that of one decoded image and of a batch in its form.

        Raises DataError, which names the image, for what cannot be decoded, has more than `max_pixels` pixels (decided
        by its header) or is no pixels of that type and shape; and where there are no images.
        """
        if len(images) == 0:
            raise DataError("no images were given; give a sequence with one image at least")
        logits = torch.cat([self.logits(pixels) for pixels in self._shaped(images)])
        return probabilities(logits.cpu().double() / self.temperature, self.task).numpy()

    @torch.inference_mode()
    def logits(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Logits [B, K] float32, before the temperature, of pixels [B, S, S, C] that are in their form already."""
        images = plain(pixels, self.mean, self.std, self.device)
        with devices.inference(self.device, self.precision):
            embedding = self.model.encoder(images)[0]
        logits: Tensor = self.model.head(embedding)  # the classifier never runs in reduced precision
        return logits

    def _shaped(self, images: Sequence[Image]) -> Iterator[NDArray[np.uint8]]:
        """Batches [B, S, S, C] of images in their form."""
        for start in range(0, len(images), BATCH):
            yield np.stack([self._pixels(images[i], i) for i in range(start, min(start + BATCH, len(images)))])

    def _pixels(self, image: Any, index: int) -> NDArray[np.uint8]:
        """One image (S, S, C) in its form; DataError begins with the image's number, from 0."""
        try:
            if isinstance(image, bytes | bytearray | memoryview):
                data = bytes(image)
                if not data.startswith(_NPY):
                    header = look(data)
                    self._bound(header.width, header.height)
                    return decode(data, self.form).pixels
                image = self._array(data)
            return from_array(self._checked(image), self.form)
        except DataError as error:
            raise type(error)(f"image {index} {error}") from error

    def _array(self, data: bytes) -> NDArray[Any]:
        """The array in an .npy file's bytes, its pickles refused and its size looked at first."""
        file = BytesIO(data)
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape = read(file)[0]
            if len(shape) >= 2:
                self._bound(shape[1], shape[0])
            array: NDArray[Any] = np.load(BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"is an .npy file that cannot be read ({error}); save it with np.save") from error
        return array

    def _checked(self, pixels: Any) -> NDArray[np.uint8]:
        """Pixels (H, W, C); DataError where they are none."""
        if not isinstance(pixels, np.ndarray):
            raise DataError(f"is a {type(pixels).__name__}; give a file's bytes, or pixels as a uint8 array")
        if pixels.dtype != np.uint8:
            raise DataError(f"is {pixels.dtype}; scale its pixels to 0..255 and give them as uint8")
        full = pixels[..., None] if pixels.ndim == 2 else pixels
        if full.ndim != 3 or full.shape[2] not in (1, 3) or 0 in full.shape:
            raise DataError(f"has shape {pixels.shape}; expected (H, W), (H, W, 1) or (H, W, 3)")
        self._bound(full.shape[1], full.shape[0])
        return np.ascontiguousarray(full)

    def _bound(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise DataError(
                f"is {width} x {height} pixels, more than the {self.max_pixels} allowed; send a smaller one"
            )
