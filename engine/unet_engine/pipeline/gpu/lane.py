"""What predicting and finishing share of one device: streams, memory, events, constants, and where the time of its
streams goes."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.backends.device import DeviceBackend
from unet_engine.devices.base import Event, Region
from unet_engine.devices.pinned import Piece, PinnedPool, piece_of
from unet_engine.devices.timeline import NO_MARKS, Marks, Timeline
from unet_engine.errors import BackendError
from unet_engine.pipeline.gpu.buffers import DeviceBuffers, Scratch, SumsSlot
from unet_engine.pipeline.gpu.grid import Constant, Grid, tables_of, three
from unet_engine.pipeline.gpu.image import Image, constants_of
from unet_engine.pipeline.gpu.kept import Kept, KeptMemory
from unet_engine.pipeline.job import Job
from unet_engine.plan.box import Box
from unet_engine.plan.device_memory import (
    FLAG,
    aligned,
    extents,
    grid_depth,
    grid_scratch,
    image_depth,
    image_scratch,
)
from unet_engine.plan.memory import Sizes
from unet_engine.plan.pinned_memory import FINISHED, HALOS, RAW, TABLES, pinned_pieces
from unet_engine.plan.plan import Task
from unet_engine.profiling.recorder import Recorder
from unet_engine.profiling.stages import COPY_BACK, WAITING, Stages
from unet_engine.volumes.base import Volume
from unet_engine.volumes.resampled import Interpolated


class Lane:
    """One device at work for one job. What is allocated here lasts as long as the lane."""

    def __init__(self, job: Job, backends: Sequence[DeviceBackend], volume: Volume, recorder: Recorder) -> None:
        """backends: the networks of the job's model, on one stream. volume: what windows are cut from."""
        self.job, self.backends, self.device, self.stream = job, backends, backends[0].device, backends[0].stream
        self.device.use()
        self.channels_out = job.model.spec.channels_out
        self.largest = extents(job.plan)
        seen = volume if isinstance(volume, Interpolated) and job.resamples_on_device else None
        sizes = Sizes(
            volume.voxel_bytes, 4 * self.channels_out, job.layout.voxel_bytes, readers=job.readers,
            scan=seen.scan.voxel_bytes if seen else 0,
        )  # fmt: skip
        constants = self._constants() | (constants_of(seen) if seen else {})
        scratch = Scratch(
            [] if job.finishes_on_host else grid_scratch(job.plan, self.largest, sizes.sums),
            image_scratch(job.plan, self.largest, sizes.raw) if seen else [],
        )
        size = sum(aligned(v.nbytes) for v in constants.values())
        self.buffers = DeviceBuffers(self.device, self.largest, sizes, size, scratch)
        self.kept = KeptMemory(self.device, job.plan.order, job.shelves)
        self.inward, self.out = self.device.stream("in"), self.device.stream("out")
        # halos cross each other: what comes for one block goes up while what another sends comes down
        self.up, self.down = self.device.stream("up"), self.device.stream("down")
        self.pools = {name: PinnedPool(self.device, name) for name in (RAW, TABLES, HALOS, FINISHED)}
        self._events: deque[Any] = deque()
        self.queueing = threading.Lock()
        """Held while the work of one block is put on the out stream: memory for halos and finished voxels is used by
        one after the other."""
        placed = self._put(constants)
        self.scale, self.shift, self.empty = (self._constant(placed, name) for name in ("scale", "shift", "empty"))
        self.limits = self._constant(placed, "limits") if "limits" in placed else None
        bring = bool(job.plan.back) and not job.finishes_on_host
        depth = grid_depth(job.plan, self.largest, sizes.sums) if bring else 0
        self.grid = Grid(job, placed, self.device, self.out, self.buffers.grid_scratch, depth) if bring else None
        """What brings sums to the grid of the output; None where they are on it, or the host does it."""
        depth = image_depth(job.plan, self.largest, sizes.raw) if seen else 0
        self.image = Image(job.plan, placed, self.device, self.stream, self.buffers, depth) if seen else None
        """What brings a scan to the grid of windows; None where it is on it, or the host does it."""
        pieces = pinned_pieces(job.plan, sizes, self.largest.table_bytes, FLAG, job.shelves)
        for kind, size in pieces:
            self.pools[kind].expect(size)
        self._locking = threading.Thread(target=self._lock, args=(pieces,), name="lock", daemon=True)
        self._locking.start()
        self._recorder = recorder
        streams = {"in": self.inward, "compute": self.stream, "out": self.out, "up": self.up, "down": self.down}
        self._timeline = Timeline(self.device, recorder, streams) if isinstance(recorder, Stages) else None

    def _lock(self, pieces: Sequence[tuple[str, int]]) -> None:
        """Lock what the run will need, ahead of the blocks that take it. Where memory is short, they lock their own."""
        with contextlib.suppress(BackendError):
            self.device.use()
            for kind, size in pieces:
                if not self.pools[kind].lock(size):
                    return
        for pool in self.pools.values():
            pool.expect_no_more()

    def close(self) -> None:
        """Wait for what is under way and give back all memory."""
        self.device.use()
        with contextlib.suppress(BackendError):  # of a device that failed, nothing is to be had but its memory
            self.device.drain()
        for pool in self.pools.values():
            pool.close()
        self._locking.join()
        self.buffers.close()
        self.kept.close()

    def _constants(self) -> dict[str, Array]:
        """Scale and shift per input channel, what a skipped window stands for per output channel; where there are any,
        the limits per input channel and the tables of the output's grid."""
        scaling = self.job.fed
        empty = np.asarray(self.job.skipped, np.float32)
        found = {"scale": np.asarray(scaling.scale), "shift": np.asarray(scaling.shift), "empty": empty}
        if scaling.limits is not None:
            found["limits"] = scaling.limits
        return found if self.job.finishes_on_host else found | tables_of(self.job.plan)

    def _put(self, constants: Mapping[str, Array]) -> dict[str, Constant]:
        """The same kept on the device."""
        piece = self.pools["tables"].take(sum(aligned(v.nbytes) for v in constants.values()))
        placed, start = {}, 0
        for name, values in constants.items():
            piece.array(values.shape, values.dtype.name, start)[...] = values
            size = aligned(values.nbytes)
            placed[name] = Constant(self.buffers.constants.part(start, size), values.shape, values.dtype.name)
            start += size
        self.device.copy(self.inward, self.buffers.constants.part(0, start), piece.region)
        ready = self.event()
        self.device.record(ready, self.inward)
        self.device.synchronize(ready)
        self.give(ready)
        return placed

    def _constant(self, placed: Mapping[str, Constant], name: str) -> Any:
        found = placed[name]
        return self.device.array(found.region, found.shape, found.dtype)

    # --- events ---

    def event(self) -> Any:
        with contextlib.suppress(IndexError):
            return self._events.popleft()
        return self.device.event()

    def give(self, event: Any) -> None:
        self._events.append(event)

    def wait_for(self, event: Any) -> None:
        """Wait on the host, and have the event used again."""
        with self._recorder.span(WAITING):
            self.device.synchronize(event)
        self.give(event)

    def marks(self) -> Marks:
        """For the work of one block; they do nothing where the run is not profiled."""
        return self._timeline.marks() if self._timeline else NO_MARKS

    # --- sums and pinned memory ---

    def sums(self, region: Region, shape: Sequence[int]) -> Any:
        """Float32 sums as the kernels take them: (channels out, z, y, x), without the z that a plane has not."""
        return self.device.array(region, (self.channels_out, *three(shape)), "float32")

    def send(self, slot: SumsSlot, task: Task, done: Event, marks: Marks) -> list[Piece | Kept]:
        """Queue what becomes of the halos of a block, in their order: packed where they are kept on the device, or
        copied to pinned memory where there is no room for them, behind which they are `done`. The slot is free as soon
        as all are packed.

        Call with `queueing` held."""
        source, voxel_bytes = task.block.index, 4 * self.channels_out
        kept = [self.kept.take(source, target, voxel_bytes * box.size) for target, box in task.halos]
        if any(kept):
            marks.begin("out")
            for (_, box), room in zip(task.halos, kept, strict=True):
                if room:
                    self._pack_one(slot, task.block, box, room.region)
            marks.lap("out", COPY_BACK)
        going = [box for (_, box), room in zip(task.halos, kept, strict=True) if not room]
        pieces = iter(self.pack(slot, task.block, going, done, marks))
        return [room or next(pieces) for room in kept]

    def pack(self, slot: SumsSlot, block: Any, boxes: Sequence[Any], done: Event, marks: Marks) -> list[Piece]:
        """Queue the copies of the sums of `block` in `boxes` to pinned memory, packed one behind the other in the
        memory for outgoing halos. After `done` they are there; the slot is free as soon as they are packed.

        Call with `queueing` held."""
        device, packed, start = self.device, [], 0
        if boxes:
            device.wait(self.out, self.buffers.packed_free)
        marks.begin("out")
        for box in boxes:
            packed.append(self.buffers.halos_out.part(start, 4 * self.channels_out * box.size))
            start += packed[-1].size
            self._pack_one(slot, block, box, packed[-1])
        if boxes:
            marks.lap("out", COPY_BACK)
        device.record(slot.free, self.out)
        pieces = [self.pools["halos"].take(region.size) for region in packed]
        self.copy_down([(piece.region, region) for piece, region in zip(pieces, packed, strict=True)], marks)
        device.record(self.buffers.packed_free, self.down)
        device.record(done, self.down)
        return pieces

    def _pack_one(self, slot: SumsSlot, block: Any, box: Any, packed: Region) -> None:
        sums = slot.sums.part(0, 4 * self.channels_out * block.sums.size)
        from_array, to_array = self.sums(sums, block.sums.shape), self.sums(packed, box.shape)
        at = three(box.relative_to(block.sums.lo).lo, 0)
        work = partial(self.device.kernels.pack, from_array, to_array, at)
        self.device.run(self.out, "pack", lambda stream: work(stream=stream), [sums], [packed])

    def copy_down(self, copies: Sequence[tuple[Region, Region]], marks: Marks) -> None:
        """Queue copies to pinned memory, (target, source), behind what was put on the out stream so far."""
        ready = self.event()
        self.device.record(ready, self.out)
        self.device.wait(self.down, ready)
        self.give(ready)  # it may be recorded anew: who waits for it waits for what it was
        if copies:
            marks.begin("down")
            for target, source in copies:
                self.device.copy(self.down, target, source)
            marks.lap("down", COPY_BACK)

    def download(self, task: Task, slot: SumsSlot) -> Array:
        """The sums of the write box on the host: (channels out, *write.shape) float32."""
        self.device.use()
        with self.queueing:
            box, done, marks = task.block.core, self.event(), self.marks()
            (piece,) = self.pack(slot, task.block, [box], done, marks)
        self.wait_for(done)
        marks.read()
        self.device.touch(piece.region, "r")
        return piece.array((self.channels_out, *box.shape), "float32")

    def fetched(self, kept: Kept, box: Box) -> Array:
        """A halo that is kept, on the host: (channels out, *box.shape) float32."""
        self.device.use()
        with self.queueing:
            piece, done, marks = self.pools["halos"].take(kept.region.size), self.event(), self.marks()
            self.copy_down([(piece.region, kept.region)], marks)
            self.device.record(done, self.down)
        self.wait_for(done)
        marks.read()
        self.device.touch(piece.region, "r")
        return piece.array((self.channels_out, *box.shape), "float32")

    def pinned_copy(self, values: Array) -> Piece:
        """The piece that `values` lie in, or a copy of them in one: halos of other workers come in ordinary memory."""
        piece = piece_of(values, self.device)
        if piece is not None and piece.region.size == values.nbytes:
            return piece
        piece = self.pools["halos"].take(values.nbytes)
        self.device.touch(piece.region, "w")
        piece.array(values.shape, "float32")[...] = values
        return piece
