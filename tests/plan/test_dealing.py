"""Which worker of a cluster gets which blocks. Pure geometry."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.plans import make
from unet_engine.plan.bundles import bundles
from unet_engine.plan.dealing import dealing
from unet_engine.plan.fetching import Fetching
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.memory import cut_columns
from unet_engine.plan.plan import Plan


def a_plan(sizes, window=4, overlap=0.5, columns=None, block=1) -> Plan:
    axes = tuple(AxisGrid.with_overlap(size, window, overlap, 0, "gaussian") for size in sizes)
    plan = make(axes, block=(block,) * len(sizes))
    return cut_columns(plan, columns) if columns else plan


@st.composite
def many_blocks(draw: st.DrawFn) -> Plan:
    sizes = draw(st.lists(st.integers(8, 18), min_size=2, max_size=3))
    columns = [draw(st.integers(1, 2)) for _ in sizes]
    return a_plan(
        sizes, draw(st.integers(2, 5)), draw(st.sampled_from([0, 0.5, 0.75])), columns, draw(st.integers(1, 2))
    )


@given(many_blocks(), st.integers(1, 3), st.integers(2, 4), st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_lower_blocks_are_dealt_first_and_every_task_once(
    plan: Plan, length: int, workers: int, random: object
) -> None:
    """Else a block would be written without a halo that comes later."""
    shares = dealing(plan, workers)
    if shares is None:
        return
    committed = {b.index for b in plan.blocks() if random.random() < 0.3}  # type: ignore[attr-defined]
    pending = lambda index: index not in committed  # noqa: E731
    found = list(bundles(plan, pending, length, shares))
    expected = [(c.number, t) for c in plan.columns() for t in plan.tasks(c, pending)]
    tasks = [(bundle.column.number, task) for bundle in found for task in bundle.tasks]
    assert len(tasks) == len(expected)
    assert {(n, t.block.index): t for n, t in tasks} == {(n, t.block.index): t for n, t in expected}
    places = {bundle.id: n for n, bundle in enumerate(found)}
    assert len(places) == len(found)
    for n, bundle in enumerate(found):
        assert len(bundle.tasks) <= length
        assert {shares.share(bundle.column, task.block.index) for task in bundle.tasks} == {bundle.share}
        assert all(places[target] > n for target, _ in bundle.targets)


@pytest.mark.parametrize(("sizes", "workers"), [((24, 20, 16), 2), ((24, 20, 18), 3), ((40, 32), 5), ((30, 6, 6), 2)])
def test_each_worker_gets_its_part_of_the_blocks(sizes, workers):
    plan = a_plan(sizes)
    shares = dealing(plan, workers)
    column = next(plan.columns())
    counts = Counter(shares.share(column, index) for index in plan.block_range.points())
    fair = plan.block_range.size / workers
    rows = plan.block_range.size / plan.block_range.shape[shares.axis] / plan.block_range.shape[shares.across]
    assert sorted(counts) == list(range(workers))
    assert all(abs(count - fair) <= rows for count in counts.values()), "a block of a plane at most"


def test_few_blocks_in_a_row_are_not_dealt():
    assert dealing(a_plan((24, 8, 8), block=2), 4) is None
    assert dealing(a_plan((24, 20, 16)), 1) is None
    assert dealing(replace(a_plan((24, 20, 16)), walls=((), (2,), ())), 2) is None


@pytest.mark.parametrize(("sizes", "workers"), [((24, 20, 16), 2), ((24, 20, 18), 3), ((40, 32), 5)])
@pytest.mark.parametrize("columns", [1, 2])
def test_what_shares_fetch_is_what_their_blocks_read(sizes, workers, columns):
    """Against the boxes of the tasks themselves, where each worker keeps what it has."""
    plan = a_plan(sizes, columns=[1, columns, 1][: len(sizes)])
    chunks = (3, 5, 4)[: len(sizes)]
    shares = dealing(plan, workers)
    whole = Fetching.of(plan, chunks)
    read: list[set] = [set() for _ in range(workers * plan.column_count)]
    for column in plan.columns():
        for task in plan.tasks(column, lambda _: True):
            cells = task.read.cells(chunks)
            found = {tuple(l // c for l, c in zip(cell.lo, chunks, strict=True)) for cell in cells}
            read[column.number * workers + shares.share(column, task.block.index)] |= found
    if columns == 1:
        assert shares.fetches(whole, 10**6) * whole.chunks == sum(map(len, read))
    for share in range(workers):
        part = shares.reads(whole, (share, share + 1))
        own = set().union(*read[share::workers])
        assert own <= set(itertools.product(*(rows for rows in part.rows)))
        assert part.shared


def test_two_shares_of_a_cube_cost_the_chunks_at_the_wall_between_them():
    plan = a_plan((32, 32, 32), window=4, overlap=0.5, block=4)  # blocks of 8, that read 2 more
    shares = dealing(plan, 2)
    assert shares.fetches(Fetching.of(plan, (4, 4, 4)), np.inf) == 1 + 1 / 8
