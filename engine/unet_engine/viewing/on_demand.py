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
from unet_engine.pipeline.columns import run_column
from unet_engine.pipeline.job import Job
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Block, Column, Index, Plan, Task, read_span
from unet_engine.prepare.given import NOTHING, Given
from unet_engine.prepare.prepare import Prepared
from unet_engine.settings import Settings
from unet_engine.stitching.operations import label_threshold
from unet_engine.units import Tell, silent
from unet_engine.viewing.demand import Blocks, Demand, Sight
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

    def __init__(self, blocks: Blocks, dtype: str) -> None:
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

    def __init__(self, settings: Settings, show: Show, tell: Tell = silent, given: Given = NOTHING) -> None:
        super().__init__(settings, tell, given)
        self._show = show
        self._is_idle = True

    def order(self, prepared: Prepared, pending: Pending) -> Callable[[], None]:
        return partial(self._as_asked, prepared, pending)

    def _as_asked(self, prepared: Prepared, pending: Pending) -> None:
        job = prepared.job
        blocks = Blocks(job.plan, job.layout)
        demand, previews = Demand(blocks, pending), Previews(blocks, job.layout.dtype)
        before = job.plan.block_count - sum(map(pending, _all(job.plan)))
        try:
            with self._show(prepared, demand, previews) as shown:
                looking = _Looking(self.workers[0], prepared, demand, previews, shown, before)
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
        self, worker: Worker, prepared: Prepared, demand: Demand, previews: Previews, shown: Showing, before: int
    ) -> None:
        """before: how many blocks were committed already"""
        self._worker, self._demand, self._previews, self._shown = worker, demand, previews, shown
        self._plan = worker.job.plan
        self._seconds = prepared.seconds_per_window * self._plan.calls
        self._before = before
        self._previewed = _is_previewed(worker.job)
        self._there: tuple[Index, Index] | None = None
        """Block and window of the last preview."""
        self._say()

    def begin(self) -> None:
        """Infer what people will see first while the viewer loads: of the block in the middle, a window. It is no block,
        so nothing is kept of it."""
        index = self._demand.middle()
        if index is not None:
            self._preview(index)

    def compute(self, index: Index) -> None:
        """Infer, write and mark one block: a column of its own, so what it needs of blocks below it is inferred with it,
        as at every seam."""
        column = self._column(index)
        self._preview(index)
        run_column(self._worker, column, lambda i: i == index, threading.Event())
        self._demand.committed(index)
        self._previews.drop(index)
        self._say()
        self._shown.changed()

    def _say(self) -> None:
        there, of = self._before + self._demand.done, self._plan.block_count
        self._shown.say(f"{there:,} of {of:,} blocks are computed")

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
        one = Box(window, tuple(k + 1 for k in window))
        box = plan.support(one) & write
        if box.is_empty or self._there == (index, window):
            return
        self._there = index, window
        spans = [read_span(axis, k, k, plan.padding) for axis, k in zip(plan.axes, window, strict=True)]
        block = Block(index, one, plan.support(one) & plan.roi, box, box)
        task = Task(block, commits=False, windows=(window,), read=Box(*map(tuple, zip(*spans, strict=True))), halos=())
        worker = self._worker
        for done in worker.predict([(task, worker.read(task))]):
            values, _ = worker.pipeline.finish(task, done.inside(box), [])
            self._previews.put(index, box, np.array(values))
        self._shown.changed()


def _is_previewed(job: Job) -> bool:
    """Whether one window says what its labels are: the largest of several numbers is, whatever they are weighted with.
    Not where voxels are interpolated or thresholds count."""
    spec = job.model.spec
    exclusive = spec.regions is None and label_threshold(spec.activation, spec.channels_out, spec.threshold) is None
    return job.kind == "labels" and exclusive and not job.plan.back
