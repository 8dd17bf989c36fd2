"""Any box of an array in a file, read by rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_engine.storage.plain_files import read_box


@st.composite
def boxes(draw):
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    return shape, [range(a, draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True)]


@given(boxes(), st.sampled_from(["u1", ">i2", "<f8"]), st.integers(0, 5))
def test_a_box_is_what_numpy_cuts(tmp_path_factory, box, dtype, offset):
    shape, spans = box
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    path = tmp_path_factory.getbasetemp() / "plain.raw"
    path.write_bytes(b"\xff" * offset + array.tobytes())
    found = read_box(str(path), offset, shape, array.dtype, spans)
    assert np.array_equal(found, array[tuple(slice(s.start, s.stop) for s in spans)])


def test_a_file_that_is_cut_off_meanwhile(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(100))
    with pytest.raises(OSError, match="ends at byte 100"):
        read_box(str(tmp_path / "a.raw"), 0, (11, 10), np.dtype("u1"), [range(11), range(10)])
