"""Pixels in the form that a dataset is packed in, wherever they come from: their size, crop, channels, intensity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Intensity = Literal["image", "full"] | tuple[float, float]

#: Pillow's modes without colour.
GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})


class Unreadable(DataError):
    """One image that cannot be decoded or packed; the message says why in a few words, without the image's name."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What pixels are brought to."""

    size: int | None  # side in pixels, squashed to a square; None: as stored
    crop: int | None  # side of the middle that is kept afterwards
    channels: Literal[1, 3]
    intensity: Intensity


def shaped(image: Image, form: Form) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of a grey or RGB image: resized (bilinear, antialiased where it shrinks), then cropped."""
    from PIL.Image import Resampling

    if form.size is not None and image.size != (form.size, form.size):
        image = image.resize((form.size, form.size), Resampling.BILINEAR)
    if form.crop is not None:
        left, top = (image.width - form.crop) // 2, (image.height - form.crop) // 2
        if left < 0 or top < 0:
            raise Unreadable(f"{image.width} x {image.height} pixels are less than the crop of {form.crop}")
        image = image.crop((left, top, left + form.crop, top + form.crop))
    return _array(image)


def from_array(pixels: NDArray[np.uint8], form: Form) -> NDArray[np.uint8]:
    """`pixels` (H, W, C), C of 1 or 3, in the form asked for."""
    from PIL import Image

    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return shaped(coloured(image, form.channels), form)


def to_bytes(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """`values` with `low` black and `high` white, clipped. Where both are the same, what lies above is white."""
    if high <= low:
        return np.where(values > low, np.uint8(255), np.uint8(0))
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def limits(values: NDArray[Any], intensity: Intensity, full: tuple[float, float]) -> tuple[float, float]:
    """The values that become black and white: of this image, of its format (`full`), or as given."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Unreadable("holds NaN or infinite values")
    if intensity == "image":
        return float(values.min()), float(values.max())
    return full if intensity == "full" else intensity


def coloured(image: Image, channels: Literal[1, 3]) -> Image:
    """The image as L or RGB, on black where it is transparent."""
    from PIL import Image as pillow

    mode = "L" if channels == 1 else "RGB"
    if image.has_transparency_data:
        flat = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", flat.size, (0, 0, 0, 255)), flat)
    elif image.mode not in (*GREY, "RGB"):
        image = image.convert("RGB")  # palette, CMYK, YCbCr, LAB
    return image if image.mode == mode else image.convert(mode)


def _array(image: Image) -> NDArray[np.uint8]:
    array = np.asarray(image, dtype=np.uint8)
    return array.reshape(*array.shape[:2], -1)
