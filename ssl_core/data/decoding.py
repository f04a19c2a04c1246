"""An image file -> uint8 pixels: PNG, JPEG, TIFF, BMP, WebP through Pillow, DICOM through `ssl_core.data.dicom`.

What is kept of a file: its upright picture (EXIF orientation applied), its pixels' place between black and white.
Transparent pixels are laid on black. Pixels of more than 8 bits become 0..255 as `intensity` says; colour images of 16
bits keep their high bytes, which is the format's range, whatever `intensity` says: Pillow decodes them so.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.form import GREY, Form, Intensity, Unreadable, coloured, limits, shaped, to_bytes
from ssl_core.errors import DataError

__all__ = ["MISSING", "SUFFIXES", "Decoded", "Form", "Look", "Unreadable", "decode", "is_dicom", "look"]

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm"})

#: Formats that bytes may have, which anybody may have sent: Pillow knows others, and one of them runs a program.
_SENT = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM")

MISSING = "is missing"  # why a file that is not there is unreadable

_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_WIDTH, _HEIGHT, _BITS, _ORIENTATION, _SIGN = 256, 257, 258, 274, 339  # tags of TIFF, one of EXIF too
_SIGNED, _FLOAT = 2, 3  # values of _SIGN


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a file's header says."""

    width: int  # upright
    height: int
    grey: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """An image in its form, and what it was as stored."""

    pixels: NDArray[np.uint8]  # (H, W, C)
    width: int
    height: int
    bits: int  # a channel


def look(source: Path | bytes) -> Look:
    """The size and kind of a file, or of a file's bytes, from its header. Unreadable where it has none."""
    with _reasons(source):
        if is_dicom(source):
            from ssl_core.data import dicom

            return Look(**dicom.look(_file(source)))
        with _opened(source) as image:
            width, height = _stored_size(image)
            # of PNG, only EXIF that precedes the pixels: Pillow would decode them all to find what comes after
            known = image.format != "PNG" or "exif" in image.info
            if known and image.getexif().get(_ORIENTATION) in _TURNED:
                width, height = height, width
            return Look(width=width, height=height, grey=image.mode in GREY)


def decode(source: Path | bytes, form: Form) -> Decoded:
    """The pixels of a file, or of a file's bytes, in the form asked for.

    Raises Unreadable for what is wrong with this file; DataError where DICOM is met without pydicom, or where the
    file system fails (a file that is there but may not be read), which is no property of the image.
    """
    from PIL import Image, ImageOps

    with _reasons(source):
        if is_dicom(source):
            from ssl_core.data import dicom

            values, bits = dicom.read(_file(source), form.intensity)
            image = Image.fromarray(values)
        else:
            with _opened(source) as opened:
                frames = getattr(opened, "n_frames", 1)
                if frames > 1 and opened.format != "MPO":  # a camera's JPEG with its own previews behind it
                    raise Unreadable(f"holds {frames} frames")
                bits = _bits(opened)
                if opened.format == "TIFF" and opened.getexif().get(_ORIENTATION) in _TURNED:
                    # Pillow 13 swaps a turned TIFF's size before it reads its rows, and then misreads uncompressed ones
                    opened._size = _stored_size(opened)
                limits = _limits(opened, bits)
                ImageOps.exif_transpose(opened, in_place=True)  # decodes
                image = opened
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                image = Image.fromarray(_scaled(image, form.intensity, limits))
        stored = image.size
        return Decoded(
            pixels=shaped(coloured(image, form.channels), form), width=stored[0], height=stored[1], bits=bits
        )


def is_dicom(source: Path | bytes) -> bool:
    """By name, or by what stands at byte 128."""
    if isinstance(source, bytes):
        return source[128:132] == b"DICM"
    if source.suffix.lower() == ".dcm":
        return True
    if source.suffix.lower() in SUFFIXES:
        return False
    with source.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _file(source: Path | bytes) -> Path | BytesIO:
    return BytesIO(source) if isinstance(source, bytes) else source


def _opened(source: Path | bytes) -> Image:
    """The image with its header read."""
    from PIL import Image

    return Image.open(_file(source), formats=_SENT if isinstance(source, bytes) else None)


def _scaled(image: Image, intensity: Intensity, full: tuple[float, float]) -> NDArray[np.uint8]:
    values = np.asarray(image)
    if full[1] > 0x7FFFFFFF:
        values = values.view(np.uint32)  # Pillow has no unsigned mode
    return to_bytes(values, *limits(values, intensity, full))


def _stored_size(image: Image) -> tuple[int, int]:
    """Width and height before the picture is turned upright; Pillow swaps those of TIFF already when it opens one."""
    tags = getattr(image, "tag_v2", None)
    return image.size if tags is None else (int(tags[_WIDTH]), int(tags[_HEIGHT]))


def _bits(image: Image) -> int:
    """Bits a channel, as stored."""
    tags = getattr(image, "tag_v2", None)  # TIFF says so itself: 12 bits come in a 16-bit mode
    if tags is not None:
        return int(tags.get(_BITS, (1,))[0])
    tiles = getattr(image, "tile", None)  # how the file's bytes become the mode's, e.g. "RGB;16B"
    raw = str(tiles[0].args) if tiles else ""
    if "16" in raw or image.mode.startswith("I;16"):
        return 16
    return {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)


def _limits(image: Image, bits: int) -> tuple[float, float]:
    """Least and greatest value that the format can hold; of floating point, 0 and 1."""
    tags = getattr(image, "tag_v2", None)
    sign = 1 if tags is None else int(tags.get(_SIGN, (1,))[0])
    if image.mode == "F" or sign == _FLOAT:
        return 0.0, 1.0
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if sign == _SIGNED else (0.0, 2.0**bits - 1)


@contextlib.contextmanager
def _reasons(source: Path | bytes) -> Iterator[None]:
    """Whatever a decoder raises on a bad file, as Unreadable with few words."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        empty = not source if isinstance(source, bytes) else source.stat().st_size == 0
        raise Unreadable("is empty" if empty else "is no image of a known format, or its header is damaged") from None
    except Image.DecompressionBombError as error:
        raise Unreadable(f"has too many pixels ({error})") from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and isinstance(source, Path):
            raise Unreadable(MISSING) from None
        if error.errno is not None and isinstance(source, Path):
            raise DataError(f"{source} cannot be read ({error.strerror}); check its rights and its disk") from error
        raise Unreadable(_words(error)) from error
    except Exception as error:  # decoders meet damaged files with whatever their code runs into
        raise Unreadable(_words(error)) from error


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    cut = any(word in text.lower() for word in ("truncated", "premature", "unexpected end", "not enough"))
    return f"is cut short ({text})" if cut else f"is damaged ({text or type(error).__name__})"
