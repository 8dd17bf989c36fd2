"""What the GPU's kernel makes of sums on another grid has the bits of the CPU's path: any orders, shapes, types and parts
of the output. In loops always, and on a GPU if there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.arrays import assert_same_bits, seeds, values
from support.kernels import Host, places
from unet_engine.pipeline.reduction import REDUCTIONS, Merging, Tables
from unet_engine.plan.resampling import AxisResampling
from unet_engine.stitching.interpolation import taps


@pytest.fixture(params=places(), ids=["loop", "gpu"])
def place(request: pytest.FixtureRequest) -> Any:
    return request.param


@st.composite
def axes(draw: st.DrawFn) -> list[tuple[AxisResampling, int, int]]:
    """Two or three axes, each with an order and a ratio of its own, and which of their voxels are written."""
    found = []
    for a in range(draw(st.integers(2, 3))):
        wide = a and draw(st.booleans())
        target = draw(st.integers(1, 40 if wide else 9))
        axis = AxisResampling(
            draw(st.integers(1, 40 if wide else 12)), target, draw(st.sampled_from((0, 1, 3))),
            draw(st.sampled_from((0.0, 0.0, 0.7, 1.6))),
        )  # fmt: skip
        lo = draw(st.integers(0, target - 1))
        found.append((axis, lo, draw(st.integers(lo + 1, target))))
    return found


OUTPUTS = [
    ("labels", "uint8", None), ("labels", "uint16", 0.4), ("masks", "uint8", 0.3), ("probabilities", "uint8", None),
    ("probabilities", "float16", None), ("probabilities", "float32", None), ("logits", "float16", None),
    ("logits", "float32", None),
]  # fmt: skip


@pytest.mark.parametrize("of", ["outputs", "probabilities"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "probabilities"])
def test_what_is_finished_on_another_grid_is_what_the_cpu_makes(place: Any, activation: Any, of: Any) -> None:
    @settings(max_examples=40, deadline=None)
    @given(axes(), seeds, st.sampled_from(OUTPUTS), st.sampled_from([1, 2, 3, 8, 11]), st.booleans())
    def check(
        found: list[tuple[AxisResampling, int, int]],
        seed: int,
        output: tuple[Any, str, float | None],
        channels: int,
        poisoned: bool,  # noqa: FBT001
    ) -> None:
        device, rng, (kind, dtype, threshold) = place(), np.random.default_rng(seed), output
        regions = tuple(int(n) for n in rng.permutation(channels) + 1) if kind == "labels" and threshold else None
        reduction = REDUCTIONS[kind](activation, dtype, regions, threshold, of)
        spans = [axis.reach(lo, hi) for axis, lo, hi in found]
        sums = values(rng, (channels, *(hi - lo for lo, hi in spans)), special=0.01 if poisoned else 0)
        halo = values(rng, (channels, *(1 + n // 2 for n in sums.shape[1:])))
        merged, here = sums.copy(), tuple(slice(0, n) for n in halo.shape[1:])
        merged[(slice(None), *here)] += halo
        grid = [taps(axis, lo, hi, span[0]) for (axis, lo, hi), span in zip(found, spans, strict=True)]
        with np.errstate(all="ignore"):
            expected = reduction.on_grid(merged.copy(), grid)
        missing, flag = 3 - len(found), np.zeros(1, np.int32)
        three = device.put(sums.reshape(channels, *(1,) * missing, *sums.shape[1:]))
        part = device.put(halo.reshape(channels, *(1,) * missing, *halo.shape[1:]))
        whole = [taps(axis, 0, axis.target, 0) for axis, _, _ in found]
        tables = Tables(
            [None] * missing
            + [device.put(t.first[lo:hi].astype(np.int32)) for t, (_, lo, hi) in zip(whole, found, strict=True)],
            [None] * missing
            + [device.put(np.ascontiguousarray(t.weights[lo:hi])) for t, (_, lo, hi) in zip(whole, found, strict=True)],
            [0] * missing + [lo for lo, _ in spans],
        )
        out = np.zeros_like(expected).reshape(
            *expected.shape[: expected.ndim - len(found)],
            *(1,) * missing,
            *expected.shape[expected.ndim - len(found) :],
        )
        given_out, given_flag = device.put(out), device.put(flag)
        merging = Merging([part], [(0, 0, 0)], given_flag, channels)
        reduction.settle_on_device(device.kernels, three, merging, 0)
        reduction.on_grid_on_device(device.kernels, three, given_out, tables, channels, 0)
        assert bool(device.get(flag, given_flag)[0]) == (not np.isfinite(merged).all())
        if np.isfinite(merged).all():  # else the run ends
            assert_same_bits(device.get(out, given_out).reshape(expected.shape), expected)

    check()


def test_wrong_tables_are_refused_before_anything_runs() -> None:
    device = Host()
    sums, out = np.zeros((2, 4, 5, 6), np.float32), np.zeros((2, 4, 5, 9), np.float32)
    first, weights = np.zeros(9, np.int32), np.ones((9, 2), np.float32)

    def make(weights: Any = weights, out: Any = out, **options: Any) -> None:
        put = device.put
        given: dict[str, Any] = {"first": [None, None, put(first)], "weights": [None, None, put(weights)]}
        given |= {"begin": [0, 0, 0], "kind": "logits", "activation": "none"} | options
        device.kernels.interpolate(put(sums), put(out), **given)

    make()
    with pytest.raises(ValueError, match="axis x: weights must have a row"):
        make(weights=weights[:-1].copy())
    with pytest.raises(ValueError, match="axis x: a voxel is made of more"):
        make(weights=np.ones((9, 7), np.float32))
    with pytest.raises(ValueError, match="axis x: out must be as long"):
        make(out=out[..., :-1].copy())
    with pytest.raises(ValueError, match="axis y: out must be as long"):
        make(out=np.zeros((2, 4, 4, 9), np.float32))
    with pytest.raises(ValueError, match="axis x: give both"):
        make(first=[None] * 3)
    with pytest.raises(ValueError, match="one for each of z, y and x"):
        make(begin=[0, 0])
    with pytest.raises(ValueError, match="as many channels"):
        make(out=np.zeros((1, 4, 5, 9), np.float32))
    with pytest.raises(ValueError, match="unknown kind"):
        make(kind="pictures")
