"""The window grid and its weights, axis by axis."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unet_engine.plan.grid import AxisGrid
from unet_engine.stitching.weights import FLOOR, axis_weights, covers, profile

axes = st.builds(
    AxisGrid.with_overlap,
    size=st.integers(1, 80),
    window=st.integers(1, 24),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75, 0.9]),
    margin=st.integers(0, 5),
    blend=st.sampled_from(["gaussian", "constant", "crop", "monai", "nnunet"]),
)


@given(axes)
def test_windows_cover_the_axis_and_the_last_one_ends_with_it(axis: AxisGrid) -> None:
    covered = {x for k in range(axis.count) for x in range(*axis.support(k))}
    assert covered == set(range(axis.size))
    if axis.size >= axis.window:
        assert axis.start(0) == 0
        assert axis.start(axis.count - 1) + axis.window == axis.size


@given(axes)
def test_starts_are_multiples_of_the_stride_but_for_the_last(axis: AxisGrid) -> None:
    starts = [axis.start(k) for k in range(axis.count)]
    assert starts == sorted(set(starts))
    if axis.size >= axis.window and axis.blend != "nnunet":
        assert starts[:-1] == [k * axis.stride for k in range(axis.count - 1)]


@given(axes)
def test_distances_lie_between_the_stride_and_the_longest(axis: AxisGrid) -> None:
    starts = [axis.start(k) for k in range(axis.count)]
    distances = [b - a for a, b in itertools.pairwise(starts)]
    assert all(0 < d <= axis.longest for d in distances)
    assert all(d >= axis.stride for d in distances[: None if axis.blend == "nnunet" else -1])
    assert all(b - a >= axis.window for a, b in zip(starts, starts[axis.most :], strict=False))


def test_the_grid_is_that_of_the_published_sliding_windows() -> None:
    """Window 64, overlap 0.5 over 520 voxels: 0, 32, ... 448 and a last one moved back to 456."""
    axis = AxisGrid.with_overlap(520, 64, 0.5, 0, "gaussian")
    assert [axis.start(k) for k in range(axis.count)] == [*range(0, 449, 32), 456]


def test_an_axis_shorter_than_the_window_has_one_centred_window() -> None:
    """Centred, as peers pad on both sides: 10 voxels in a window of 16 leave 3 before and 3 behind."""
    axis = AxisGrid.with_overlap(10, 16, 0.5, 0, "gaussian")
    assert (axis.count, axis.start(0), axis.support(0)) == (1, -3, (0, 10))


@given(axes)
def test_weights_sum_to_one_at_every_voxel(axis: AxisGrid) -> None:
    total = np.zeros(axis.size)
    over = covers(axis, 0, axis.size)
    for k in range(axis.count):
        lo, hi = axis.support(k)
        weights = axis_weights(axis, k).copy()
        if axis.divides:
            weights[lo - axis.start(k) : hi - axis.start(k)] /= np.maximum(over, 0).sum(0)[lo:hi]
        total[lo:hi] += weights[lo - axis.start(k) : hi - axis.start(k)]
        outside = np.delete(weights, np.arange(lo - axis.start(k), hi - axis.start(k)))
        assert not outside.any()
    np.testing.assert_allclose(total, 1, atol=3e-7)


@given(axes, st.data())
def test_meeting_finds_exactly_the_windows_that_contribute(axis: AxisGrid, data: st.DataObject) -> None:
    lo = data.draw(st.integers(0, axis.size - 1))
    hi = data.draw(st.integers(lo, axis.size))
    expected = [k for k in range(axis.count) if max(lo, axis.support(k)[0]) < min(hi, axis.support(k)[1])]
    assert list(axis.meeting(lo, hi)) == expected


@given(axes)
def test_crop_deals_every_voxel_to_one_window(axis: AxisGrid) -> None:
    axis = AxisGrid(axis.size, axis.window, axis.stride, axis.margin, "crop")
    edges = [axis.support(k) for k in range(axis.count)]
    assert edges[0][0] == 0
    assert edges[-1][1] == axis.size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))


@given(st.integers(1, 12), st.integers(-30, 30), st.integers(0, 40))
def test_padding_reads_what_numpy_pads(size: int, lo: int, length: int) -> None:
    axis = AxisGrid(size, 8, 4)
    hi = lo + length
    before, after = max(0, -lo), max(0, hi - size)
    for padding in ("reflect", "edge"):
        padded = np.pad(np.arange(size), (before, after), mode=padding)
        assert axis.source(lo, hi, padding) == padded[lo + before : hi + before].tolist()
    constant = np.pad(np.arange(size), (before, after), constant_values=-1)
    assert axis.source(lo, hi, "constant") == constant[lo + before : hi + before].tolist()


@given(st.integers(1, 300))
def test_the_gaussian_profile_is_symmetric_and_floored(window: int) -> None:
    g = profile(window, "gaussian")
    np.testing.assert_allclose(g, g[::-1])
    assert g.min() >= FLOOR
    assert g.max() <= 1
