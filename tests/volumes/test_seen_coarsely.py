"""A volume seen from farther away: means of boxes, of which each chunk is read once."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_engine.plan.box import Box
from unet_engine.volumes import coarse
from unet_engine.volumes.coarse import Coarse


def seen(voxels, factors, chunks=(5, 8, 6)):
    """The volume and the boxes that are read of it."""
    boxes = []

    def read(box, recorder=None):
        boxes.append(box)
        return voxels[(slice(None), *box.slices())]

    scan = SimpleNamespace(
        shape=voxels.shape[1:], channels=len(voxels), chunks=chunks, dtype=voxels.dtype, spatial="zyx", read=read
    )
    return Coarse(scan, factors), boxes


def mean_of(voxels, factors, index):
    return voxels[(slice(None), *(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True)))].mean(
        (1, 2, 3)
    )


@given(st.tuples(*[st.integers(1, 30)] * 3), st.tuples(*[st.integers(1, 4)] * 3), st.data())
@settings(max_examples=40, deadline=None)
def test_a_voxel_is_the_mean_of_its_box_whatever_is_read_at_once(shape, factors, data):
    voxels = np.random.default_rng(0).integers(0, 255, (2, *shape), np.uint8)
    volume, _ = seen(voxels, factors)
    lo = tuple(data.draw(st.integers(0, n - 1)) for n in volume.shape)
    box = Box(lo, tuple(data.draw(st.integers(l + 1, n)) for l, n in zip(lo, volume.shape, strict=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarse, "MOST", data.draw(st.sampled_from([1, 500, 2**24])))
        found = volume.read(box)
    assert found.dtype == np.float32
    for index in np.ndindex(box.shape):
        there = tuple(l + i for l, i in zip(lo, index, strict=True))
        np.testing.assert_allclose(found[(slice(None), *index)], mean_of(voxels, factors, there), rtol=1e-6)


def test_each_chunk_is_read_once_and_no_more_at_once_than_is_allowed(monkeypatch):
    monkeypatch.setattr(coarse, "MOST", 4096)
    volume, boxes = seen(np.zeros((1, 64, 64, 64), np.uint8), (4, 4, 4), chunks=(16, 16, 32))
    volume.read(Box.of_shape(volume.shape))
    read = np.zeros((4, 4, 2), int)
    for box in boxes:
        assert box.size <= 16 * 16 * 32
        read[tuple(slice(lo // c, -(-hi // c)) for lo, hi, c in zip(box.lo, box.hi, (16, 16, 32), strict=True))] += 1
    assert (read == 1).all()
