"""Windows on a GPU from raw voxels to finished ones: what `unet_engine.predict` and `Worker.commit` do on a CPU, with the same bytes.

    host     read, stage       tables              halos, labels
    in            raw + tables --copied-.                                          copies to the device
    compute                             [gather, network, add] per batch --ready-.
    out                                                     pack, copy halos; copy halos, commit, copy labels

The raw block goes over once, in its own type. Windows are cut out of it, normalised and added on the device; what comes back are halos and
finished voxels. The host waits for a block's halos once, when the windows of the next block are already queued, and for a block's finished
voxels once; never for a window. All device memory is there before the first block.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np

from unet_engine.backends import DeviceBackend
from unet_engine.backends.device import DeviceTensor
from unet_engine.box import Box
from unet_engine.device_buffers import DeviceBuffers, RawSlot, SumsSlot
from unet_engine.device_plan import FLAG, aligned, extents
from unet_engine.device_results import DeviceCore, DevicePredicted, PinnedHalo
from unet_engine.device_tables import Batch, Tables, fill_tables
from unet_engine.device_tables import Piece as Table
from unet_engine.devices import Region
from unet_engine.errors import BackendError
from unet_engine.job import Array, Halo, Job, Raw, Tally
from unet_engine.layout import Sizes
from unet_engine.pinned import Piece, PinnedPool, piece_of
from unet_engine.plan import Index, Task

BLOCKS_IN_FLIGHT = 1
"""Blocks whose windows may be on the device while the next block is queued."""
MOST_ENTRIES = 8192
MOST_HALOS = 32
"""What one kernel takes: see ``launch.hpp`` and ``kernels.hpp``."""


@dataclass
class _Block:
    """A block whose work is queued."""

    task: Task
    slot: SumsSlot
    halos: list[tuple[Index, Box, Piece]]
    done: Any
    held: list[Any] = field(default_factory=list)
    """What the device still reads: the staged voxels and tables."""
    inferred: int = 0


class DevicePipeline:
    """Predicts and commits blocks of one job on one device. `predict` runs on one thread; `stage` and `finish` may run on others."""

    def __init__(self, job: Job, backend: DeviceBackend, tally: Tally, voxel_bytes: int) -> None:
        """voxel_bytes: of one voxel of the volume, all channels together."""
        self.job, self.backend, self.device, self._tally = job, backend, backend.device, tally
        self.device.use()
        self._channels_out = job.model.spec.channels_out
        self._largest = extents(job.plan)
        sizes = Sizes(voxel_bytes, 4 * self._channels_out, job.layout.voxel_bytes)
        channels = job.model.spec.channels_in
        self._constant_bytes = (aligned(8 * channels), aligned(8 * channels), aligned(4 * self._channels_out))
        self.buffers = DeviceBuffers(self.device, self._largest, sizes, sum(self._constant_bytes))
        self._in, self._out = self.device.stream("in"), self.device.stream("out")
        self._pools = {
            name: PinnedPool(self.device, name) for name in ("raw voxels", "tables", "halos", "finished voxels")
        }
        self._events: deque[Any] = deque()
        self._committing, self._packing = threading.Lock(), threading.Lock()
        self._constants = self._put_constants(channels)
        self._windows = self._in_three_axes(backend.input), self._in_three_axes(backend.output)

    def close(self) -> None:
        """Wait for what is under way and give back all memory."""
        self.device.use()
        with contextlib.suppress(BackendError):  # of a device that failed, nothing is to be had but its memory
            self.device.drain()
        for pool in self._pools.values():
            pool.close()
        self.buffers.close()

    def _in_three_axes(self, tensor: DeviceTensor) -> Any:
        """A batch as the kernels take it; axes that the network does not have are of length 1."""
        missing = 5 - len(tensor.shape)
        shape = (*tensor.shape[:2], *(1,) * missing, *tensor.shape[2:])
        strides = (*tensor.strides[:2], *(0,) * missing, *tensor.strides[2:])
        return self.device.array(tensor.region, shape, tensor.dtype, strides)

    def _put_constants(self, channels: int) -> list[Any]:
        """Scale and shift per input channel, and what a skipped window stands for per output channel; kept on the device."""
        empty = self.job.model.spec.empty or (0.0,) * self._channels_out
        vectors = [
            np.asarray(self.job.scaling.scale),
            np.asarray(self.job.scaling.shift),
            np.asarray(empty, np.float32),
        ]
        piece = self._pools["tables"].take(sum(self._constant_bytes))
        regions, start = [], 0
        for vector, size in zip(vectors, self._constant_bytes, strict=True):
            piece.array(vector.shape, vector.dtype.name, start)[...] = vector
            regions.append(self.buffers.constants.part(start, size))
            start += size
        self.device.copy(self._in, self.buffers.constants.part(0, start), piece.region)
        ready = self._event()
        self.device.record(ready, self._in)
        self.device.synchronize(ready)
        self._give(ready)
        return [self.device.array(region, v.shape, v.dtype.name) for region, v in zip(regions, vectors, strict=True)]

    def _event(self) -> Any:
        with contextlib.suppress(IndexError):
            return self._events.popleft()
        return self.device.event()

    def _give(self, event: Any) -> None:
        self._events.append(event)

    # --- read ---

    def stage(self, raw: Raw) -> Raw:
        """The same voxels in pinned memory, from where they are copied over; called by whoever reads, off the device's thread."""
        self.device.use()
        piece = self._pools["raw voxels"].take(raw.voxels.nbytes)
        self.device.touch(piece.region, "w")
        staged = piece.array(raw.voxels.shape, raw.voxels.dtype.name)
        staged[...] = raw.voxels
        return Raw(staged, raw.mask)

    # --- predict ---

    def predict(
        self,
        work: Iterable[tuple[Task, Raw | None] | None],
        skipping: Callable[[Task, Raw | None], Callable[[Index], bool]],
    ) -> Iterator[DevicePredicted]:
        """As `unet_engine.predict.predict`. `skipping` gives for a task the test of which windows are left out.

        Raises `BackendError` naming the block where the network or the device fails.
        """
        self.device.use()
        queued: deque[_Block] = deque()
        try:
            for item in work:
                if item is not None:
                    queued.append(self._queue(*item, skipping(*item)))
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

    def _queue(self, task: Task, raw: Raw | None, is_empty: Callable[[Index], bool]) -> _Block:
        """Put all of one block on the streams."""
        device, stream = self.device, self.backend.stream
        slot = self.buffers.take_sums()
        block = _Block(task, slot, [], self._event())
        try:
            there, tables = self._send(task, raw, is_empty, block)
            device.wait(stream, there.copied)
            device.wait(stream, slot.free)
            sums = slot.sums.part(0, 4 * self._channels_out * task.block.sums.size)
            device.zero(stream, sums)
            self._infer(task, raw, there, tables, sums)
            device.record(there.free, stream)
            device.record(slot.ready, stream)
            device.wait(self._out, slot.ready)
            for target, box in task.halos:
                block.halos.append(
                    (target, box, self._download(task, slot, box, sum(p.region.size for *_, p in block.halos)))
                )
            device.record(slot.free, self._out)
            device.record(block.done, self._out)
        except BaseException as error:
            with contextlib.suppress(BackendError):
                device.drain()
            self.buffers.give_sums(slot)
            if isinstance(error, BackendError):
                raise BackendError(f"{error} (block {task.block.index})") from error
            raise
        block.inferred = tables.inferred
        return block

    def _send(
        self, task: Task, raw: Raw | None, is_empty: Callable[[Index], bool], block: _Block
    ) -> tuple[RawSlot, Tables]:
        """Copy the raw voxels and the tables of a block over."""
        device, slot = self.device, self.buffers.next_raw()
        piece = self._pools["tables"].take(self._largest.table_bytes)
        device.touch(piece.region, "w")
        tables = fill_tables(
            self.job.plan,
            task,
            is_empty,
            self.job.setup.batch,
            MOST_ENTRIES,
            piece.array((piece.region.size,), "uint8"),
        )
        device.wait(self._in, slot.free)
        device.copy(self._in, slot.tables.part(0, tables.size), piece.region.part(0, tables.size))
        block.held.append(piece)
        if raw is not None and tables.inferred:
            staged = piece_of(raw.voxels, device) or piece_of(self.stage(raw).voxels, device)
            assert staged is not None
            block.held.append(staged)
            device.copy(self._in, slot.raw.part(0, staged.region.size), staged.region)
        device.record(slot.copied, self._in)
        return slot, tables

    def _infer(self, task: Task, raw: Raw | None, slot: RawSlot, tables: Tables, sums: Region) -> None:
        device, backend, stream, kernels = self.device, self.backend, self.backend.stream, self.device.kernels
        windows, values = self._windows

        def on_device(table: Table) -> Any:
            return device.array(slot.tables.part(table.start, table.size), table.shape, table.dtype)

        def some(table: Table, first: int, stop: int) -> Any:
            row = prod(table.shape[1:]) * np.dtype(table.dtype).itemsize
            shape = (stop - first, *table.shape[1:])
            return device.array(slot.tables.part(table.start + first * row, (stop - first) * row), shape, table.dtype)

        spans, weights, positions = (
            [on_device(t) for t in group] for group in (tables.spans, tables.weights, tables.positions)
        )
        entries = on_device(tables.entries)
        scale, shift, empty = self._constants
        target = device.array(sums, (self._channels_out, *_3(task.block.sums.shape)), "float32")
        source_region, source = self._source(raw, slot)
        inputs = [slot.tables, source_region, self.buffers.constants]
        network = _name(backend)

        def add(batch: Batch, stream: int) -> None:
            chosen = some(tables.entries, batch.first, batch.stop)
            kernels.add(target, values, weights, spans, chosen, empty, batch.lo, batch.hi, stream=stream)

        def gather(batch: Batch, stream: int) -> None:
            order = some(tables.order, batch.at, batch.at + batch.rows)
            kernels.gather(windows, source, positions, entries, order, scale, shift, 0.0, stream=stream)

        for batch in tables.batches:
            if batch.rows:
                device.run(stream, "gather", partial(gather, batch), inputs, [backend.input.region])
                device.run(stream, network, backend.run, [backend.input.region], [backend.output.region])
            read = [slot.tables, sums, self.buffers.constants, *([backend.output.region] if batch.rows else [])]
            device.run(stream, "add", partial(add, batch), read, [sums])

    def _source(self, raw: Raw | None, slot: RawSlot) -> tuple[Region, Any]:
        if raw is None:
            return slot.raw.part(0, 0), None
        region = slot.raw.part(0, raw.voxels.nbytes)
        shape = (raw.voxels.shape[0], *_3(raw.voxels.shape[1:]))
        return region, self.device.array(region, shape, raw.voxels.dtype.name)

    def _finished(self, block: _Block) -> DevicePredicted:
        """Wait for the halos of a block whose successor is queued."""
        try:
            self.device.synchronize(block.done)
        except BackendError as error:
            self.buffers.give_sums(block.slot)
            raise BackendError(f"{error} (block {block.task.block.index})") from error
        self._give(block.done)
        self._tally.add(inferred=block.inferred, skipped=len(block.task.windows) - block.inferred)
        source, sent = block.task.block.index, []
        for target, box, piece in block.halos:
            self.device.touch(piece.region, "r")
            sent.append((target, PinnedHalo(source, box, piece.array((self._channels_out, *box.shape), "float32"))))
        core = DeviceCore(self, block.task, block.slot)
        if not block.task.commits:
            core.release()
        return DevicePredicted(block.task, core if block.task.commits else None, tuple(sent))

    # --- sums to the host ---

    def _download(self, task: Task, slot: SumsSlot, box: Box, start: int) -> Piece:
        """Queue the copy of the sums in `box` to pinned memory, packed at byte `start` of the memory for outgoing halos."""
        device, lo = self.device, task.block.sums.lo
        count = 4 * self._channels_out * box.size
        packed = self.buffers.halos_out.part(start, count)
        piece = self._pools["halos"].take(count)
        sums = slot.sums.part(0, 4 * self._channels_out * task.block.sums.size)
        from_array = device.array(sums, (self._channels_out, *_3(task.block.sums.shape)), "float32")
        to_array = device.array(packed, (self._channels_out, *_3(box.shape)), "float32")
        at = _3(box.relative_to(lo).lo, 0)
        with self._packing:  # nothing else may be packed there before it was copied away
            device.run(
                self._out,
                "pack",
                lambda stream: device.kernels.pack(from_array, to_array, at, stream=stream),
                [sums],
                [packed],
            )
            device.copy(self._out, piece.region, packed)
        return piece

    def download(self, task: Task, slot: SumsSlot) -> Array:
        """The sums of the write box on the host."""
        self.device.use()
        with self._committing:
            box, done = task.block.write, self._event()
            piece = self._download(task, slot, box, 0)
            self.device.record(slot.free, self._out)
            self.device.record(done, self._out)
        self.device.synchronize(done)
        self._give(done)
        self.device.touch(piece.region, "r")
        return piece.array((self._channels_out, *box.shape), "float32")

    # --- commit ---

    def finish(self, task: Task, core: DeviceCore | Array, halos: Sequence[Halo]) -> tuple[Array, bool]:
        """Merge `halos`, in descending order of their blocks, and finish the write box: the voxels to be written, and whether all sums
        were finite. A core on the device is released.

        core: where `predict` left it, or as `DeviceCore.copy` gives it.
        """
        self.device.use()
        ordered = sorted(halos, key=lambda h: h.source, reverse=True)
        pieces = [self._pinned_copy(halo.values) for halo in ordered]
        shape = task.block.write.shape
        out_shape = shape if self.job.kind == "labels" else (self._channels_out, *shape)
        count = FLAG + prod(out_shape) * np.dtype(self.job.layout.dtype).itemsize
        kept = self._pinned_copy(core) if isinstance(core, np.ndarray) else None
        back = self._pools["finished voxels"].take(count)
        done = self._event()
        with self._committing:  # one after the other: they share the memory for incoming halos and finished voxels
            slot, sums, at = self._placed(task, core, kept)
            self._commit(task, sums, at, list(zip(ordered, pieces, strict=True)), out_shape)
            self.device.record(slot.free, self._out)
            self.device.copy(self._out, back.region, self.buffers.out.part(0, count))
            self.device.record(done, self._out)
            self.buffers.give_sums(slot)
            if isinstance(core, DeviceCore):
                core.slot = None
        self.device.synchronize(done)
        self._give(done)
        self.device.touch(back.region, "r")
        return back.array(out_shape, self.job.layout.dtype, FLAG), not back.array((1,), "int32")[0]

    def _placed(
        self, task: Task, core: DeviceCore | Array, kept: Piece | None
    ) -> tuple[SumsSlot, Any, tuple[int, ...]]:
        """The slot of the core's sums, those as an array region with its shape, and where the write box begins in them."""
        if isinstance(core, DeviceCore):
            assert core.slot is not None
            box = task.block.sums
            return (
                core.slot,
                (core.slot.sums.part(0, 4 * self._channels_out * box.size), box.shape),
                task.block.write.relative_to(box.lo).lo,
            )
        assert kept is not None
        slot = self.buffers.take_sums()
        region = slot.sums.part(0, kept.region.size)
        self.device.wait(self._out, slot.free)
        self.device.copy(self._out, region, kept.region)
        return slot, (region, task.block.write.shape), (0,) * len(task.block.write.shape)

    def _commit(
        self, task: Task, sums: Any, at: tuple[int, ...], halos: list[tuple[Halo, Piece]], out_shape: tuple[int, ...]
    ) -> None:
        device, kernels, write = self.device, self.device.kernels, task.block.write
        region, shape = sums
        shape3, write3, k = _3(shape), _3(write.shape), self._channels_out
        strides = (prod(shape3), shape3[1] * shape3[2], shape3[2], 1)
        start = 4 * sum(a * s for a, s in zip(_3(at, 0), strides[1:], strict=True))
        core = device.array(region.part(start, region.size - start), (k, *write3), "float32", strides)
        parts, corners, used, end = [], [], [], 0
        for halo, piece in halos:
            there = self.buffers.halos_in.part(end, piece.region.size)
            device.copy(self._out, there, piece.region)
            parts.append(device.array(there, (k, *_3(halo.box.shape)), "float32"))
            corners.append(_3(halo.box.relative_to(write.lo).lo, 0))
            used.append(there)
            end += piece.region.size
        # far more halos than any plan gives, unless windows overlap by nearly all their length
        while len(parts) > MOST_HALOS:

            def merge(part: Any, corner: tuple[int, ...], stream: int) -> None:
                kernels.merge(core, part, corner, stream=stream)

            work = partial(merge, parts.pop(0), corners.pop(0))
            device.run(self._out, "merge", work, [region, used.pop(0)], [region])
        flag, values = self.buffers.out.part(0, FLAG), self.buffers.out.part(FLAG, self.buffers.out.size - FLAG)
        device.zero(self._out, flag)
        out_3 = _3(write.shape) if self.job.kind == "labels" else (k, *write3)
        out = device.array(values, out_3, self.job.layout.dtype)
        nonfinite = device.array(flag.part(0, 4), (1,), "int32")
        kind, activation = self.job.kind, self.job.model.spec.activation
        device.run(
            self._out, "commit",
            lambda s: kernels.commit(core, out, kind, activation, parts, corners, nonfinite, stream=s),
            [region, *used], [region, flag, values],
        )  # fmt: skip

    def _pinned_copy(self, values: Array) -> Piece:
        """The piece that `values` lie in, or a copy of them in one: halos of other workers come in ordinary memory."""
        piece = piece_of(values, self.device)
        if piece is not None and piece.region.size == values.nbytes:
            return piece
        piece = self._pools["halos"].take(values.nbytes)
        self.device.touch(piece.region, "w")
        piece.array(values.shape, "float32")[...] = values
        return piece


def _3(values: Sequence[int], first: int = 1) -> tuple[int, ...]:
    """Three values, whether there are two axes or three."""
    return (first,) * (3 - len(values)) + tuple(values)


def _name(backend: DeviceBackend) -> str:
    return f"{backend.name} network"
