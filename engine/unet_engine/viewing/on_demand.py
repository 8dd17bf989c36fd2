"""A run whose blocks are computed because somebody looks at them, by the one pipeline there is. What is computed counts
as in any run; what is not is left to a resume."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from math import dist
from typing import Protocol

import numpy as np

from unet_engine.execution.local import LocalTeam
from unet_engine.execution.team import Pending
from unet_engine.pipeline.columns import run_column, tasks_of
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Column, Index, Plan
from unet_engine.prepare.given import NOTHING, Given
from unet_engine.prepare.prepare import Prepared
from unet_engine.settings.settings import Settings
from unet_engine.units import Tell, silent
from unet_engine.viewing.demand import Blocks, Demand, Sight
from unet_engine.viewing.levels import Levels
from unet_engine.viewing.sketches import Sketcher, Sketches
from unet_engine.viewing.windows import labels_of, task_of, tells_labels
from unet_engine.volumes.base import Array

PATIENCE = 0.25
"""Seconds between two looks whether it is over."""
SLOW = 0.7
"""Seconds that a block takes from which on a window of it is shown before."""


class Closed(Exception):
    """The viewer was closed before all blocks were computed; how many are there."""

    def __init__(self, there: int, of: int) -> None:
        super().__init__(f"{there:,} of {of:,} blocks are computed")
        self.there, self.of = there, of


class Showing(Protocol):
    """The viewer, as this sees it."""

    def sight(self) -> Sight | None: ...

    def changed(self) -> None:
        """There is more to see."""

    def say(self, text: str) -> None: ...


Show = Callable[[Prepared, Demand, "Previews"], AbstractContextManager[Showing]]
"""Opens the viewer, and closes it."""


class Previews:
    """What windows look like before their block is done; labels of the most likely class. From any thread."""

    def __init__(self, blocks: Blocks, dtype: str, sketches: Sketches) -> None:
        """sketches: which lie below"""
        self.sketches = sketches
        self._blocks, self._dtype = blocks, np.dtype(dtype)
        self._there: dict[Index, tuple[Box, Array]] = {}
        self._lock = threading.Lock()

    def put(self, index: Index, box: Box, values: Array) -> None:
        """Of block `index`: `values` in `box`, in voxels of the plan."""
        with self._lock:
            self._there[index] = (box, values.astype(self._dtype))

    def drop(self, index: Index) -> None:
        """The block is written: what is stored counts."""
        with self._lock:
            self._there.pop(index, None)

    def over(self, box: Box, factors: Sequence[int], voxels: Array) -> None:
        """Lay what is there over `voxels`, (*box.shape), which are those of `box` of a resolution of the output whose
        voxels span `factors`, each the first of these."""
        full = Box(
            tuple(l * f for l, f in zip(box.lo, factors, strict=True)),
            tuple(h * f for h, f in zip(box.hi, factors, strict=True)),
        )
        self.sketches.over(box, factors, voxels)
        with self._lock:
            there = [(self._blocks.stored(where), values) for where, values in self._there.values()]
        for where, values in there:
            both = where & full
            first = tuple(-(-l // f) for l, f in zip(both.lo, factors, strict=True))
            if any(i * f >= h for i, f, h in zip(first, factors, both.hi, strict=True)):
                continue
            steps = zip(first, where.lo, both.hi, factors, strict=True)
            piece = self._blocks.view(values)[tuple(slice(i * f - lo, hi - lo, f) for i, lo, hi, f in steps)]
            voxels[Box(first, tuple(map(sum, zip(first, piece.shape, strict=True)))).relative_to(box.lo).slices()] = (
                piece
            )


class OnDemandTeam(LocalTeam):
    """This process and its first device. `execute` ends when the viewer does: with `Closed` where blocks are left."""

    def __init__(
        self, settings: Settings, show: Show, tell: Tell = silent, given: Given = NOTHING, levels: Levels | None = None
    ) -> None:
        """levels: of the volume, which sketches are made of; None: there are none"""
        super().__init__(settings, tell, given)
        self._show, self._levels = show, levels
        self._is_idle = True

    def order(self, prepared: Prepared, pending: Pending) -> Callable[[], None]:
        return partial(self._as_asked, prepared, pending)

    def _as_asked(self, prepared: Prepared, pending: Pending) -> None:
        job = prepared.job
        blocks = Blocks(job.plan, job.layout)
        demand = Demand(blocks, pending)
        region = job.turn.stored_box(job.plan.roi) if job.turn else job.plan.roi
        previews = Previews(blocks, job.layout.dtype, Sketches(blocks, region.lo, region.shape, demand.pending))
        before = job.plan.block_count - sum(map(pending, _all(job.plan)))
        try:
            with self._show(prepared, demand, previews) as shown:
                looking = _Looking(self.workers[0], prepared, demand, previews, shown, before, self._levels)
                looking.begin()
                for index in self._asked(demand):
                    looking.compute(index)
        except KeyboardInterrupt:  # which is how a viewer is closed
            self.workers[0].record()
        there, of = before + demand.done, job.plan.block_count
        if there < of:
            raise Closed(there, of)

    def _asked(self, demand: Demand) -> Iterator[Index]:
        while True:
            index = demand.next(PATIENCE)
            if index is not None:
                self._is_idle = False
                yield index
                self._is_idle = True

    def _moved(self) -> object:
        return object() if self._is_idle else super()._moved()


def _all(plan: Plan) -> Iterator[Index]:
    for index in Box(tuple(0 for _ in plan.writing), tuple(map(len, plan.writing))).points():
        yield tuple(axis[i] for axis, i in zip(plan.writing, index, strict=True))


class _Looking:
    """Computes what is asked for, and has it shown."""

    def __init__(
        self, worker: Worker, prepared: Prepared, demand: Demand, previews: Previews, shown: Showing, before: int,
        levels: Levels | None,
    ) -> None:  # fmt: skip
        """before: how many blocks were committed already; levels: coarser pictures of the volume, where there are
        any"""
        self._worker, self._demand, self._previews, self._shown = worker, demand, previews, shown
        self._plan = worker.job.plan
        self._seconds = prepared.seconds_per_window * self._plan.calls
        self._before = before
        self._previewed = tells_labels(worker.job)
        whole = self._plan.window_count * self._seconds
        self._sketcher = (
            Sketcher(worker, levels) if levels and self._previewed and not self._plan.image and whole > SLOW else None
        )
        self._sketched = False
        self._there: tuple[Index, Index] | None = None
        """Block and window of the last preview."""
        self._say()

    def begin(self) -> None:
        """Infer what people will see first while the viewer loads: a sketch of all of it, and of the block in the
        middle a window. They are no blocks, so nothing is kept of them."""
        self._sketch(self._plan.roi)
        index = self._demand.middle()
        if index is not None:
            self._preview(index)

    def compute(self, index: Index) -> None:
        """Infer, write and mark one block: a column of its own, so what it needs of blocks below it is inferred with
        it, as at every seam."""
        column = self._column(index)
        if extent := self._demand.extent():
            self._sketch(extent & self._plan.roi)
        self._preview(index)
        run_column(self._worker, tasks_of(self._worker, column, lambda i: i == index), threading.Event())
        self._demand.committed(index)
        self._previews.drop(index)
        self._say()
        self._shown.changed()

    def _say(self) -> None:
        there, of = self._before + self._demand.done, self._plan.block_count
        rest = "; what is striped is a guess from a coarser picture" if self._sketched and there < of else ""
        self._shown.say(f"{there:,} of {of:,} blocks are computed{rest}")

    def _column(self, index: Index) -> Column:
        return Column(0, Box(index, tuple(j + 1 for j in index)))

    def _preview(self, index: Index) -> None:
        """Of a block that takes long show the window that is nearest to where people look, before the others are
        inferred."""
        windows = self._plan.column_windows(self._column(index))
        if not self._previewed or windows.size == 1 or windows.size * self._seconds <= SLOW:
            return
        plan, write = self._plan, self._plan.write_box(index)
        looked = self._shown.sight()
        at = self._demand.there(looked).at if looked else [(l + h) / 2 for l, h in zip(write.lo, write.hi, strict=True)]

        def away(window: Index) -> float:
            box = plan.support(Box(window, tuple(k + 1 for k in window)))
            return dist(at, [(l + h) / 2 for l, h in zip(box.lo, box.hi, strict=True)])

        window = min(windows.points(), key=away)
        task = task_of(plan, window, write)
        if task.block.write.is_empty or self._there == (index, window):
            return
        self._there = index, window
        self._previews.put(index, task.block.write, labels_of(self._worker, task, self._worker.read(task)))
        self._shown.changed()

    def _sketch(self, extent: Box) -> None:
        """Show a first guess of `extent`, of the plan, where it is larger than a window and there is none yet."""
        if self._sketcher is None:
            return
        turn, region = self._worker.job.turn, self._sketcher.region
        looked = self._shown.sight()
        at = [x + lo for x, lo in zip(looked.at, region.lo, strict=True)] if looked else [
            (l + h) / 2 for l, h in zip(region.lo, region.hi, strict=True)
        ]  # fmt: skip
        place = self._sketcher.place(at, turn.stored_box(extent) if turn else extent)
        if place is None or place in self._previews.sketches:
            return
        self._previews.sketches.put(place, self._sketcher.infer(place))
        self._sketched = True
        self._say()
        self._shown.changed()
