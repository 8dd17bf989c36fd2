"""Parts of one output: a partition that all machines agree on, the same bytes as one run, and the last one to end completes it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_plan import SIZES, make, plans
from unet_engine.grid import AxisGrid
from unet_engine.layout import cut_columns, fit
from unet_engine.plan import Plan

# --- who does what ----------------------------------------------------------------------------------------------------------------


def parts_of(plan: Plan, n: int) -> list[Plan]:
    return [replace(plan, part=(i, n)) for i in range(1, n + 1)]


@given(plans(), st.integers(1, 40))
def test_parts_are_a_partition_of_blocks_and_voxels(plan: Plan, n: int) -> None:
    parts = parts_of(plan, n)
    blocks = Counter(index for part in parts for column in part.columns() for index in column.blocks.points())
    assert blocks == Counter(plan.block_range.points())
    written = Counter(
        x for part in parts for c in part.columns() for i in c.blocks.points() for x in part.write_box(i).points()
    )
    assert written == Counter(plan.roi.points())
    assert sum(part.block_count for part in parts) == plan.block_count
    assert sum(part.voxel_count for part in parts) == plan.roi.size
    idle = sum(part.block_count == 0 for part in parts)
    assert idle == max(0, n - plan.block_count), "a part without work, though there is some"
    assert {part.digest for part in parts} == {plan.digest}


@given(plans(), st.integers(1, 9), st.integers(1, 3), st.lists(st.integers(1, 4), min_size=3, max_size=3))
@settings(max_examples=60)
def test_memory_cuts_parts_into_columns_and_changes_nothing_else(
    plan: Plan, n: int, lanes: int, counts: list[int]
) -> None:
    for part in parts_of(replace(plan, cuts=((),) * len(plan.axes)), n):
        cut = cut_columns(part, counts[: len(plan.axes)])
        assert cut.share == part.share
        assert Counter(i for c in cut.columns() for i in c.blocks.points()) == Counter(
            i for box in part.share for i in box.points()
        )
        assert cut.column_count == len(list(cut.columns()))
        assert cut.window_count == sum(cut.column_windows(c).size for c in cut.columns()) >= part.window_count
        assert not part.share or cut.seam_factor >= part.seam_factor >= 1
        fitted = fit(part, SIZES, 0, 2**40, lanes)
        assert fitted.share == part.share
        assert fitted.column_count >= min(lanes, sum(box.size for box in part.share))


@given(plans(), st.integers(1, 40))
def test_a_part_has_one_box_or_two_that_cannot_be_joined(plan: Plan, n: int) -> None:
    for part in parts_of(plan, n):
        assert len(part.share) <= 2
        if len(part.share) == 2:
            a, b = part.share
            assert sum((p, q) != (r, s) for p, q, r, s in zip(a.lo, a.hi, b.lo, b.hi, strict=True)) > 1
            for axis in range(a.ndim):
                same = (a.lo[axis], a.hi[axis]) == (b.lo[axis], b.hi[axis])
                assert same or a.hi[axis] <= b.lo[axis] or b.hi[axis] <= a.lo[axis]


def test_parts_are_cut_where_fewest_windows_are_inferred_twice() -> None:
    """A slab of 4 by 16 by 16 blocks in four: across both long axes, not along one and not across the short one."""
    plan = make(tuple(AxisGrid.with_overlap(n, 64, 0.5, 0, "gaussian") for n in (512, 2048, 2048)))
    assert plan.block_range.shape == (4, 16, 16)
    (box,) = replace(plan, part=(1, 4)).share
    assert box.shape == (4, 8, 8)
    assert [p.share[0].lo for p in parts_of(plan, 4)] == [(0, 0, 0), (0, 0, 8), (0, 8, 0), (0, 8, 8)]
    assert 1 < sum(p.window_count for p in parts_of(plan, 4)) / plan.window_count < 1.05


def test_a_number_that_makes_no_boxes_is_dealt_from_the_next_that_does() -> None:
    """Seven of 4 by 4 blocks: eight boxes, of which one part gets two, here neighbours."""
    plan = make((AxisGrid(256, 64, 64), AxisGrid(256, 64, 64)), block=(1, 1))
    shares = [part.share for part in parts_of(replace(plan, chunk=(64, 64)), 7)]
    assert sorted(sum(box.size for box in share) for share in shares) == [2, 2, 2, 2, 2, 2, 4]
    assert all(len(share) == 1 for share in shares)


def test_a_part_of_a_large_plan_is_known_at_once() -> None:
    plan = make(tuple(AxisGrid.with_overlap(12800, 64, 0.5, 0, "gaussian") for _ in range(3)))
    part = replace(plan, part=(9967, 9973))
    assert part.block_count == pytest.approx(10**6 / 9973, rel=0.3)
    assert len(fit(part, SIZES, 0, 2**28, 1).share) == len(part.share)


def test_memory_of_a_part_is_that_of_its_boxes() -> None:
    """A part as wide as a poor machine's column needs no more columns, and less memory than the whole."""
    plan = make(tuple(AxisGrid.with_overlap(n, 64, 0.5, 0, "gaussian") for n in (1024, 2048, 2048)))
    part = replace(plan, part=(3, 16))
    assert fit(part, SIZES, 0, 2**34, 1).memory.total < fit(plan, SIZES, 0, 2**34, 1).memory.total
    poor = fit(part, SIZES, 0, 2**28, 1)
    assert poor.share == part.share
    assert poor.memory.total <= 2**28
    assert prod(part.share_shape) == plan.block_count / 16
