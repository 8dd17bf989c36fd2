"""The pipeline of a GPU: windows from raw voxels to finished ones, on the device. The host's bytes.

    host     read, stage       tables              halos, labels
    in            raw + tables --copied-.                                          copies to the device
    compute                             [gather, network, add] per batch --ready-.
    out                                                     pack --.       .-- commit --.
    down                                                           copy halos           copy labels
    up                                                        copy halos --`

The raw block goes over once, in its own type. Windows are cut out of it, normalised and added on the device; what comes
back are finished voxels, and those halos that find no room on the device until their block is committed. The host waits
for a block's halos once, when the windows of the next block are already queued, and for a block's finished voxels once;
never for a window. All device memory is there before the first block.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from unet_engine.backends.base import Array
from unet_engine.backends.device import DeviceBackend
from unet_engine.devices.pinned import Piece, piece_of, piece_under
from unet_engine.devices.timeline import NO_MARKS, Marks
from unet_engine.errors import BackendError
from unet_engine.pipeline.base import BLOCKS_IN_FLIGHT, Work
from unet_engine.pipeline.gpu.buffers import DeviceBuffers, RawSlot, SumsSlot
from unet_engine.pipeline.gpu.finish import Finisher
from unet_engine.pipeline.gpu.image import copied_as_it_lies
from unet_engine.pipeline.gpu.inference import Inference
from unet_engine.pipeline.gpu.kept import Kept
from unet_engine.pipeline.gpu.lane import Lane
from unet_engine.pipeline.gpu.results import DeviceCore, DeviceHalo, DevicePredicted, PinnedHalo
from unet_engine.pipeline.gpu.tables import Calls, Tables, fill_tables
from unet_engine.pipeline.job import Halo, Job, Raw, Tally
from unet_engine.pipeline.windows import Windows
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index, Task
from unet_engine.profiling.recorder import Recorder
from unet_engine.profiling.stages import ADD, COPY, GATHER
from unet_engine.volumes.base import Volume


@dataclass
class _Block:
    """A block whose work is queued."""

    task: Task
    slot: SumsSlot
    halos: list[tuple[Index, Box, Piece | Kept]]
    done: Any
    held: list[Any] = field(default_factory=list)
    """What the device still reads: the staged voxels and tables."""
    inferred: int = 0
    marks: Marks = NO_MARKS


class DevicePipeline:
    """See `unet_engine.pipeline.base.Pipeline`."""

    def __init__(
        self, job: Job, backends: Sequence[DeviceBackend], tally: Tally, volume: Volume, recorder: Recorder
    ) -> None:
        """backends: the networks of the job's model, on one stream. volume: what windows are cut from. recorder: is told
        the time of the streams, too."""
        self.job, self.device, self._tally = job, backends[0].device, tally
        self._lane = Lane(job, backends, volume, recorder)
        self._inference, self._finisher = Inference(self._lane), Finisher(self._lane)

    @property
    def buffers(self) -> DeviceBuffers:
        return self._lane.buffers

    def close(self) -> None:
        """Wait for what is under way and give back all memory."""
        self._lane.close()

    # --- read ---

    def pin(self, raw: Raw) -> Raw:
        """The same voxels in pinned memory, from where they are copied over."""
        self.device.use()
        piece = self._lane.pools["raw voxels"].take(raw.voxels.nbytes)
        self.device.touch(piece.region, "w")
        if raw.there is None:
            staged = piece.array(raw.voxels.shape, raw.voxels.dtype.name)
            staged[...] = raw.voxels
            return Raw(staged, raw.inside)
        return Raw(copied_as_it_lies(raw.voxels, piece), raw.inside, raw.there)

    # --- predict ---

    def predict(self, work: Work) -> Iterator[DevicePredicted]:
        self.device.use()
        queued: deque[_Block] = deque()
        try:
            for item in work:
                if item is not None:
                    queued.append(self._queue(*item))
                while len(queued) > (0 if item is None else BLOCKS_IN_FLIGHT):
                    yield self._finished(queued.popleft())
            while queued:
                yield self._finished(queued.popleft())
        finally:
            for block in queued:  # something failed; what they hold is given back
                self._abandon(block)

    def _abandon(self, block: _Block) -> None:
        with contextlib.suppress(BackendError):
            self.device.synchronize(block.done)
        self.buffers.give_sums(block.slot)

    def _queue(self, task: Task, raw: Raw | None) -> _Block:
        """Put all of one block on the streams."""
        lane, device, stream = self._lane, self.device, self._lane.stream
        slot = self.buffers.take_sums()
        block = _Block(task, slot, [], lane.event(), marks=lane.marks())
        marks = block.marks
        try:
            there, tables, raw = self._send(task, raw, block)
            device.wait(stream, there.copied)
            device.wait(stream, slot.free)
            sums = slot.sums.part(0, 4 * self._lane.channels_out * task.block.sums.size)
            marks.begin("compute")
            self._tally.begin()
            device.zero(stream, sums)
            marks.lap("compute", ADD)
            source = there.raw
            if raw is not None and raw.there is not None and tables.inferred:
                assert lane.image is not None
                source = lane.image.queue(task, raw, there.raw)
                marks.lap("compute", GATHER)
            self._inference.queue(task, raw, there, source, tables, sums, marks)
            device.record(there.free, stream)
            device.record(slot.ready, stream)
            with lane.queueing:
                device.wait(lane.out, slot.ready)
                places = lane.send(slot, task, block.done, marks)
            block.halos = [(*halo, place) for halo, place in zip(task.halos, places, strict=True)]
        except BaseException as error:
            with contextlib.suppress(BackendError):
                device.drain()
            self.buffers.give_sums(slot)
            if isinstance(error, BackendError):
                raise BackendError(f"{error} (block {task.block.index})") from error
            raise
        block.inferred = tables.inferred
        return block

    def _send(self, task: Task, raw: Raw | None, block: _Block) -> tuple[RawSlot, Tables, Raw | None]:
        """Copy the raw voxels and the tables of a block over. Gives where they are, and the voxels as they were copied."""
        lane, device, slot = self._lane, self.device, self.buffers.next_raw()
        piece = self._lane.pools["tables"].take(lane.largest.table_bytes)
        device.touch(piece.region, "w")
        tables = fill_tables(
            self.job.plan,
            task,
            Windows(self.job, task, raw).is_empty,
            self.job.setup.batch,
            device.kernels.MOST_ENTRIES,
            piece.array((piece.region.size,), "uint8"),
            Calls(self.job.poses, self.job.shares),
        )
        device.wait(lane.inward, slot.free)
        block.marks.begin("in")
        device.copy(lane.inward, slot.tables.part(0, tables.size), piece.region.part(0, tables.size))
        block.held.append(piece)
        if raw is not None and tables.inferred:
            find = piece_of if raw.there is None else piece_under
            staged = find(raw.voxels, device)
            if staged is None:
                raw = self.pin(raw)
                staged = find(raw.voxels, device)
            assert staged is not None
            block.held.append(staged)
            device.copy(lane.inward, slot.raw.part(0, staged.region.size), staged.region)
        block.marks.lap("in", COPY)
        device.record(slot.copied, lane.inward)
        return slot, tables, raw

    def _finished(self, block: _Block) -> DevicePredicted:
        """Wait for the halos of a block whose successor is queued."""
        try:
            self._lane.wait_for(block.done)
        except BackendError as error:
            self.buffers.give_sums(block.slot)
            raise BackendError(f"{error} (block {block.task.block.index})") from error
        block.marks.read()
        planned = len(block.task.windows) * self.job.plan.calls
        self._tally.add(inferred=block.inferred, skipped=planned - block.inferred)
        sent = tuple((target, self._halo(block, box, place)) for target, box, place in block.halos)
        core = DeviceCore(self._lane, block.task, block.slot)
        if not block.task.commits:
            core.release()
        return DevicePredicted(block.task, core if block.task.commits else None, sent)

    def _halo(self, block: _Block, box: Box, place: Piece | Kept) -> PinnedHalo | DeviceHalo:
        source, lane = block.task.block.index, self._lane
        if isinstance(place, Kept):
            return DeviceHalo(source, box, lane, place)
        self.device.touch(place.region, "r")
        return PinnedHalo(source, box, place.array((lane.channels_out, *box.shape), "float32"))

    # --- what is left to other threads ---

    def finish(self, task: Task, core: DeviceCore | Array, halos: Sequence[Halo]) -> tuple[Array, bool]:
        """core: where `predict` left it, which is released, or as `DeviceCore.copy` gives it."""
        return self._finisher.finish(task, core, halos)
