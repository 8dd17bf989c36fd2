"""Tasks of neighbouring blocks in one piece of work for a cluster. Pure: no Dask, no voxels.

A block of small windows on a fast device takes less time than a scheduler needs to hand it out. A run is up to `length` blocks that
follow one another along the fastest axis of a column: halos between them never leave the worker, so that fewer things are sent, too.

    blocks of a row   |0 1 2 3|4 5 6 7|8 9|      runs (row, 0), (row, 1), (row, 2) of length 4
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from unet_engine.plan.plan import Column, Index, Plan, Task

RunId = tuple[int, ...]
"""Number of the column, then the block index with the fastest axis counted in runs."""

RUN_SECONDS = 1.0
"""What a run should take at least, so that handing it out costs next to nothing."""
RUNS_PER_SECOND = 16.0
"""Runs that all workers together should end in a second at most: with more workers, runs are longer. What one costs scheduler and senders
of halos does not depend on its length."""
RUNS_PER_WORKER = 8
"""Runs that each worker should get at least, so that all end at about the same time."""


@dataclass(frozen=True)
class Run:
    """Consecutive tasks of one row of one column, predicted and committed together."""

    id: RunId
    column: Column
    tasks: tuple[Task, ...]
    targets: tuple[tuple[RunId, frozenset[Index]], ...]
    """Other runs that wait for halos of this one, and the blocks in them that do."""

    @cached_property
    def commits(self) -> bool:
        return any(task.commits for task in self.tasks)

    def __str__(self) -> str:
        first, last = self.tasks[0].block, self.tasks[-1].block
        return f"block {first.index}" if first is last else f"blocks {first.index} to {last.index}"


def runs(plan: Plan, pending: Callable[[Index], bool], length: int) -> Iterator[Run]:
    """All that is left to do, in an order in which lower neighbours come first. Lazy, as `Plan.tasks`."""
    for column in plan.columns():
        tasks = plan.tasks(column, pending)
        for key, row in itertools.groupby(tasks, lambda task: run_id(plan, column, task.block.index, length)):  # noqa: B023
            yield _run(plan, key, column, tuple(row), length)


def run_id(plan: Plan, column: Column, block: Index, length: int) -> RunId:
    fast = plan.order[-1]
    # blocks of lower columns that only spill in lie below the column's first: they count as rows of their own
    place = (block[fast] - column.blocks.lo[fast]) // length
    return (column.number, *(place if a == fast else i for a, i in enumerate(block)))


def _run(plan: Plan, key: RunId, column: Column, tasks: tuple[Task, ...], length: int) -> Run:
    targets: dict[RunId, set[Index]] = {}
    for task in tasks:
        for block, _ in task.halos:
            if (other := run_id(plan, column, block, length)) != key:
                targets.setdefault(other, set()).add(block)
    return Run(key, column, tasks, tuple((other, frozenset(blocks)) for other, blocks in sorted(targets.items())))


def run_length(plan: Plan, seconds_per_window: float, workers: int) -> int:
    """Blocks per run: enough for `RUN_SECONDS` and `RUNS_PER_SECOND`, few enough for `RUNS_PER_WORKER`, a row at most."""
    wanted = -(-max(RUN_SECONDS, workers / RUNS_PER_SECOND) // max(1e-9, prod(plan.block) * seconds_per_window))
    fair = plan.block_count // (RUNS_PER_WORKER * max(1, workers))
    row = plan.block_range.shape[plan.order[-1]]
    return int(max(1, min(wanted, fair, row)))
