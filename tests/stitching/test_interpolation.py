"""Interpolation equals SciPy's and nnU-Net's over whole volumes, gives the same bits for any block, and guards
memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.arrays import assert_same_bits, seeds
from unet_engine.plan.resampling import AxisResampling, Order
from unet_engine.stitching import operations, reference
from unet_engine.stitching.interpolation import Taps, taps

NEAR = 1e-5
"""Of values with a deviation of 1."""


@pytest.fixture(params=["native", "numpy"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(operations, "_native", None)
    elif operations.IMPLEMENTATION != "native":
        pytest.skip("the native extension is not built")
    return str(request.param)


@st.composite
def axes(draw: st.DrawFn, *, most: int = 40) -> list[AxisResampling]:
    """Two or three axes of any ratio, each with an order of its own."""
    return [
        AxisResampling(draw(st.integers(1, most)), draw(st.integers(1, most)), draw(st.sampled_from((0, 1, 3))))
        for _ in range(draw(st.integers(2, 3)))
    ]


def whole(volume: Any, found: list[AxisResampling], threads: int = 1) -> Any:
    out = np.empty((len(volume), *(axis.target for axis in found)), np.float32)
    operations.interpolate(out, volume, [taps(axis, 0, axis.target, 0) for axis in found], threads=threads)
    return out


def noise(rng: np.random.Generator, found: list[AxisResampling], channels: int = 2) -> Any:
    return rng.standard_normal((channels, *(axis.source for axis in found))).astype(np.float32)


def scipy_zoom(volume: Any, shape: tuple[int, ...], order: int) -> Any:
    ndimage = pytest.importorskip("scipy.ndimage")
    zoom = [n / s for n, s in zip(shape, volume.shape, strict=True)]
    return ndimage.zoom(volume.astype(np.float64), zoom, order=order, mode="nearest", grid_mode=True)


@given(axes(), st.sampled_from((0, 1, 3)), seeds)
@settings(max_examples=60)
def test_whole_volumes_are_as_scipy_interpolates_them(found: list[AxisResampling], order: Order, seed: int) -> None:
    found = [AxisResampling(axis.source, axis.target, order) for axis in found]
    volume = noise(np.random.default_rng(seed), found)
    shape = tuple(axis.target for axis in found)
    expected = np.stack([scipy_zoom(channel, shape, order) for channel in volume])
    np.testing.assert_allclose(whole(volume, found), expected, atol=NEAR)


@given(axes(), seeds, st.data())
@settings(max_examples=60)
def test_a_block_has_the_bits_of_the_whole_volume(found: list[AxisResampling], seed: int, data: st.DataObject) -> None:
    volume = noise(np.random.default_rng(seed), found)
    spans, sources = [], []
    for axis in found:
        lo = data.draw(st.integers(0, axis.target - 1))
        spans.append((lo, data.draw(st.integers(lo + 1, axis.target))))
        sources.append(axis.reach(*spans[-1]))
    block = volume[(slice(None), *(slice(*s) for s in sources))]
    out = np.empty((len(volume), *(hi - lo for lo, hi in spans)), np.float32)
    tables = [taps(axis, *span, source[0]) for axis, span, source in zip(found, spans, sources, strict=True)]
    operations.interpolate(out, block, tables, threads=data.draw(st.integers(1, 4)))
    assert_same_bits(out, whole(volume, found)[(slice(None), *(slice(*s) for s in spans))])


@given(axes(), seeds, st.integers(1, 4))
@settings(max_examples=60)
def test_native_gives_the_bits_of_the_reference(found: list[AxisResampling], seed: int, threads: int) -> None:
    if operations.IMPLEMENTATION != "native":
        pytest.skip("the native extension is not built")
    volume = noise(np.random.default_rng(seed), found)
    expected = np.empty((len(volume), *(axis.target for axis in found)), np.float32)
    reference.interpolate(expected, volume, [taps(axis, 0, axis.target, 0) for axis in found])
    assert_same_bits(whole(volume, found, threads), expected)


@given(axes(), seeds)
@settings(max_examples=30)
def test_background_of_zero_stays_exactly_zero_and_as_many_voxels_stay_as_they_are(
    found: list[AxisResampling], seed: int
) -> None:
    volume = noise(np.random.default_rng(seed), found)
    assert not whole(np.zeros_like(volume), found).any()
    same = [AxisResampling(axis.source, axis.source, axis.order) for axis in found]
    assert_same_bits(whole(volume, same), volume)


@pytest.mark.parametrize("order_z", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_apart_is_as_nnunet_interpolates_it(order_z: Order, axis: int) -> None:
    """In planes with a cubic spline, then from plane to plane. nnU-Net also cuts each plane off at its own least and
    largest voxel: it is given planes whose ends the spline does not overshoot."""
    peer = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    rng = np.random.default_rng(axis)
    shape, new = [23, 19, 26], [17, 31, 25]
    shape[axis], new[axis] = 7, 18
    volume = rng.uniform(-1, 1, (2, *shape)).astype(np.float32)
    for plane in np.moveaxis(volume, axis + 1, 0):
        plane[:, 5, 5], plane[:, 12, 12] = 9, -9
    orders: list[Order] = [3, 3, 3]
    orders[axis] = order_z
    found = [AxisResampling(a, b, order) for a, b, order in zip(shape, new, orders, strict=True)]
    expected = peer.resample_data_or_seg(
        volume.astype(np.float64), new, is_seg=False, axis=axis, order=3, do_separate_z=True, order_z=order_z
    )
    within = np.abs(expected) < 8.5
    np.testing.assert_allclose(whole(volume, found)[within], expected[within], atol=NEAR)
    assert within.mean() > 0.9


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_volume_is_as_nnunet_interpolates_it(order: Order) -> None:
    """But for cutting it off at its least and largest voxel, which no block of it knows."""
    peer = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    volume = np.random.default_rng(order).uniform(-1, 1, (2, 21, 30, 17)).astype(np.float32)
    new = (33, 14, 40)
    expected = peer.resample_data_or_seg(volume.astype(np.float64), new, is_seg=False, order=order)
    found = [AxisResampling(a, b, order) for a, b in zip(volume.shape[1:], new, strict=True)]
    ends = volume.min(axis=(1, 2, 3), keepdims=True), volume.max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(np.clip(whole(volume, found), *ends), expected, atol=NEAR)


def test_what_lies_outside_the_block_is_refused(implementation: str) -> None:
    block, out = np.zeros((1, 4, 4), np.float32), np.zeros((1, 2, 2), np.float32)
    good = Taps(np.array([0, 2]), np.full((2, 2), 0.5, np.float32))
    for first in ([-1, 0], [0, 3], [3, 0], [2**62, 0]):
        with pytest.raises(IndexError, match="axis x"):
            operations.interpolate(out, block, [good, Taps(np.array(first), good.weights)])
    with pytest.raises(ValueError, match="must have the shape"):
        operations.interpolate(out[:, :1], block, [good, good])
    with pytest.raises(TypeError, match="float32"):
        operations.interpolate(out, block.astype(np.float64), [good, good])
    assert not out.any()
