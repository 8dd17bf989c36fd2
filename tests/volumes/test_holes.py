"""What lies in holes of what is not 0, against SciPy, whichever slabs and boxes it is looked at in."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.volumes import make_volume
from unet_engine.errors import DataError
from unet_engine.plan.box import Box
from unet_engine.volumes import holes
from unet_engine.volumes.formats import open_volume

ndimage = pytest.importorskip("scipy.ndimage")


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 2**18]))
@settings(max_examples=60, deadline=None)
def test_what_is_outside_is_what_scipy_does_not_fill(seed, runs):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 12, 3))
    voxels = (rng.random((2, *shape)) > rng.choice([0.3, 0.5, 0.6, 0.7])).astype(np.uint8)
    voxels[:, shape[0] // 2] |= np.uint8(rng.integers(0, 2))  # a plane without background
    expected = ~ndimage.binary_fill_holes(voxels.any(0))
    np.testing.assert_array_equal(holes.outside_of(voxels), expected)
    before, holes.RUNS = holes.RUNS, runs
    try:
        search, step, along = holes._Search(shape), int(rng.integers(1, 5)), int(rng.integers(1, 6))
        for z in range(0, shape[0], step):
            cells = Box((z, 0, 0), (min(z + step, shape[0]), *shape[1:])).cells((step, shape[1], along))
            found = [holes._runs((voxels[(slice(None), *c.slices())] == 0).all(0), c, shape) for c in cells]
            search.add(*map(np.concatenate, zip(*found, strict=True)))
    finally:
        holes.RUNS = before
    known = pickle.loads(pickle.dumps(search.holes()))
    lo = [int(rng.integers(0, n)) for n in shape]
    box = Box(tuple(lo), tuple(int(rng.integers(l + 1, n + 1)) for l, n in zip(lo, shape, strict=True)))
    found = holes.outside(voxels[(slice(None), *box.slices())], known, box)
    np.testing.assert_array_equal(found, expected[box.slices()])


def test_a_plane_is_open_to_both_sides(tmp_path):
    """So it is to nnU-Net, which gives planes a third axis."""
    ring = np.ones((1, 9, 9), np.uint8)
    ring[:, 4, 4] = 0
    assert holes.outside_of(ring)[4, 4]
    assert holes.outside_of(ring[:, np.newaxis])[0, 4, 4]
    assert not ndimage.binary_fill_holes(ring).any() or not ndimage.binary_fill_holes(ring)[0, 4, 4]
    assert holes.holes_of(open_volume(make_volume(tmp_path / "v.zarr", ring[0], axes="yx"))) is None


def test_more_than_can_be_held_are_refused(tmp_path, monkeypatch):
    voxels = np.ones((9, 9, 9), np.uint8)
    voxels[1:8:2, 1:8:2, 1:8:2] = 0
    volume = open_volume(make_volume(tmp_path / "v.zarr", voxels, axes="zyx"))
    monkeypatch.setattr(holes, "MOST", 5)
    with pytest.raises(DataError, match=r"may be holes; use --normalize with foreground in place"):
        holes.holes_of(volume)
