"""Which voxels of one grid those of another are made of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.resampling import AxisResampling
from unet_engine.plan.sizing import default_chunk

AXES = st.builds(AxisResampling, st.integers(1, 60), st.integers(1, 60), st.sampled_from((0, 1, 3)))


@given(AXES)
def test_voxels_are_made_of_voxels_inside_which_move_up(axis: AxisResampling) -> None:
    firsts = [axis.first(k) for k in range(axis.target)]
    assert firsts == sorted(firsts)
    assert firsts[0] >= 0
    assert firsts[-1] + axis.taps <= axis.source


@given(AXES, st.data())
def test_a_nearest_or_linear_voxel_lies_within_half_a_voxel_of_what_it_is_made_of(
    axis: AxisResampling, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, axis.target - 1))
    lo, hi = axis.reach(k, k + 1)
    position = min(max(axis.position(k), 0), axis.source - 1)
    assert lo - 0.5 - 1e-9 <= position <= hi - 0.5 + 1e-9


@given(AXES, st.integers(0, 70))
def test_settled_voxels_are_those_made_of_voxels_below(axis: AxisResampling, x: int) -> None:
    made = [axis.reach(k, k + 1)[1] <= x for k in range(axis.target)]
    assert axis.settled(x) == sum(made)
    assert all(made[: axis.settled(x)])


@given(AXES, st.data())
def test_what_is_made_of_voxels_is_all_that_reaches_them(axis: AxisResampling, data: st.DataObject) -> None:
    lo = data.draw(st.integers(0, axis.source - 1))
    hi = data.draw(st.integers(lo + 1, axis.source))
    reaching = [k for k in range(axis.target) if axis.reach(k, k + 1)[0] < hi and axis.reach(k, k + 1)[1] > lo]
    assert list(range(*axis.made_of(lo, hi))) == reaching


@given(AXES, st.integers(2, 9), st.integers(1, 4), st.integers(1, 3))
def test_chunks_of_another_grid_are_near_their_target(
    back: AxisResampling, window: int, stride: int, windows: int
) -> None:
    axis = AxisGrid(back.source, window, min(stride, window))
    (chunk, _) = default_chunk((axis, axis), (windows, windows), (back, back))
    most = max(1, min(512, back.target, windows * axis.stride * back.target // back.source))
    assert most * 3 // 4 < chunk <= most
