"""Halos that stay on a device: how much memory they get, and where each lies."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.plans import make, plans
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.kept_halos import GRAIN, SHARE, Place, Shelves, shelf_sizes, waiting_on_host
from unet_engine.plan.memory import cut_columns
from unet_engine.plan.plan import Plan
from unet_engine.plan.waiting import waiting_by_axis, waiting_halos

PLENTY = 2**50


def _walked(plan: Plan) -> list[int]:
    """The most that waits in any column, by the slowest axis of the way, the fastest axis first; what came for a block
    is gone when the second after it is queued."""
    most = [0] * len(plan.order)
    for column in plan.columns():
        waiting: Counter[tuple[int, int]] = Counter()
        tasks = list(plan.tasks(column, lambda _: True))
        at = {task.block.index: n for n, task in enumerate(tasks) if task.commits}
        for n, task in enumerate(tasks):
            for target, box in task.halos:
                slowest = next(i for i, a in enumerate(plan.order) if target[a] != task.block.index[a])
                waiting[at[target], len(plan.order) - 1 - slowest] += box.size
            waiting = Counter({key: size for key, size in waiting.items() if key[0] > n - 2})
            for level in range(len(most)):
                most[level] = max(most[level], sum(size for (_, l), size in waiting.items() if l == level))
    return most


@given(plans())
@settings(max_examples=50)
def test_all_that_waits_waits_along_some_axis(plan: Plan) -> None:
    assert sum(waiting_by_axis(plan)) >= waiting_halos(plan)


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 2, 3)])
@pytest.mark.parametrize("shape", [(128, 128, 256), (40, 200, 112)])
def test_no_more_wait_along_an_axis_than_are_counted(shape: tuple[int, ...], counts: tuple[int, ...]) -> None:
    axes = tuple(AxisGrid.with_overlap(n, 32, 0.5, 0, "gaussian") for n in shape)
    plan = cut_columns(make(axes, block=(1, 2, 1)), counts)
    counted, walked = waiting_by_axis(plan), _walked(plan)
    assert all(walked)
    assert all(need <= have <= 2 * need for have, need in zip(counted, walked, strict=True))


@given(st.lists(st.tuples(st.integers(1, 3 * GRAIN), st.booleans()), max_size=60))
def test_pieces_never_meet_and_what_is_given_back_is_whole_again(wanted: list[tuple[int, bool]]) -> None:
    shelves, held = Shelves((0,), (16 * GRAIN,)), list[Place]()
    for size, gives in wanted:
        if gives and held:
            shelves.give(held.pop(len(held) // 2))
        place = shelves.take((0,), (1,), size)
        if place:
            assert place.size >= size
            assert 0 <= place.start <= place.start + place.size <= 16 * GRAIN
            assert all(p.start + p.size <= place.start or place.start + place.size <= p.start for p in held)
            held.append(place)
        else:
            assert sum(p.size for p in held) + size > 8 * GRAIN, "half of it is not lost between pieces"
    for place in held:
        shelves.give(place)
    assert shelves.take((0,), (1,), 16 * GRAIN) == Place(0, 0, 16 * GRAIN)


def test_each_axis_has_a_shelf_of_its_own() -> None:
    shelves = Shelves((1, 0, 2), (GRAIN, 2 * GRAIN, 3 * GRAIN))
    block = (1, 1, 1)
    assert shelves.take(block, (1, 1, 2), GRAIN) == Place(0, 0, GRAIN), "the fastest axis"
    assert shelves.take(block, (1, 1, 3), 1) is None
    assert shelves.take(block, (2, 1, 2), 1) == Place(1, GRAIN, GRAIN)
    assert shelves.take(block, (1, 2, 1), 1) == Place(2, 3 * GRAIN, GRAIN)
    assert Shelves((1, 0, 2), ()).take(block, (1, 1, 2), 1) is None


def _case(channels: int) -> Plan:
    """The target's, a quarter as large along each axis."""
    axes = tuple(AxisGrid.with_overlap(n, 32, 0.5, 0, "gaussian") for n in (128, 128, 256))
    return make(axes, block={3: (3, 2, 2), 16: (2, 1, 2), 104: (1, 1, 1)}[channels])


@pytest.mark.parametrize("channels", [3, 16, 104])
def test_all_halos_find_room_where_there_is_plenty(channels: int) -> None:
    """First fit, as blocks go by: what is lost between pieces is in the size of the shelves."""
    plan = _case(channels)
    sizes = shelf_sizes(plan, 4 * channels, PLENTY)
    assert waiting_on_host(plan, 4 * channels, sizes) == 0
    assert sum(sizes) <= 1.5 * waiting_halos(plan) * 4 * channels
    shelves, tasks = Shelves(plan.order, sizes), list(plan.tasks(next(plan.columns()), lambda _: True))
    waiting: dict[tuple[int, ...], list[Place]] = {}
    for n, task in enumerate(tasks):
        for target, box in task.halos:
            place = shelves.take(task.block.index, target, 4 * channels * box.size)
            assert place is not None, f"a halo of block {task.block.index} finds no room"
            waiting.setdefault(target, []).append(place)
        for place in waiting.pop(tasks[n - 2].block.index, []) if n >= 2 else []:
            shelves.give(place)


def test_memory_goes_to_the_fastest_axis_first() -> None:
    plan = _case(16)
    whole = shelf_sizes(plan, 64, PLENTY)
    assert all(whole)
    two = shelf_sizes(plan, 64, int((whole[0] + whole[1] + GRAIN) / SHARE))
    assert two[:2] == whole[:2]
    assert two[2] <= 2 * GRAIN < whole[2]
    assert shelf_sizes(plan, 64, -5) == (0, 0, 0)
    waiting = waiting_halos(plan) * 64
    assert 0 < waiting_on_host(plan, 64, two) < waiting
    assert waiting_on_host(plan, 64, ()) == waiting_on_host(plan, 64, (0, 0, 0)) == waiting
    assert prod(plan.block_range.shape) > 8
