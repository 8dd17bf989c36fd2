"""Codecs that cannot be bounded run in processes of their own: what they give is the same, and bombs are errors."""

import json
import time

import numpy as np
import pytest

from support.shares import share
from unet_engine.errors import DataError
from unet_engine.plan.box import Box
from unet_engine.storage import guarded
from unet_engine.volumes.formats import open_volume

imagecodecs = pytest.importorskip("imagecodecs")
BOX = Box((0, 0), (64, 64))
IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
PICTURES = {
    "jpeg2k": imagecodecs.jpeg2k_encode, "png": imagecodecs.png_encode, "jpegls": imagecodecs.jpegls_encode,
    "jpegxl": lambda image: imagecodecs.jpegxl_encode(image, lossless=True),
    "brotli": lambda image: imagecodecs.brotli_encode(image.tobytes(), level=1),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _registered():
    from imagecodecs.numcodecs import register_codecs
    from numcodecs.registry import codec_registry

    before = dict(codec_registry)
    register_codecs(verbose=False)
    yield
    codec_registry.clear()
    codec_registry.update(before)


def stored(folder, codec, data, filters=None):
    folder.mkdir()
    metadata = {
        "zarr_format": 2, "shape": [64, 64], "chunks": [64, 64], "dtype": "|u1", "fill_value": 0, "order": "C",
        "compressor": codec, "filters": filters,
    }  # fmt: skip
    (folder / ".zarray").write_text(json.dumps(metadata))
    (folder / "0.0").write_bytes(data)
    return str(folder)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_read_as_they_are(tmp_path, name):
    path = stored(tmp_path / "a.zarr", {"id": f"imagecodecs_{name}"}, PICTURES[name](IMAGE))
    assert np.array_equal(open_volume(path).read(BOX)[0], IMAGE)


@pytest.mark.parametrize("name", share(["brotli", "jpegls", "png"], 2))
def test_what_unpacks_to_far_more_is_an_error_naming_the_codec_and_the_next_chunk_is_read(tmp_path, name):
    bomb = PICTURES[name](np.zeros((20000, 20000), np.uint8))
    path = stored(tmp_path / "a.zarr", {"id": f"imagecodecs_{name}"}, bomb)
    with pytest.raises(DataError, match=rf"chunk y=0 x=0 .*imagecodecs_{name} takes more than 25. MiB.*restore"):
        open_volume(path).read(BOX)
    (tmp_path / "a.zarr" / "0.0").write_bytes(PICTURES[name](IMAGE))
    assert np.array_equal(open_volume(path).read(BOX)[0], IMAGE)


def test_what_is_a_little_more_than_a_chunk_is_an_error_too(tmp_path):
    path = stored(tmp_path / "a.zarr", {"id": "imagecodecs_png"}, PICTURES["png"](np.zeros((2000, 2000), np.uint8)))
    with pytest.raises(DataError, match=r"unpacks to more than 72 KiB, and a chunk of this array to 4 KiB"):
        open_volume(path).read(BOX)


def test_a_filter_gets_numbers_of_their_type(tmp_path):
    data = imagecodecs.delta_encode(IMAGE.reshape(-1)).tobytes()
    path = stored(tmp_path / "a.zarr", None, data, [{"id": "imagecodecs_delta", "dtype": "u1", "shape": [64 * 64]}])
    assert np.array_equal(open_volume(path).read(BOX)[0], IMAGE)


class Stubborn:
    """Ends its process."""

    codec_id = "stubborn"

    def decode(self, _):
        import os

        os._exit(3)


def test_a_codec_that_ends_its_process_is_an_error():
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"codec stubborn took more than .* or failed: it was ended"):
        guarded.decoded(Stubborn(), np.zeros(8, np.uint8), 64)
    assert time.monotonic() - begun < 30
