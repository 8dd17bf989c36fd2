"""What predicting and finishing share of one device: streams, memory, events, constants, and where the time of its
streams goes."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.backends.device import DeviceBackend
from unet_engine.devices.base import Region
from unet_engine.devices.pinned import Piece, PinnedPool, piece_of
from unet_engine.devices.timeline import NO_MARKS, Marks, Timeline
from unet_engine.errors import BackendError
from unet_engine.pipeline.gpu.buffers import DeviceBuffers, SumsSlot
from unet_engine.pipeline.job import Job
from unet_engine.plan.device_memory import aligned, extents
from unet_engine.plan.memory import Sizes
from unet_engine.plan.plan import Task
from unet_engine.profiling.recorder import Recorder
from unet_engine.profiling.stages import COPY_BACK, WAITING, Stages


class Lane:
    """One device at work for one job. What is allocated here lasts as long as the lane."""

    def __init__(self, job: Job, backends: Sequence[DeviceBackend], voxel_bytes: int, recorder: Recorder) -> None:
        """backends: the networks of the job's model, on one stream. voxel_bytes: of one voxel of the volume, all
        channels together."""
        self.job, self.backends, self.device, self.stream = job, backends, backends[0].device, backends[0].stream
        self.device.use()
        self.channels_out = job.model.spec.channels_out
        self.largest = extents(job.plan)
        sizes = Sizes(voxel_bytes, 4 * self.channels_out, job.layout.voxel_bytes)
        constants = self._constants()
        self.buffers = DeviceBuffers(self.device, self.largest, sizes, sum(aligned(v.nbytes) for v in constants))
        self.inward, self.out = self.device.stream("in"), self.device.stream("out")
        self.pools = {
            name: PinnedPool(self.device, name) for name in ("raw voxels", "tables", "halos", "finished voxels")
        }
        self._events: deque[Any] = deque()
        self.queueing = threading.Lock()
        """Held while the work of one block is put on the out stream: memory for halos and finished voxels is used by
        one after the other."""
        self.scale, self.shift, self.empty, *limits = self._put(constants)
        self.limits = limits[0] if limits else None
        self._recorder = recorder
        streams = {"in": self.inward, "compute": self.stream, "out": self.out}
        self._timeline = Timeline(self.device, recorder, streams) if isinstance(recorder, Stages) else None

    def close(self) -> None:
        """Wait for what is under way and give back all memory."""
        self.device.use()
        with contextlib.suppress(BackendError):  # of a device that failed, nothing is to be had but its memory
            self.device.drain()
        for pool in self.pools.values():
            pool.close()
        self.buffers.close()

    def _constants(self) -> list[Array]:
        """Scale and shift per input channel, what a skipped window stands for per output channel, and where there are
        any the limits per input channel."""
        scaling = self.job.fed
        found = [np.asarray(scaling.scale), np.asarray(scaling.shift), np.asarray(self.job.skipped, np.float32)]
        return found if scaling.limits is None else [*found, scaling.limits]

    def _put(self, constants: Sequence[Array]) -> list[Any]:
        """The same kept on the device."""
        piece = self.pools["tables"].take(sum(aligned(v.nbytes) for v in constants))
        regions, start = [], 0
        for vector in constants:
            piece.array(vector.shape, vector.dtype.name, start)[...] = vector
            size = aligned(vector.nbytes)
            regions.append(self.buffers.constants.part(start, size))
            start += size
        self.device.copy(self.inward, self.buffers.constants.part(0, start), piece.region)
        ready = self.event()
        self.device.record(ready, self.inward)
        self.device.synchronize(ready)
        self.give(ready)
        return [self.device.array(region, v.shape, v.dtype.name) for region, v in zip(regions, constants, strict=True)]

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

    def pack(self, slot: SumsSlot, block: Any, box: Any, start: int, marks: Marks) -> Piece:
        """Queue the copy of the sums of `block` in `box` to pinned memory, packed at byte `start` of the memory for
        outgoing halos.

        Call with `queueing` held."""
        device = self.device
        count = 4 * self.channels_out * box.size
        packed = self.buffers.halos_out.part(start, count)
        piece = self.pools["halos"].take(count)
        sums = slot.sums.part(0, 4 * self.channels_out * block.sums.size)
        from_array, to_array = self.sums(sums, block.sums.shape), self.sums(packed, box.shape)
        at = three(box.relative_to(block.sums.lo).lo, 0)
        device.run(
            self.out,
            "pack",
            lambda stream: device.kernels.pack(from_array, to_array, at, stream=stream),
            [sums],
            [packed],
        )
        device.copy(self.out, piece.region, packed)
        marks.lap("out", COPY_BACK)
        return piece

    def download(self, task: Task, slot: SumsSlot) -> Array:
        """The sums of the write box on the host: (channels out, *write.shape) float32."""
        self.device.use()
        with self.queueing:
            box, done, marks = task.block.core, self.event(), self.marks()
            marks.begin("out")
            piece = self.pack(slot, task.block, box, 0, marks)
            self.device.record(slot.free, self.out)
            self.device.record(done, self.out)
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


def three(values: Sequence[int], first: int = 1) -> tuple[int, ...]:
    """Three values, whether there are two axes or three."""
    return (first,) * (3 - len(values)) + tuple(values)
