"""Bundles: tasks of neighbouring blocks as one piece of work for a cluster. Pure: no Dask, no voxels.

A block of small windows on a fast device takes less time than a scheduler needs to hand it out. A bundle is up to
`length` blocks that follow one another along the fastest axis of a column, or of a tube of it: halos between them never leave the worker,
so that fewer things are sent, too.

    blocks of a row   |0 1 2 3|4 5 6 7|8 9|      bundles (row, 0), (row, 1), (row, 2) of length 4
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from unet_engine.plan.dealing import Dealing
from unet_engine.plan.plan import Column, Index, Plan, Task

BundleId = tuple[int, ...]
"""Number of the column, then the block index with the fastest axis counted in bundles."""

BUNDLE_SECONDS = 1.0
"""What a bundle should take at least, so that handing it out costs next to nothing."""
BUNDLES_PER_SECOND = 16.0
"""Bundles that all workers together should end in a second at most: with more workers, bundles are longer. What one
costs scheduler and senders of halos does not depend on its length."""
BUNDLES_PER_WORKER = 8
"""Bundles that each worker should get at least, so that all end at about the same time."""


@dataclass(frozen=True)
class Bundle:
    """Consecutive tasks of one row of one column, predicted and committed together."""

    id: BundleId
    column: Column
    tasks: tuple[Task, ...]
    targets: tuple[tuple[BundleId, frozenset[Index]], ...]
    """Other bundles that wait for halos of this one, and the blocks in them that do."""
    share: int | None = None
    """Whose it is, where blocks are dealt; None: of whoever has nothing else to do."""

    @cached_property
    def commits(self) -> bool:
        return any(task.commits for task in self.tasks)

    def __str__(self) -> str:
        first, last = self.tasks[0].block, self.tasks[-1].block
        return f"block {first.index}" if first is last else f"blocks {first.index} to {last.index}"


def bundles(
    plan: Plan, pending: Callable[[Index], bool], length: int, dealing: Dealing | None = None
) -> Iterator[Bundle]:
    """All that is left to do, `length` blocks at most in each, lower neighbours first. Lazy, as `Plan.tasks`. dealing:
    the shares that blocks are dealt in, whose bundles come in turns."""
    for column in plan.columns():
        if dealing is None:
            yield from _bundles(plan, column, plan.tasks(column, pending), length, None)
            continue
        for boxes in dealing.steps(column, length):
            parts = ((plan.tasks_in(box, column, pending)) for box in boxes)
            for turn in itertools.zip_longest(*(_bundles(plan, column, part, length, dealing) for part in parts)):
                yield from filter(None, turn)


def _bundles(
    plan: Plan, column: Column, tasks: Iterator[Task], length: int, dealing: Dealing | None
) -> Iterator[Bundle]:
    def row_of(task: Task) -> BundleId:
        return bundle_id(plan, column, task.block.index, length, dealing)

    for key, row in itertools.groupby(tasks, row_of):
        yield _bundle(plan, key, column, tuple(row), length, dealing)


def bundle_id(plan: Plan, column: Column, block: Index, length: int, dealing: Dealing | None = None) -> BundleId:
    fast = plan.order[-1]
    # blocks of lower columns that only spill in lie below the column's first: they count as rows of their own
    starts = [lo for lo, _ in plan.tube_spans(fast, column.blocks.lo[fast], column.blocks.hi[fast])]
    if dealing and dealing.axis == fast:
        starts = sorted({*starts, *dealing.starts_in(column, block[dealing.across])})
    begun = max(1, bisect_right(starts, block[fast]))
    before = sum(-(-(hi - lo) // length) for lo, hi in itertools.pairwise(starts[:begun]))
    place = before + (block[fast] - starts[begun - 1]) // length
    return (column.number, *(place if a == fast else i for a, i in enumerate(block)))


def _bundle(
    plan: Plan, key: BundleId, column: Column, tasks: tuple[Task, ...], length: int, dealing: Dealing | None
) -> Bundle:
    targets: dict[BundleId, set[Index]] = {}
    for task in tasks:
        for block, _ in task.halos:
            if (other := bundle_id(plan, column, block, length, dealing)) != key:
                targets.setdefault(other, set()).add(block)
    found = tuple((other, frozenset(blocks)) for other, blocks in sorted(targets.items()))
    return Bundle(key, column, tasks, found, dealing.share(column, tasks[0].block.index) if dealing else None)


def bundle_length(plan: Plan, seconds_per_window: float, workers: int) -> int:
    """Blocks per bundle: enough for `BUNDLE_SECONDS` and `BUNDLES_PER_SECOND`, few enough for `BUNDLES_PER_WORKER`, and
    a row at most."""
    wanted = -(
        -max(BUNDLE_SECONDS, workers / BUNDLES_PER_SECOND)
        // max(1e-9, prod(plan.block) * plan.calls * seconds_per_window)
    )
    fair = plan.block_count // (BUNDLES_PER_WORKER * max(1, workers))
    row = plan.block_range.shape[plan.order[-1]]
    return int(max(1, min(wanted, fair, row)))
