"""A first guess of all that is on the screen: one window of the network over a coarser picture of it, long before the
blocks are there. It is shown in stripes, and never written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from unet_engine.pipeline.job import Raw
from unet_engine.pipeline.worker import Worker
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Index
from unet_engine.viewing.demand import Blocks
from unet_engine.viewing.levels import PIECE, Levels
from unet_engine.viewing.windows import labels_of, task_of
from unet_engine.volumes.base import Array
from unet_engine.volumes.turn import Turn

STRIPES, DRAWN = 8, 5
"""Of so many diagonals of an answer, how many have a sketch: what is whole is computed."""
KEPT = 8
"""Sketches of different places and sizes."""
MOST = 2**15
"""Blocks in an answer beyond which nobody looks for each whether it is computed, and no sketch is shown."""


@dataclass(frozen=True)
class Place:
    """Where a sketch lies: in voxels of the volume as it is stored, z, y, x, each `factors` of the full ones."""

    factors: tuple[int, ...]
    lo: tuple[int, ...]
    """Its first voxel."""


class Sketches:
    """What there is of them, from any thread."""

    def __init__(self, blocks: Blocks, corner: Sequence[int], shape: Sequence[int], pending: Callable[[Index], bool]):
        """corner, shape: of the output, in voxels of the volume as it is stored; pending: which blocks are not
        computed"""
        self._blocks, self._corner, self._shape, self._pending = blocks, tuple(corner), tuple(shape), pending
        self._there: dict[Place, Array] = {}
        self._lock = threading.Lock()

    def __contains__(self, place: Place) -> bool:
        return place in self._there

    def put(self, place: Place, labels: Array) -> None:
        with self._lock:
            self._there[place] = labels
            while len(self._there) > KEPT:
                self._there.pop(next(iter(self._there)))

    def over(self, box: Box, factors: Sequence[int], voxels: Array) -> None:
        """Lay them, the finest on top, over what is not computed of `voxels`, (*box.shape), which are those of `box` of
        a resolution of the output whose voxels span `factors`."""
        with self._lock:
            there = sorted(self._there.items(), key=lambda item: -prod(item[0].factors))
        drawn = self._drawn(box, factors) if there else None
        if drawn is None:
            return
        full = [np.arange(l, h) * f + c for l, h, f, c in zip(box.lo, box.hi, factors, self._corner, strict=True)]
        for place, labels in there:
            at = [x // f - lo for x, f, lo in zip(full, place.factors, place.lo, strict=True)]
            spans = [np.searchsorted(i, (0, n)) for i, n in zip(at, labels.shape, strict=True)]
            where = tuple(slice(*span) for span in spans)
            piece = labels[np.ix_(*(i[span] for i, span in zip(at, where, strict=True)))]
            np.copyto(voxels[where], piece, where=drawn[where])

    def _drawn(self, box: Box, factors: Sequence[int]) -> Array | None:
        """Which voxels of an answer a sketch is seen in, (*box.shape); None where it is none."""
        full = Box(
            tuple(l * f for l, f in zip(box.lo, factors, strict=True)),
            tuple(min(h * f, n) for h, f, n in zip(box.hi, factors, self._shape, strict=True)),
        )
        seen = self._blocks.seen(full)
        along = [self._blocks.along(a, seen.lo[a], seen.hi[a]) for a in range(seen.ndim)]
        if prod(map(len, along)) > MOST:
            return None
        diagonals: Array = sum(np.indices(box.shape, sparse=True), np.array(sum(box.lo)))
        drawn: Array = diagonals % STRIPES < DRAWN
        for index in product(*along):
            if not self._pending(index):
                done = self._blocks.stored(self._blocks.plan.write_box(index)) & full
                lo = tuple(-(-l // f) for l, f in zip(done.lo, factors, strict=True))
                hi = tuple(-(-h // f) for h, f in zip(done.hi, factors, strict=True))
                drawn[Box(lo, hi).relative_to(box.lo).slices()] = False
        return drawn if drawn.any() else None


class Sketcher:
    """Makes them, with the network of a worker."""

    def __init__(self, worker: Worker, levels: Levels) -> None:
        """levels: of what the worker's volume is read from"""
        self._worker, self._levels = worker, levels
        plan, turn = worker.job.plan, worker.job.turn
        window = tuple(_middle(axis, lo, hi) for axis, lo, hi in zip(plan.axes, plan.roi.lo, plan.roi.hi, strict=True))
        self._task = task_of(plan, window, plan.roi)
        read, box = self._task.read, self._task.block.write
        self._turn = (turn or Turn(tuple(range(read.ndim)), (False,) * read.ndim, read.shape)).of(
            turn.stored(read.shape) if turn else read.shape
        )
        self._read, self._box = self._turn.shape, self._turn.stored_box(box.relative_to(read.lo))
        self.region = turn.stored_box(plan.roi) if turn else plan.roi
        """Of the volume as it is stored, what the output has."""

    def place(self, at: Sequence[float], extent: Box) -> Place | None:
        """The sketch that shows most of `extent` around `at`, both of the volume as it is stored; None where it would
        be no coarser than the blocks, or would have to be made of more than is read at once."""
        size = self._box.shape
        factor = max(_double(n, s) for n, s in zip(extent.shape, size, strict=True))
        while factor > 1:
            # what is thin stays as sharp as its one window allows
            factors = tuple(min(factor, _double(n, s)) for n, s in zip(self.region.shape, size, strict=True))
            if self._levels.cost(self._read, factors) <= PIECE:
                return Place(factors, self._begin(at, factors))
            factor //= 2
        return None

    def _begin(self, at: Sequence[float], factors: Sequence[int]) -> tuple[int, ...]:
        """On a lattice of half windows, so that who moves a little gets the same sketch."""
        found = []
        for x, f, n, lo, hi in zip(at, factors, self._box.shape, self.region.lo, self.region.hi, strict=True):
            step = max(1, n // 2)
            first = lo // f + round((x / f - n / 2 - lo // f) / step) * step
            found.append(max(lo // f, min(first, -(-hi // f) - n)))
        return tuple(found)

    def infer(self, place: Place) -> Array:
        """The labels at `place`, of voxels that are means of those they stand for. What lies outside of the volume is
        mirrored."""
        box = Box.of_shape(self._read).shift([lo - b for lo, b in zip(place.lo, self._box.lo, strict=True)])
        shape = self._levels.full.shape
        there = box & Box.of_shape([-(-n // f) for n, f in zip(shape, place.factors, strict=True)])
        voxels = self._levels.read(there, place.factors, mean=True)
        if voxels.dtype.kind == "f":
            voxels = np.where(np.isfinite(voxels), voxels, voxels.dtype.type(self._worker.job.background))
        sides = zip(box.lo, there.lo, there.hi, box.hi, strict=True)
        voxels = np.pad(voxels, [(0, 0), *((t - b, e - h) for b, t, h, e in sides)], mode="symmetric")
        return self._turn.stored_view(labels_of(self._worker, self._task, Raw(self._turn.view(voxels), None)))


def _middle(axis: AxisGrid, lo: int, hi: int) -> int:
    """A window near the middle between `lo` and `hi`, one that does not stick out of the volume if there is one."""
    middle = (lo + hi) // 2
    windows = axis.meeting(middle, middle + 1)
    return next((k for k in windows if axis.input(k)[0] >= 0 and axis.input(k)[1] <= axis.size), windows[0])


def _double(length: int, size: int) -> int:
    """The smallest power of two, `size` times which is `length` or more."""
    return 1 << max(0, -(-length // size) - 1).bit_length()
