"""Axes of any length: what a plan says of all its blocks, it says without looking at each."""

from __future__ import annotations

import itertools
import time
from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st

from support.plans import make
from unet_engine.plan import shares
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Plan
from unet_engine.plan.sizing import NO_MEMORY


@st.composite
def lines(draw: st.DrawFn) -> Plan:
    """Plans of one long axis with small blocks, chunks that need not divide them, and a region of it."""
    window = draw(st.integers(1, 12))
    axis = AxisGrid(
        draw(st.integers(1, 3000)), window, draw(st.integers(1, window)), 0, draw(st.sampled_from(["gaussian", "crop"]))
    )
    lo = draw(st.integers(0, axis.size - 1))
    hi = draw(st.integers(lo + 1, axis.size))
    block, chunk = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    return Plan("x", (axis,), Box((lo,), (hi,)), (block,), (chunk,), ((),), "edge", NO_MEMORY, {})


@given(lines())
@settings(max_examples=150)
def test_blocks_in_the_middle_are_alike(plan: Plan) -> None:
    everyone = range(plan.block_range.lo[0], plan.block_range.hi[0])
    assert plan.reach[0] == max(plan._reach(0, j) for j in everyone)
    assert plan.writing[0] == tuple(j for j in everyone if plan.edge(0, j) < plan.edge(0, j + 1))


@given(lines(), st.lists(st.integers(0, 600), max_size=4))
def test_windows_are_counted_without_walking_the_columns(plan: Plan, cuts: list[int]) -> None:
    lo, hi = plan.block_range.lo[0], plan.block_range.hi[0]
    cut = plan.cut((tuple(sorted({c for c in cuts if lo < c < hi})),))
    assert cut.window_count == sum(cut.column_windows(column).size for column in cut.columns())
    assert cut.share == plan.share


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=3))
def test_one_of_many_boxes_is_found_by_its_number(spans: list[list[int]]) -> None:
    named = [tuple((i, j) for j in along) for i, along in enumerate(spans)]
    for k, corner in enumerate(itertools.product(*named)):
        assert tuple(shares._at(k, named)) == corner
    assert prod(map(len, named)) == k + 1


def test_a_volume_of_a_million_voxels_along_each_axis_is_planned_at_once() -> None:
    """Some thousand blocks along each axis are looked at for ends alone: it took minutes when each was."""
    axes = tuple(AxisGrid.with_overlap(10**6, 64, 0.5, 0, "gaussian") for _ in range(3))
    begun = time.process_time()
    plan = make(axes)
    assert plan.reach == (1, 1, 1)
    assert plan.block_count == prod(map(len, plan.writing)) > 10**11
    assert time.process_time() - begun < 5


@given(lines(), st.integers(0, 3000), st.integers(1, 60))
@settings(max_examples=150)
def test_windows_that_meet_an_interval_are_found_near_it(plan: Plan, lo: int, length: int) -> None:
    axis = plan.axes[0]
    hi = min(axis.size, lo + length)
    meeting = [k for k in range(axis.count) if axis.support(k)[0] < hi and axis.support(k)[1] > lo] if lo < hi else []
    assert list(axis.meeting(lo, hi)) == meeting
