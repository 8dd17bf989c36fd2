"""The pipeline of the host. Windows on their way through the network: cut, in flight, added, strictly in order.

    windows of block n     [c0][c1][c2] ... [c63]|[c0][c1] ...    windows of block n + 1
                            ^ head: waited for, added              ^ tail: cut into a free slot, started

The queue is first in, first out, so sums are added in window order whatever order the device finishes in, and windows
of the next block enter the device before the last of this one have left it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unet_engine.backends.answered import Answered
from unet_engine.backends.base import Array, Backend
from unet_engine.errors import BackendError
from unet_engine.pipeline.base import Work
from unet_engine.pipeline.job import Halo, Job, Raw, Tally
from unet_engine.pipeline.recycling import Recycler
from unet_engine.pipeline.sharing import ALONE, Sharing
from unet_engine.pipeline.windows import Windows, divide, placement
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index, Task
from unet_engine.plan.poses import UPRIGHT, Pose
from unet_engine.profiling.recorder import Recorder
from unet_engine.profiling.stages import ACTIVATION, ADD, COPY, GATHER, MERGE, NETWORK
from unet_engine.stitching import operations
from unet_engine.stitching.interpolation import taps

Watch = Callable[[Index, Array], None]
"""Is shown an upright window's index and what a network gives for it, (channels, *window), valid for the call alone."""


def unwatched(window: Index, output: Array) -> None:
    """Nobody looks."""


def finish_on_host(
    job: Job, task: Task, core: Array, halos: Sequence[Halo], recorder: Recorder, sharing: Sharing = ALONE
) -> tuple[Array, bool]:
    """See `Pipeline.finish`."""
    block, back = task.block, job.plan.back
    lower = [(h.values, h.box.relative_to(block.core.lo)) for h in sorted(halos, key=lambda h: h.source, reverse=True)]
    shape = core.shape[1:]
    along = shape.index(max(shape))
    finite: list[bool] = []

    def merge(part: slice) -> None:
        mine = core[_at(along, part)]
        for values, box in lower:
            lo, hi = max(part.start, box.lo[along]), min(part.stop, box.hi[along])
            if lo < hi:
                at = (*box.lo[:along], lo - part.start, *box.lo[along + 1 :])
                operations.merge(mine, values[_at(along, slice(lo - box.lo[along], hi - box.lo[along]))], at)
        finite.append(bool(np.isfinite(np.sum(mine))))

    with recorder.span(MERGE):
        sharing.over(shape[along], merge)
    with recorder.span(ACTIVATION):
        if back:
            spans = zip(back, block.write.lo, block.write.hi, block.core.lo, strict=True)
            return job.reduction.on_grid(core, [taps(axis, lo, hi, at) for axis, lo, hi, at in spans]), all(finite)
        out = job.reduction.room(core)
        before = out.ndim - core.ndim
        sharing.over(
            shape[along], lambda part: job.reduction.into(core[_at(along, part)], out[_at(along + before, part)])
        )
        return out, all(finite)


def _at(along: int, part: slice) -> tuple[slice, ...]:
    """That part along a spatial axis of (channels, *space)."""
    return (slice(None),) * (along + 1) + (part,)


@dataclass(frozen=True, slots=True)
class HostPredicted:
    """Sums of one block: (channels out, *task.block.sums.shape) float32."""

    task: Task
    sums: Array

    def inside(self, box: Box) -> Array:
        """The sums in `box`, as a view."""
        view: Array = self.sums[(slice(None), *box.relative_to(self.task.block.sums.lo).slices())]
        return view

    def detached(self) -> HostPredicted:
        return self

    def halos(self) -> Iterator[tuple[Index, Halo]]:
        """The block each halo goes to, and the halo as a view of the sums."""
        for target, box in self.task.halos:
            yield target, Halo(self.task.block.index, box, self.inside(box))


class HostPipeline:
    """See `unet_engine.pipeline.base.Pipeline`."""

    def __init__(
        self, job: Job, networks: Sequence[Backend], tally: Tally, recorder: Recorder, watch: Watch = unwatched
    ) -> None:
        """networks: of the job's model, in its order; watch: is shown what the network gives."""
        self._job, self._networks, self._tally, self._recorder = job, networks, tally, recorder
        self._watch = watch
        self._sharing = Sharing(job.sharing)
        self._memory = Recycler()
        """For sums. Halos get memory of their own from the system: they come in so many sizes, and wait so differently
        long, that gaps between them took a third more memory (measured with 104 classes)."""

    def pin(self, raw: Raw) -> Raw:
        return raw

    def predict(self, work: Work) -> Iterator[HostPredicted]:
        flight = _Flight(self._job, self._networks, self._tally, self._recorder, self._watch)
        for item in work:
            if item is None:
                while flight.entries:
                    yield from flight.pop()
                continue
            task, raw = item
            shape = (self._job.model.blended, *task.block.sums.shape)
            predicted = HostPredicted(task, self._memory.zeros(shape))
            windows = Windows(self._job, task, raw)
            for window, ring, pose in self._calls(task, windows, flight.rings):
                if ring is None:
                    flight.push_empty(predicted, window, added=not windows.is_overwritten(window))
                    continue
                while not ring.ready:
                    yield from flight.pop()
                flight.push(predicted, window, windows, pose, ring)
                if ring.full:
                    ring.launch()
            flight.push_end(predicted)
            while flight.settled or flight.blocks > self._job.plan.memory.under_way:
                yield from flight.pop()
        while flight.entries:
            yield from flight.pop()

    def _calls(
        self, task: Task, windows: Windows, rings: Sequence[_Ring]
    ) -> Iterator[tuple[Index, _Ring | None, Pose]]:
        """The windows of a task in the order in which they are added: for each network all of them, each in all poses.
        One that is skipped comes once, without a network."""
        empty = {window for window in task.windows if windows.is_empty(window)}
        for ring in rings:
            for window in task.windows:
                if window not in empty:
                    yield from ((window, ring, pose) for pose in self._job.poses)
                elif ring is rings[0]:
                    yield window, None, UPRIGHT

    def finish(self, task: Task, core: Array, halos: Sequence[Halo]) -> tuple[Array, bool]:
        return finish_on_host(self._job, task, core, halos, self._recorder, self._sharing)

    def close(self) -> None:
        """Sums go with whoever holds them; the network is another's."""
        self._sharing.close()


class _Ring:
    """The slots of one network, filled in turn."""

    def __init__(self, network: Backend, batch: int, share: float, tally: Tally, recorder: Recorder) -> None:
        self._tally = tally
        self.network, self.share, self._batch, self._recorder = network, share, batch, recorder
        self.waiting = [0] * network.slots
        """Per slot, windows that were put in and not yet added."""
        self.slot = self.place = 0
        self._answered = Answered(network)

    @property
    def ready(self) -> bool:
        """Whether the next window has a place."""
        return self.place > 0 or self.waiting[self.slot] == 0

    @property
    def full(self) -> bool:
        """Whether the slot has all windows of a batch."""
        return self.place == self._batch

    def put(self, windows: Windows, window: Index, pose: Pose) -> tuple[int, int]:
        """Cut a window into the next place. Returns slot and place."""
        where = self.slot, self.place
        with self._recorder.span(GATHER):
            windows.cut(window, self.network.input(self.slot)[self.place], pose)
        self.waiting[self.slot] += 1
        self.place += 1
        return where

    def launch(self) -> None:
        """Start the batch that was put into the slot, if the network was not warmed up with it: its answer is there
        then."""
        if self._answered.knows(self.slot):
            self._tally.ahead = min(self._tally.ahead or self.network.warmed, self.network.warmed)
        else:
            with self._recorder.span(COPY):
                self.network.start(self.slot)
        self.slot, self.place = (self.slot + 1) % self.network.slots, 0

    def result(self, slot: int) -> Array:
        """Wait for a slot; a batch that the end of the work left part empty is started first."""
        if slot == self.slot and self.place:
            self.launch()
        with self._recorder.span(NETWORK):
            return self._answered.result(slot)


@dataclass(frozen=True, slots=True)
class _Cut:
    """One window of one block in one pose, in a ring. `ring` is None where the window is skipped."""

    predicted: HostPredicted
    window: Index
    ring: _Ring | None = None
    slot: int = 0
    place: int = 0
    pose: Pose = UPRIGHT
    added: bool = True


class _Flight:
    """First in, first out: windows in the networks, skipped windows between them, and the ends of blocks."""

    def __init__(self, job: Job, networks: Sequence[Backend], tally: Tally, recorder: Recorder, watch: Watch) -> None:
        self.job, self.tally, self.recorder, self.watch = job, tally, recorder, watch
        self.rings = [_Ring(n, job.setup.batch, s, tally, recorder) for n, s in zip(networks, job.shares, strict=True)]
        self.entries: deque[_Cut | HostPredicted] = deque()
        self.blocks = 0
        self.adding = job.sharing

    @property
    def settled(self) -> bool:
        """Whether the head needs nothing from the device."""
        return bool(self.entries) and (isinstance(self.entries[0], HostPredicted) or self.entries[0].ring is None)

    def push(self, predicted: HostPredicted, window: Index, windows: Windows, pose: Pose, ring: _Ring) -> None:
        self.tally.begin()
        self.entries.append(_Cut(predicted, window, ring, *ring.put(windows, window, pose), pose))

    def push_empty(self, predicted: HostPredicted, window: Index, *, added: bool) -> None:
        """One that is skipped; where all that it gives is overwritten, nothing is added for it."""
        self.entries.append(_Cut(predicted, window, added=added))

    def push_end(self, predicted: HostPredicted) -> None:
        self.entries.append(predicted)
        self.blocks += 1

    def pop(self) -> Iterator[HostPredicted]:
        """Take the head off: add a window (waiting for it), or yield a block that is done."""
        head = self.entries.popleft()
        if isinstance(head, HostPredicted):
            self.blocks -= 1
            with self.recorder.span(ADD):
                divide(self.job, head.sums, head.task.block.sums)
            yield head
            return
        sums, block = head.predicted.sums, head.predicted.task.block
        if head.ring is None:
            self.tally.add(skipped=self.job.plan.calls)
            if not head.added:
                return
            where = placement(self.job, head.window, block.sums)
            with self.recorder.span(ADD):
                constant = np.asarray(self.job.skipped, np.float32)
                operations.add_constant(sums, constant, *where, floor=self.job.floor)
            return
        try:
            values = head.ring.result(head.slot)[head.place]
        except BackendError as error:
            raise BackendError(f"{error} (block {block.index}, window {head.window})") from error
        if head.pose == UPRIGHT:
            self.watch(head.window, values)
        self.tally.add(inferred=1)
        where = placement(self.job, head.window, block.sums, head.ring.share)
        with self.recorder.span(ADD):
            window = head.pose.upright(values.reshape(len(values), *self.job.plan.window_shape))
            operations.add(sums, window, *where, floor=self.job.shared_floor(head.ring.share), threads=self.adding)
        head.ring.waiting[head.slot] -= 1
