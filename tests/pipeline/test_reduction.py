"""What is written on another grid than the sums': the same as of all sums interpolated first, whatever is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.arrays import assert_same_bits, seeds
from unet_engine.model.last_layer import LastLayer
from unet_engine.model.onnx_rewrite import Rewriting
from unet_engine.pipeline import reduction
from unet_engine.pipeline.reduction import REDUCTIONS
from unet_engine.plan.resampling import AxisResampling
from unet_engine.stitching import operations
from unet_engine.stitching.interpolation import taps

ACTIVATIONS = ("softmax", "sigmoid", "none", "probabilities", "probabilities_each")
DTYPES = {"labels": "uint8", "masks": "uint8", "probabilities": "uint8", "logits": "float32"}


@st.composite
def regions(draw: st.DrawFn) -> tuple[Any, list[AxisResampling]]:
    """Sums in which few classes can win in most places, with ties and gaps; and a grid."""
    rng = np.random.default_rng(draw(seeds))
    n, order = draw(st.integers(2, 3)), draw(st.sampled_from((0, 1, 3)))
    axes = [AxisResampling(draw(st.integers(1, 12)), draw(st.integers(1, 30)), order) for _ in range(n)]
    classes = draw(st.integers(1, 9))
    shape = tuple(axis.source for axis in axes)
    winner = rng.integers(0, classes, tuple(-(-s // 4) for s in shape))
    for a, s in enumerate(shape):
        winner = winner.repeat(4, a).take(range(s), a)
    sums = rng.integers(-3, 4, (classes, *shape)).astype(np.float32) * np.float32(
        draw(st.sampled_from((0.0, 0.25, 1.0)))
    )
    gap = np.float32(draw(st.sampled_from((0.0, 1e-6, 0.5, 8.0, -8.0))))
    np.put_along_axis(sums, winner[None], np.take_along_axis(sums, winner[None], 0) + gap, 0)
    return sums, axes


@given(regions(), st.sampled_from(sorted(REDUCTIONS)), st.sampled_from(ACTIVATIONS))
@settings(max_examples=200)
def test_parts_give_the_bits_of_the_whole(case: Any, kind: Any, activation: Any) -> None:
    sums, axes = case
    reduce = REDUCTIONS[kind](activation, DTYPES[kind])
    grid = [taps(axis, 0, axis.target, 0) for axis in axes]
    whole = np.empty((len(sums), *(axis.target for axis in axes)), np.float32)
    operations.interpolate(whole, sums, grid)
    assert_same_bits(reduce.on_grid(sums, grid), reduce.on_host(whole))


@given(regions(), st.sampled_from(("sigmoid", "probabilities_each")), seeds)
@settings(max_examples=200)
def test_regions_that_may_overlap_are_those_of_the_whole(case: Any, activation: Any, seed: int) -> None:
    """A later one wins also where it is the less likely of two."""
    sums, axes = case
    order = tuple(int(label) for label in np.random.default_rng(seed).permutation(len(sums)) + 1)
    reduce = REDUCTIONS["labels"](activation, "uint8", order)
    grid = [taps(axis, 0, axis.target, 0) for axis in axes]
    whole = np.empty((len(sums), *(axis.target for axis in axes)), np.float32)
    operations.interpolate(whole, sums, grid)
    assert_same_bits(reduce.on_grid(sums, grid), reduce.on_host(whole))


def test_classes_that_cannot_win_are_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    interpolate = operations.interpolate
    monkeypatch.setattr(
        reduction.operations,
        "interpolate",
        lambda out, sums, grid: (taken.append(len(sums)), interpolate(out, sums, grid)),
    )
    sums = np.zeros((50, 8, 8, 8), np.float32)
    sums[7], sums[9, 4:] = 2, 4
    axis = AxisResampling(8, 16, 1)
    labels = REDUCTIONS["labels"]("softmax", "uint8").on_grid(sums, [taps(axis, 0, 16, 0)] * 3)
    assert set(np.unique(labels)) == {7, 9}
    assert max(taken) == 2
    assert len(taken) == 2  # of four parts along z, those at the seam: the others hold one class


def test_sums_that_are_not_finite_are_no_error_here() -> None:
    for value in (np.nan, np.inf):
        sums = np.full((4, 3, 3, 3), value, np.float32)
        axis = AxisResampling(3, 5, 1)
        assert REDUCTIONS["labels"]("softmax", "uint8").on_grid(sums, [taps(axis, 0, 5, 0)] * 3).shape == (5, 5, 5)


@given(
    regions(),
    st.sampled_from(sorted(REDUCTIONS)),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from((1, 300, 2**20)),
    seeds,
)
@settings(max_examples=100)
def test_features_are_reduced_as_the_outputs_they_make(
    case: Any, kind: Any, activation: Any, in_cache: int, seed: int
) -> None:
    """A part at a time, of any size, on the grid of the windows and on another."""
    features, axes = case
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(rng.integers(1, 6), len(features))).astype(np.float32)
    bias = rng.normal(size=len(weights)).astype(np.float32)
    last = LastLayer(Rewriting("x"), len(features), len(weights), weights.tobytes() + bias.tobytes())
    plain, of_features = (
        REDUCTIONS[kind](activation, DTYPES[kind]),
        REDUCTIONS[kind](activation, DTYPES[kind], last=last),
    )

    def outputs(features: Any) -> Any:
        made = np.empty((len(weights), *features.shape[1:]), np.float32)
        operations.linear(made, features, weights, bias)
        return made

    grid = [taps(axis, 0, axis.target, 0) for axis in axes]
    whole = np.empty((len(features), *(axis.target for axis in axes)), np.float32)
    operations.interpolate(whole, features, grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduction, "IN_CACHE", in_cache)
        assert_same_bits(of_features.on_host(features), plain.on_host(outputs(features)))
        assert_same_bits(of_features.on_grid(features, grid), plain.on_host(outputs(whole)))
