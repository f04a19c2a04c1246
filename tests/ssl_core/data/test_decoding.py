"""Every format comes to the pixels that were put in it; what cannot be decoded says why in a few words."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_core.data.decoding import Form, Unreadable, decode, look
from ssl_core.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(256, size=(6, 8), dtype=np.uint8)
RGB = RNG.integers(256, size=(6, 8, 3), dtype=np.uint8)
DEEP = RNG.integers(1000, 5000, size=(6, 8)).astype(np.uint16)


def form(**changes: Any) -> Form:
    return Form(**({"size": None, "crop": None, "channels": 3, "intensity": "image"} | changes))


def pixels(path: Path, **changes: Any) -> np.ndarray:
    found = decode(path, form(**changes)).pixels
    assert found.dtype == np.uint8
    return found[..., 0] if found.shape[2] == 1 else found


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.tiff", "a.webp"])
def test_formats_without_loss_keep_every_pixel(tmp_path: Path, name: str) -> None:
    Image.fromarray(RGB).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert (pixels(tmp_path / name) == RGB).all()
    found = look(tmp_path / name)
    assert (found.width, found.height, found.grey) == (8, 6, False)


def test_a_jpeg_is_what_its_decoder_says(tmp_path: Path) -> None:
    for array, channels in ((GREY, 1), (RGB, 3)):
        Image.fromarray(array).save(tmp_path / "a.jpeg", quality=80)
        assert (pixels(tmp_path / "a.jpeg", channels=channels) == np.asarray(Image.open(tmp_path / "a.jpeg"))).all()
        assert look(tmp_path / "a.jpeg").grey == (channels == 1)


def test_grey_fills_three_channels_and_colour_becomes_grey_where_asked(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(RGB).save(tmp_path / "colour.png")
    assert (pixels(tmp_path / "grey.png") == GREY[..., None]).all()
    luminance = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(pixels(tmp_path / "colour.png", channels=1) - luminance).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize(
    ("intensity", "low", "high"),
    [("image", int(DEEP.min()), int(DEEP.max())), ("full", 0, 65535), ((2000, 4000), 2000, 4000)],
)
def test_sixteen_bits_become_eight_as_intensity_says(
    tmp_path: Path, name: str, intensity: Any, low: int, high: int
) -> None:
    Image.fromarray(DEEP).save(tmp_path / name)
    found = decode(tmp_path / name, form(channels=1, intensity=intensity))
    assert (found.pixels[..., 0] == scaled(DEEP, low, high)).all()
    assert (found.width, found.height, found.bits) == (8, 6, 16)
    assert look(tmp_path / name).grey


@pytest.mark.parametrize(
    ("values", "full"),
    [
        (DEEP.astype(np.int32) - 3000, (-(2**31), 2**31 - 1)),
        ((DEEP / 5000).astype(np.float32), (0, 1)),
    ],
)
def test_whole_and_real_numbers_of_32_bits(tmp_path: Path, values: np.ndarray, full: tuple[float, float]) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert (pixels(tmp_path / "a.tif", channels=1) == scaled(values, values.min(), values.max())).all()
    assert (pixels(tmp_path / "a.tif", channels=1, intensity="full") == scaled(values, *full)).all()
    assert decode(tmp_path / "a.tif", form()).bits == 32


def test_eight_bits_are_left_alone_whatever_intensity_says(tmp_path: Path) -> None:
    Image.fromarray(GREY // 2).save(tmp_path / "a.png")
    for intensity in ("image", "full", (10.0, 20.0)):
        assert (pixels(tmp_path / "a.png", channels=1, intensity=intensity) == GREY // 2).all()


def test_a_deep_image_of_one_value_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 700, np.uint16)).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == 0).all()


def test_real_numbers_that_are_none_are_unreadable(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(Unreadable, match="NaN"):
        pixels(tmp_path / "a.tif")


def test_sixteen_bit_colour_keeps_its_high_bytes(tmp_path: Path) -> None:
    deep = RNG.integers(65536, size=(6, 8, 3)).astype(">u2")
    write_png(tmp_path / "a.png", deep)
    found = decode(tmp_path / "a.png", form())
    assert (found.pixels == deep >> 8).all()
    assert found.bits == 16


def write_png(path: Path, values: np.ndarray) -> None:
    """A 16-bit RGB PNG, which Pillow reads but does not write."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_a_palette_becomes_its_colours_and_its_transparent_entry_black(tmp_path: Path) -> None:
    image = Image.fromarray(GREY % 4, mode=None).convert("L")
    indexed = Image.new("P", (8, 6))
    indexed.putdata((GREY % 4).ravel().tolist())
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [1, 2, 3]], dtype=np.uint8)
    indexed.putpalette(colours.ravel().tolist())
    indexed.save(tmp_path / "a.png")
    assert image.size == indexed.size
    assert (pixels(tmp_path / "a.png") == colours[GREY % 4]).all()
    indexed.save(tmp_path / "b.png", transparency=1)
    colours[1] = 0
    assert (pixels(tmp_path / "b.png") == colours[GREY % 4]).all()
    assert not look(tmp_path / "b.png").grey


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_laid_on_black(tmp_path: Path, mode: str) -> None:
    alpha = RNG.integers(256, size=(6, 8), dtype=np.uint8)
    alpha[0, 0], alpha[0, 1] = 0, 255
    below = RGB if mode == "RGBA" else GREY[..., None]
    Image.fromarray(np.concatenate([below, alpha[..., None]], axis=2), mode=None).save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png", channels=below.shape[2]).reshape(below.shape)
    assert np.abs(found - below * (alpha[..., None] / 255)).max() <= 1
    assert (found[0, 0] == 0).all()
    assert (found[0, 1] == below[0, 1]).all()


def test_a_transparent_grey_value_is_black(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png", transparency=int(GREY[2, 3]))
    expected = np.where(GREY[2, 3] == GREY, 0, GREY)
    assert (pixels(tmp_path / "a.png", channels=1) == expected).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), (250, 120, 30), np.uint8)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - (250, 120, 30)).max() <= 6


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 127).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", form(channels=1))
    assert (found.pixels[..., 0] == np.where(GREY > 127, 255, 0)).all()
    assert found.bits == 1


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize(("orientation", "turn"), [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, 3))])
def test_photographs_are_turned_upright_before_they_are_measured(
    tmp_path: Path, orientation: int, turn: Any, compression: str | None, name: str
) -> None:
    image = Image.fromarray(GREY)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, compression=compression)
    found = decode(tmp_path / name, form(channels=1))
    assert (found.pixels[..., 0] == turn(GREY)).all()
    assert (look(tmp_path / name).width, look(tmp_path / name).height) == (found.width, found.height)
    assert (found.height, found.width) == turn(GREY).shape


def test_images_are_squashed_to_a_square_then_cropped_in_the_middle(tmp_path: Path) -> None:
    large = RNG.integers(256, size=(40, 60), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(large).resize((12, 12), Image.Resampling.BILINEAR))
    assert (pixels(tmp_path / "a.png", size=12, channels=1) == expected).all()
    assert (pixels(tmp_path / "a.png", size=12, crop=6, channels=1) == expected[3:9, 3:9]).all()
    assert np.abs(expected.mean() - large.mean()) < 2  # antialiased: every pixel counts
    found = decode(tmp_path / "a.png", form(size=12))
    assert (found.width, found.height) == (60, 40)  # as stored
    with pytest.raises(Unreadable, match="60 x 40 pixels are less than the crop of 50"):
        pixels(tmp_path / "a.png", crop=50)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp"])
def test_a_file_that_is_cut_short_says_so(tmp_path: Path, name: str) -> None:
    Image.fromarray(RNG.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(Unreadable) as why:
        pixels(tmp_path / name)
    assert str(why.value).startswith(("is cut short", "is damaged", "is no image"))
    assert str(tmp_path) not in str(why.value)
    assert "\n" not in str(why.value)


def test_what_is_no_image_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    frames = [Image.fromarray(GREY), Image.fromarray(GREY)]
    frames[0].save(tmp_path / "frames.tif", save_all=True, append_images=frames[1:])
    for name, said in {
        "empty.png": "is empty",
        "text.png": "is no image of a known format",
        "frames.tif": "holds 2 frames",
        "nowhere.png": "is missing",
    }.items():
        with pytest.raises(Unreadable, match=said):
            pixels(tmp_path / name)


def test_a_file_system_that_fails_is_no_property_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DataError, match=r"a.png cannot be read \(Is a directory\)") as why:
        pixels(tmp_path / "a.png")
    assert not isinstance(why.value, Unreadable)


# DICOM

STORED = RNG.integers(0, 4096, size=(6, 8)).astype(np.uint16)


def write_dicom(path: Path, values: np.ndarray = STORED, **tags: Any) -> Path:
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = pydicom.uid.generate_uid()
    bits = values.dtype.itemsize * 8
    file.Rows, file.Columns = values.shape[:2]
    file.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    if values.ndim == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated, file.BitsStored = bits, 12 if bits == 16 else bits
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(values.dtype.kind == "i")
    file.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
    file.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("name", ["a.dcm", "a", "a.001"])
def test_dicom_is_known_by_name_or_by_its_mark(tmp_path: Path, name: str) -> None:
    path = write_dicom(tmp_path / name)
    found = decode(path, form(channels=1))
    assert (found.pixels[..., 0] == scaled(STORED, STORED.min(), STORED.max())).all()
    assert (found.width, found.height, found.bits) == (8, 6, 12)
    assert (look(path).width, look(path).height, look(path).grey) == (8, 6, True)


def test_without_a_window_intensity_decides_in_modality_units(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=-1024)
    units = STORED * 2.0 - 1024
    assert (pixels(path, channels=1) == scaled(units, units.min(), units.max())).all()
    assert (pixels(path, channels=1, intensity="full") == scaled(units, -1024, 4095 * 2 - 1024)).all()
    assert (pixels(path, channels=1, intensity=(0, 400)) == scaled(units, 0, 400)).all()


def window(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, as written there, y from 0 to 255."""
    y = ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255
    y = np.where(x <= centre - 0.5 - (width - 1) / 2, 0, y)
    return np.rint(np.where(x > centre - 0.5 + (width - 1) / 2, 255, y)).astype(np.uint8)


def test_the_files_first_window_comes_before_intensity(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm", RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 500], WindowWidth=[400, 900]
    )
    expected = window(STORED - 1024.0, 40, 400)
    assert 0 < (expected == 0).mean() < 1
    assert (pixels(path, channels=1, intensity=(0, 1)) == expected).all()


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_windows_of_other_shapes(tmp_path: Path, function: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", WindowCenter=2000, WindowWidth=1000, VOILUTFunction=function)
    x = STORED.astype(float)
    share = {"LINEAR_EXACT": np.clip((x - 1500) / 1000, 0, 1), "SIGMOID": 1 / (1 + np.exp(-4 * (x - 2000) / 1000))}
    assert (pixels(path, channels=1) == np.rint(share[function] * 255).astype(np.uint8)).all()


@pytest.mark.parametrize("windowed", [{}, {"WindowCenter": 2000, "WindowWidth": 1000}])
def test_monochrome1_is_inverted(tmp_path: Path, windowed: dict[str, Any]) -> None:
    plain = pixels(write_dicom(tmp_path / "a.dcm", **windowed), channels=1)
    turned = write_dicom(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1", **windowed)
    assert (pixels(turned, channels=1) == 255 - plain).all()


def test_a_table_of_shown_values_is_looked_up(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = (np.arange(4096) ** 2 // 256).astype("<u2").tobytes()
    path = write_dicom(tmp_path / "a.dcm", VOILUTSequence=[table])
    assert (pixels(path, channels=1) == scaled(STORED.astype(np.int64) ** 2 // 256, 0, 65535)).all()


def test_signed_values(tmp_path: Path) -> None:
    values = (STORED // 2).astype(np.int16) - 1000
    path = write_dicom(tmp_path / "a.dcm", values)
    assert (pixels(path, channels=1, intensity="full") == scaled(values, -2048, 2047)).all()


def test_colour_dicom_becomes_rgb(tmp_path: Path) -> None:
    pixel_tools = pytest.importorskip("pydicom.pixels")
    path = write_dicom(tmp_path / "a.dcm", RGB)
    assert (pixels(path) == RGB).all()
    assert not look(path).grey
    ybr = pixel_tools.convert_color_space(RGB, "RGB", "YBR_FULL")
    path = write_dicom(tmp_path / "b.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(pixels(path).astype(int) - RGB).max() <= 2


def test_a_dicom_palette_becomes_its_colours(tmp_path: Path) -> None:
    colours = RNG.integers(256, size=(256, 3))
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for i, name in enumerate(("Red", "Green", "Blue")):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (colours[:, i] * 257).astype("<u2").tobytes()
    assert (pixels(write_dicom(tmp_path / "a.dcm", GREY, **tags)) == colours[GREY]).all()


def test_dicom_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.stack([STORED, STORED])[..., 0], NumberOfFrames=2)
    with pytest.raises(Unreadable, match="holds 2 frames"):
        pixels(path)
    path = write_dicom(tmp_path / "b.dcm")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(Unreadable, match=r"is cut short|is damaged"):
        pixels(path)
    (tmp_path / "c.dcm").write_text("hello")
    with pytest.raises(Unreadable, match="is damaged"):
        pixels(tmp_path / "c.dcm")


def test_dicom_without_pydicom_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"a.dcm is DICOM, .* install intermoco\[dicom\]") as why:
        pixels(tmp_path / "a.dcm")
    assert not isinstance(why.value, Unreadable)
