"""Plan, blocks and columns: pure geometry, so Hypothesis may be thorough."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from math import prod
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.plans import SIZES, make, plans
from unet_engine.errors import PlanError
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.memory import fit, predict_memory
from unet_engine.plan.plan import Plan
from unet_engine.plan.sizing import NO_MEMORY, default_block, device_block
from unet_engine.prepare import draft


@given(plans())
def test_write_boxes_are_a_partition_of_the_region_in_whole_chunks(plan: Plan) -> None:
    written: Counter[tuple[int, ...]] = Counter()
    for block in plan.blocks():
        written.update(block.write.points())
        for a, (lo, hi) in enumerate(zip(block.write.lo, block.write.hi, strict=True)):
            assert (lo - plan.roi.lo[a]) % plan.chunk[a] == 0 or block.write.is_empty
            assert hi == plan.roi.hi[a] or (hi - plan.roi.lo[a]) % plan.chunk[a] == 0 or block.write.is_empty
    assert written == Counter(plan.roi.points())
    assert plan.block_count == sum(not block.write.is_empty for block in plan.blocks())


@given(plans(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_every_window_once_per_column_and_every_voxel_gets_all_of_its_windows(plan: Plan, random: object) -> None:
    """Whatever was committed before: what pending blocks need arrives, once, from lower blocks that came first."""
    committed = {b.index for b in plan.blocks() if random.random() < 0.4}  # type: ignore[attr-defined]
    for column in plan.columns():
        seen: Counter[tuple[int, ...]] = Counter()
        arrived: dict[tuple[int, ...], Counter[tuple[int, ...]]] = {}
        for task in plan.tasks(column, lambda i: i not in committed):
            seen.update(task.windows)
            own = arrived.setdefault(task.block.index, Counter())
            own.update(task.windows)
            for target, box in task.halos:
                assert target > task.block.index
                assert task.block.sums.contains(box)
                arrived.setdefault(target, Counter()).update(
                    k for k in task.windows if plan.support(_one(k)).meets(box)
                )
            if task.commits:
                needed = [
                    k for k in plan.column_windows(column).points() if plan.support(_one(k)).meets(task.block.write)
                ]
                assert set(needed) <= set(own), "a window that reaches the write box is missing"
                assert task.block.sums.contains(task.block.write)
            for k in task.windows:
                inputs = [axis.input(i) for axis, i in zip(plan.axes, k, strict=True)]
                inside = Box(tuple(l for l, _ in inputs), tuple(h for _, h in inputs)) & Box.of_shape(
                    [a.size for a in plan.axes]
                )
                assert task.read.contains(inside)
        assert not seen or max(seen.values()) == 1
        if not committed:
            assert sum(seen.values()) == plan.column_windows(column).size
    if not committed:
        assert plan.window_count == sum(plan.column_windows(c).size for c in plan.columns())


def _one(window: tuple[int, ...]) -> Box:
    return Box(window, tuple(k + 1 for k in window))


@given(plans())
def test_columns_deal_every_block_once(plan: Plan) -> None:
    dealt = Counter(index for column in plan.columns() for index in column.blocks.points())
    assert dealt == Counter(plan.block_range.points())
    assert plan.column_count == len(list(plan.columns()))


@given(plans())
def test_a_task_needs_lower_blocks_only_and_they_come_first(plan: Plan) -> None:
    for column in plan.columns():
        done: set[tuple[int, ...]] = set()
        for task in plan.tasks(column, lambda _: True):
            done.add(task.block.index)
            for target, _ in task.halos:
                assert target not in done


def test_the_drawn_block_grid() -> None:
    """16 voxels, window 4, stride 2: seven windows in blocks of three; chunks of 6 fall on the block edges at 6 and
    12."""
    plan = replace(make((AxisGrid(16, 4, 2), AxisGrid(4, 4, 2)), block=(3, 1)), chunk=(6, 4))
    blocks = list(plan.blocks())
    assert [(b.windows.lo[0], b.windows.hi[0]) for b in blocks] == [(0, 3), (3, 6), (6, 7)]
    assert [(b.sums.lo[0], b.sums.hi[0]) for b in blocks] == [(0, 8), (6, 14), (12, 16)]
    assert [(b.write.lo[0], b.write.hi[0]) for b in blocks] == [(0, 6), (6, 12), (12, 16)]


@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [
        ((256, 520, 520), (64, 64, 64), 0.5),
        ((97, 131, 203), (61, 30, 64), 0.4),
        ((900, 1300), (256, 256), 0.5),
        ((400, 400, 400), (64, 64, 64), 0.75),
    ],
)
def test_default_blocks_keep_halos_within_the_next_block(
    shape: tuple[int, ...], window: tuple[int, ...], overlap: float
) -> None:
    plan = make(tuple(AxisGrid.with_overlap(n, w, overlap, 0, "gaussian") for n, w in zip(shape, window, strict=True)))
    assert max(plan.reach) <= 1


@pytest.mark.parametrize(("channels", "block"), [(3, None), (16, (2, 2, 2)), (104, (2, 2, 2)), (2000, (1, 1, 1))])
def test_a_gpus_blocks_of_many_classes_have_eight_windows_where_there_is_room(
    channels: int, block: tuple[int, ...] | None
) -> None:
    """Constants decide it, not the device at hand: the block is part of what names a run."""
    axes = tuple(AxisGrid.with_overlap(n, 128, 0.5, 0, "gaussian") for n in (512, 512, 1024))
    assert device_block(axes, channels) == (block or default_block(axes, channels))


def test_only_gpus_get_them() -> None:
    """The simulated one gives a CPU's bytes."""
    axes = tuple(AxisGrid.with_overlap(512, 128, 0.5, 0, "gaussian") for _ in range(3))
    found = {}
    for device in ("cpu", "simulated", "cuda:0"):
        survey: Any = SimpleNamespace(devices=(device,), model=SimpleNamespace(blended=104))
        found[device] = draft.blocks_of(survey, axes)
    assert found == {"cpu": (1, 1, 1), "simulated": (1, 1, 1), "cuda:0": (2, 2, 2)}


def _big(shape: tuple[int, ...] = (1024, 2048, 2048)) -> Plan:
    return make(tuple(AxisGrid.with_overlap(n, 64, 0.5, 0, "gaussian") for n in shape))


def test_less_memory_means_more_columns_but_the_same_blocks_and_digest() -> None:
    rich = fit(_big(), SIZES, 0, 2**34, 1)
    poor = fit(_big(), SIZES, 0, 2**28, 1)
    assert rich.column_count == 1
    assert poor.column_count > 1
    assert poor.block == rich.block
    assert poor.digest == rich.digest
    assert poor.memory.total <= 2**28 < rich.memory.total


def test_the_budget_bounds_memory_whatever_the_volume() -> None:
    peaks = [fit(_big((n, n, n)), SIZES, 0, 2**28, 1).memory.total for n in (512, 2048, 8192, 32768)]
    assert max(peaks) <= 2**28


def test_lanes_get_a_column_each() -> None:
    assert fit(_big(), SIZES, 0, 2**34, 4).column_count >= 4
    thin = make(tuple(AxisGrid.with_overlap(n, 64, 0.5, 0, "gaussian") for n in (4096, 64, 64)))
    assert fit(thin, SIZES, 0, 2**34, 4).column_count >= 4


def test_what_cannot_fit_is_refused_with_need_limit_and_remedy() -> None:
    with pytest.raises(
        PlanError, match=r"needs [\d.]+ MiB and --memory allows 1 MiB .*give more memory or a smaller --window"
    ):
        fit(_big(), SIZES, 0, 2**20, 1)


def test_blocks_shrink_only_where_one_column_of_them_does_not_fit() -> None:
    full = predict_memory(_big((2048, 64, 64)), SIZES, 0, 1).total
    shrunk = fit(_big((2048, 64, 64)), SIZES, 0, full * 2 // 3, 1)
    assert prod(shrunk.block) < prod(_big((2048, 64, 64)).block)
    assert shrunk.identity["block"] == list(shrunk.block)


def test_fewer_blocks_are_under_way_before_any_shrinks() -> None:
    """So that more threads never change the blocks, which name a run."""
    many = replace(SIZES, threads=1024)
    rich = fit(_big(), many, 0, 2**36, 1)
    assert rich.memory.under_way == 1024 // prod(rich.block)
    assert rich.memory.sums == (2 + rich.memory.under_way) * fit(_big(), SIZES, 0, 2**36, 1).memory.sums // 3
    for budget in (2**31, 2**30, 2**29, 2**28):
        alone, poor = fit(_big(), SIZES, 0, budget, 1), fit(_big(), many, 0, budget, 1)
        assert poor.block == alone.block
        assert poor.memory.total <= budget
    assert poor.memory.under_way < rich.memory.under_way


def test_a_plan_of_a_million_blocks_starts_at_once_and_pickles_small() -> None:
    plan = _big((12800, 12800, 12800))
    assert plan.block_count == 10**6
    column = next(plan.columns())
    tasks = plan.tasks(column, lambda _: True)
    assert next(tasks).commits
    assert len(pickle.dumps(plan)) < 10_000


@given(plans())
def test_another_budget_or_order_is_the_same_run(plan: Plan) -> None:
    assert replace(plan, cuts=((),) * len(plan.axes), memory=NO_MEMORY).digest == plan.digest
    assert pickle.loads(pickle.dumps(plan)) == plan
