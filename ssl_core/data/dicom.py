"""Reading DICOM through the optional package pydicom: modality LUT, window, photometric interpretation."""

from __future__ import annotations

import importlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.form import Intensity, Unreadable, limits, to_bytes
from ssl_core.errors import DataError

_GREY = ("MONOCHROME1", "MONOCHROME2")


def look(file: Path | BytesIO) -> dict[str, Any]:
    """Width, height and whether it is grey, from the header."""
    header = _pydicom(file).dcmread(file, stop_before_pixels=True, force=False)
    return {"width": int(header.Columns), "height": int(header.Rows), "grey": header.PhotometricInterpretation in _GREY}


def read(source: Path | BytesIO, intensity: Intensity) -> tuple[NDArray[np.uint8], int]:
    """Pixels (H, W) or (H, W, 3) as a viewer shows them first, and the bits stored a channel.

    Grey: stored values become modality units (rescale slope and intercept, or the modality LUT), then the file's first
    VOI LUT or window decides what is black and white; without one `intensity` does, in modality units. MONOCHROME1 is
    inverted last. Colour: YBR and palette become RGB. Steps and their order: DICOM PS3.3 C.11.1, C.11.2 and PS3.4 N.2.
    """
    file = _pydicom(source).dcmread(source)
    if "PixelData" not in file and "FloatPixelData" not in file and "DoubleFloatPixelData" not in file:
        raise Unreadable("holds no pixels")
    frames = int(file.get("NumberOfFrames") or 1)
    if frames > 1:
        raise Unreadable(f"holds {frames} frames")
    pixels = importlib.import_module("pydicom.pixels")
    values = pixels.pixel_array(file)  # (H, W) or (H, W, 3): YBR already RGB
    bits = int(file.get("BitsStored") or file.BitsAllocated)
    kind = str(file.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        depth = int(file.RedPaletteColorLookupTableDescriptor[2])
        return to_bytes(pixels.apply_color_lut(values, file), 0, 2**depth - 1), bits
    if kind not in _GREY:
        return (values if bits == 8 else to_bytes(values, 0, 2**bits - 1)), bits
    grey = _windowed(file, pixels, values, bits, intensity)
    return (255 - grey if kind == "MONOCHROME1" else grey), bits


def _windowed(file: Any, pixels: Any, stored: NDArray[Any], bits: int, intensity: Intensity) -> NDArray[np.uint8]:
    values = pixels.apply_modality_lut(stored, file)
    if file.get("VOILUTSequence"):
        depth = int(file.VOILUTSequence[0].LUTDescriptor[2])
        return to_bytes(pixels.apply_voi(np.rint(values).astype(np.int64), file, index=0), 0, 2**depth - 1)
    centre, width = _first(file.get("WindowCenter")), _first(file.get("WindowWidth"))
    if centre is not None and width is not None:
        return _window(values, centre, width, str(file.get("VOILUTFunction") or "LINEAR").upper())
    if bits <= 8 and values is stored:
        return to_bytes(stored, 0, 2**bits - 1)  # `intensity` is for more
    signed = bool(file.get("PixelRepresentation"))
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1], dtype=stored.dtype)
    full = pixels.apply_modality_lut(ends, file)
    return to_bytes(values, *limits(values, intensity, (float(full.min()), float(full.max()))))


def _window(values: NDArray[Any], centre: float, width: float, function: str) -> NDArray[np.uint8]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    match function:
        case "SIGMOID":
            return to_bytes(1 / (1 + np.exp(-4 * (values - centre) / width)), 0, 1)
        case "LINEAR_EXACT":
            return to_bytes(values, centre - width / 2, centre + width / 2)
        case _:
            return to_bytes(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value[0]) if hasattr(value, "__getitem__") and not isinstance(value, str) else float(value)


def _pydicom(source: Path | BytesIO) -> Any:
    try:
        return importlib.import_module("pydicom")
    except ImportError:
        image = f"image {source}" if isinstance(source, Path) else "an image"
        raise DataError(f"{image} is DICOM, which needs the package pydicom: install intermoco[dicom]") from None
