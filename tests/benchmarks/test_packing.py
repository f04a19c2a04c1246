"""What the packing benchmark compares: the pixels that packing writes are those that the decoder gives."""

import numpy as np

from ssl_core.data.config import DatasetConfig
from ssl_core.data.decoding import decode
from ssl_core.data.form import Form
from ssl_core.data.packing import pack
from tests.benchmarks.packing import radiographs


def test_packed_pixels_are_the_decoders_and_the_files_compress_as_radiographs_do(tmp_path):
    paths = radiographs(tmp_path / "source", 60, 64, different=60)
    config = DatasetConfig(source="folder", path=str(tmp_path / "source"), size=32)
    packed = pack(config, tmp_path / "packed", threads=2)
    form = Form(size=32, crop=None, channels=1, intensity="image")
    place = {str(name): i for i, name in enumerate(packed.ids)}
    for path in paths:
        found = packed.images[place[path.relative_to(tmp_path / "source").as_posix()]]
        np.testing.assert_array_equal(found, decode(path, form).pixels)
    assert len({path.read_bytes() for path in paths}) == 60
