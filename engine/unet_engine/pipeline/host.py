"""Windows on their way through the network: cut, in flight, added, strictly in order.

    windows of block n     [c0][c1][c2] ... [c63]|[c0][c1] ...    windows of block n + 1
                            ^ head: waited for, added              ^ tail: cut into a free slot, started

The queue is first in, first out, so sums are added in window order whatever order the device finishes in, and windows of the next block
enter the device before the last of this one have left it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unet_engine.backends.base import Backend
from unet_engine.errors import BackendError
from unet_engine.pipeline import timed
from unet_engine.pipeline.job import Array, Job, Predicted, Raw, Tally
from unet_engine.pipeline.recycling import Recycler
from unet_engine.pipeline.timed import Tools
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index, Task
from unet_engine.stitching import operations
from unet_engine.stitching.weights import axis_weights

BLOCKS_IN_FLIGHT = 1
"""Blocks whose last windows may still be in the network while the next block is cut; more would only cost memory."""


def predict(
    job: Job,
    backend: Backend,
    tally: Tally,
    work: Iterable[tuple[Task, Raw | None] | None],
    memory: Recycler,
    tools: Tools = timed.PLAIN,
) -> Iterator[Predicted]:
    """Infer the windows of each task and add them up in sums from `memory`; yields the blocks in the order they came.

    A None among the work means that none is to be had right now: all that is in the network is then waited for and yielded.
    Raises `BackendError` naming block and window where the network fails.
    """
    flight = _Flight(job, backend, tally, tools)
    for item in work:
        if item is None:
            while flight.entries:
                yield from flight.pop()
            continue
        task, raw = item
        predicted = Predicted(task, memory.zeros((job.model.spec.channels_out, *task.block.sums.shape)))
        cutter = _Cutter(job, task, raw, tools)
        for window in task.windows:
            if cutter.is_empty(window):
                flight.push_empty(predicted, window)
                continue
            while not flight.ready:
                yield from flight.pop()
            flight.push(predicted, window, cutter)
        flight.push_end(predicted)
        while flight.settled or flight.blocks > BLOCKS_IN_FLIGHT:
            yield from flight.pop()
    while flight.entries:
        yield from flight.pop()


@dataclass(frozen=True, slots=True)
class _Cut:
    """One window of one block. `slot` is None where the window is skipped."""

    predicted: Predicted
    window: Index
    slot: int | None
    place: int = 0


class _Flight:
    """First in, first out: windows in the network, skipped windows between them, and the ends of blocks."""

    def __init__(self, job: Job, backend: Backend, tally: Tally, tools: Tools) -> None:
        self.job, self.backend, self.tally, self.tools = job, backend, tally, tools
        self.entries: deque[_Cut | Predicted] = deque()
        self.blocks = 0
        self._waiting = [0] * backend.slots
        """Per slot, windows that were put in and not yet added."""
        self._slot = self._place = 0

    @property
    def ready(self) -> bool:
        """Whether the next window has a place."""
        return self._place > 0 or self._waiting[self._slot] == 0

    @property
    def settled(self) -> bool:
        """Whether the head needs nothing from the device."""
        return bool(self.entries) and (isinstance(self.entries[0], Predicted) or self.entries[0].slot is None)

    def push(self, predicted: Predicted, window: Index, cutter: _Cutter) -> None:
        cutter.cut(window, self.backend.input(self._slot)[self._place])
        self.entries.append(_Cut(predicted, window, self._slot, self._place))
        self._waiting[self._slot] += 1
        self._place += 1
        if self._place == self.job.setup.batch:
            self._launch()

    def push_empty(self, predicted: Predicted, window: Index) -> None:
        self.entries.append(_Cut(predicted, window, None))

    def push_end(self, predicted: Predicted) -> None:
        self.entries.append(predicted)
        self.blocks += 1

    def _launch(self) -> None:
        self.backend.start(self._slot)
        self._slot, self._place = (self._slot + 1) % self.backend.slots, 0

    def pop(self) -> Iterator[Predicted]:
        """Take the head off: add a window (waiting for it), or yield a block that is done."""
        head = self.entries.popleft()
        if isinstance(head, Predicted):
            self.blocks -= 1
            yield head
            return
        sums, block = head.predicted.sums, head.predicted.task.block
        placement = _placement(self.job, head.window, block.sums)
        if head.slot is None:
            self.tally.add(skipped=1)
            self.tools.add_constant(sums, np.asarray(self.job.model.spec.empty, np.float32), *placement)
            return
        if head.slot == self._slot and self._place:
            self._launch()  # a batch that the end of the work left part empty
        try:
            values = self.backend.result(head.slot)[head.place]
        except BackendError as error:
            raise BackendError(f"{error} (block {block.index}, window {head.window})") from error
        self.tally.add(inferred=1)
        self.tools.add(sums, values.reshape(len(values), *self.job.plan.window_shape), *placement)
        self._waiting[head.slot] -= 1


def _placement(
    job: Job, window: Index, sums: Box
) -> tuple[Sequence[Array], Sequence[int], Sequence[int], Sequence[int]]:
    """Weights, position and range of a window in the sums of its block."""
    axes = list(zip(job.plan.axes, window, strict=True))
    starts = [axis.start(k) for axis, k in axes]
    supports = [axis.support(k) for axis, k in axes]
    inside = (Box(*map(tuple, zip(*supports, strict=True))) & sums).relative_to(starts)
    at = [s - l for s, l in zip(starts, sums.lo, strict=True)]
    return [axis_weights(axis, k) for axis, k in axes], at, inside.lo, inside.hi


def emptiness(job: Job, task: Task, raw: Raw | None) -> Callable[[Index], bool]:
    """The test of which windows of `task` are skipped."""
    return _Cutter(job, task, raw, timed.PLAIN).is_empty


class _Cutter:
    """Cuts the windows of one task out of its raw block."""

    def __init__(self, job: Job, task: Task, raw: Raw | None, tools: Tools) -> None:
        self._raw, self._skips = raw, job.skips
        self._axes, self._lo = job.plan.axes, task.read.lo
        self._background = job.model.spec.background
        self._scale = np.asarray(job.scaling.scale)
        self._shift = np.asarray(job.scaling.shift)
        self._padding = job.plan.padding
        self._gather = tools.gather
        self._index: dict[tuple[int, int], Array] = {}

    def _positions(self, a: int, k: int) -> Array:
        """Where along axis `a` each voxel of window k lies in the raw block; -1 for constant padding."""
        if (a, k) not in self._index:
            source = np.asarray(self._axes[a].source(*self._axes[a].input(k), self._padding), np.int64)
            self._index[a, k] = np.where(source < 0, -1, source - self._lo[a])
        return self._index[a, k]

    def is_empty(self, window: Index) -> bool:
        if not self._skips:
            return False
        if self._raw is None:
            return True
        spans = [self._positions(a, k) for a, k in enumerate(window)]
        lo = [int(s[s >= 0].min()) for s in spans]
        hi = [int(s.max()) + 1 for s in spans]
        if self._raw.mask is not None and operations.is_constant(self._raw.mask, lo, hi, 0):
            return True
        return operations.is_constant(self._raw.voxels, lo, hi, self._background)

    def cut(self, window: Index, out: Array) -> None:
        """Normalise one window into ``out``: (channels in, *window) float32."""
        assert self._raw is not None
        spans = [self._positions(a, k) for a, k in enumerate(window)]
        shaped = out.reshape(len(out), *(s.size for s in spans))
        self._gather(shaped, self._raw.voxels, spans, self._scale, self._shift, 0.0)
