"""Halos that wait: what is counted from a few lengths per axis, against a walk through all tasks."""

from __future__ import annotations

import re
from collections import Counter
from math import prod

import pytest
from hypothesis import given, settings

from support.plans import SIZES, make, plans
from unet_engine.errors import PlanError
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.memory import WALKED, cut_columns, fit, predict_memory
from unet_engine.plan.plan import Plan
from unet_engine.plan.waiting import waiting_halos
from unet_engine.units import parse_bytes


def _walked(plan: Plan) -> int:
    """The most that waits in any column: a block's halos go when the block after it is there."""
    most = 0
    for column in plan.columns():
        waiting: Counter[tuple[int, ...]] = Counter()
        writing = 0
        for task in plan.tasks(column, lambda _: True):
            waiting.update({target: box.size for target, box in task.halos})
            most = max(most, waiting.total() + writing)
            writing = waiting.pop(task.block.index, 0) if task.commits else 0
    return most


def _cube(n: int, window: int = 32, block: int = 1) -> Plan:
    return make((AxisGrid.with_overlap(n, window, 0.5, 0, "gaussian"),) * 3, block=(block,) * 3)


@given(plans())
@settings(max_examples=80)
def test_no_more_wait_than_are_counted(plan: Plan) -> None:
    assert waiting_halos(plan) >= _walked(plan)


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 2, 3), (6, 6, 6), (1, 6, 6)])
def test_those_of_blocks_below_a_column_count_too(counts: tuple[int, ...]) -> None:
    """Where every block has a column of its own, all that waits is theirs."""
    plan = cut_columns(_cube(112), counts)
    assert _walked(plan) > 0
    assert _walked(plan) <= waiting_halos(plan) <= 1.05 * _walked(plan)


def test_long_columns_go_on_as_they_begin() -> None:
    long = make(tuple(AxisGrid.with_overlap(n, 4, 0.5, 0, "gaussian") for n in (70, 49, 14)), block=(1, 1, 1))
    assert sorted(long.block_range.shape) == [6, 24, 34]
    assert _walked(long) <= waiting_halos(long) <= 1.2 * _walked(long)


@given(plans())
@settings(max_examples=80)
def test_sums_in_flight_are_what_three_blocks_in_turn_take_and_no_more_than_three_of_the_largest(plan: Plan) -> None:
    plan = cut_columns(plan, (1,) * len(plan.axes))
    tasks = [task.block.sums.size for task in plan.tasks(next(plan.columns()), lambda _: True)]
    three = max(sum(tasks[max(0, i - 2) : i + 1]) for i in range(len(tasks)))
    found = predict_memory(plan, SIZES, 0, 1).sums / SIZES.sums
    assert three <= found
    assert len(tasks) > WALKED or found <= 3 * max(block.sums.size for block in plan.blocks())


def test_blocks_at_the_ends_of_a_small_volume_are_not_counted_as_the_largest() -> None:
    axes = tuple(AxisGrid.with_overlap(n, 64, 0.5, 0, "gaussian") for n in (128, 160, 160))
    memory = predict_memory(make(axes, block=(3, 3, 3)), SIZES, 0, 1)
    assert memory.sums == (128**3 + 2 * 128 * 64 * 128) * SIZES.sums  # the fourth takes the place of the first


def test_blocks_get_a_column_each_before_they_shrink() -> None:
    plan = _cube(112, block=2)
    alone = predict_memory(cut_columns(plan, plan.share_shape), SIZES, 0, 1).total
    stream = predict_memory(cut_columns(plan, (1, *plan.share_shape[1:])), SIZES, 0, 1).total
    assert alone < stream
    fitting = fit(plan, SIZES, 0, (alone + stream) // 2, 1)
    assert fitting.block == plan.block
    assert fitting.column_count == prod(plan.share_shape)


@pytest.mark.parametrize("base", [0, 10**8])
def test_the_budget_that_a_refusal_names_is_enough_and_little_less_is_not(base: int) -> None:
    plan = _cube(112)
    with pytest.raises(PlanError) as refusal:
        fit(plan, SIZES, base, 2**20, 1)
    named = parse_bytes(re.search(r"--memory (\w+) is enough", str(refusal.value))[1])
    assert fit(plan, SIZES, base + base // 40, named, 1).memory.total <= named
    with pytest.raises(PlanError):
        fit(plan, SIZES, base, int(0.9 * named), 1)
