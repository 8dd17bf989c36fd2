"""How large pictures say that they are, as those who write them do."""

import numpy as np
import pytest

from unet_engine.volumes import pictures

imagecodecs = pytest.importorskip("imagecodecs")
KINDS = ["jpeg8", "jpegls", "jpeg2k", "png", "webp", "jpegxl", "jpegxr", "lerc"]


@pytest.mark.parametrize("shape", [(19, 45), (200, 200), (301, 1000)])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_as_large_as_they_say(kind, shape):
    array = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(np.uint8)
    array = np.stack([array] * 3, -1) if kind == "webp" else array
    assert pictures.sides(getattr(imagecodecs, f"{kind}_encode")(array)) == shape


def test_a_picture_may_be_larger_than_a_tile_that_is_cut_but_not_far():
    packed = imagecodecs.png_encode(np.zeros((4096, 4096), np.uint8))
    pictures.check(packed, 2048, 4096)
    with pytest.raises(ValueError, match="picture of 4096×4096, and a piece of this image is 64×64"):
        pictures.check(packed, 64, 64)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\x0a", b"II\xbc", b"junk" * 99]
)
def test_what_breaks_off_says_nothing(data):
    assert not pictures.sides(data) or data == b"\xff\x0a"
