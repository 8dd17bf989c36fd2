"""A block finished: halos that are not on the device go up, all are merged and the values finished in one pass on the
out stream, and those come down. Up and down are streams of their own, as PCIe carries both ways at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.devices.pinned import Piece
from unet_engine.devices.timeline import Marks
from unet_engine.pipeline.gpu.buffers import SumsSlot
from unet_engine.pipeline.gpu.grid import Voxels, three
from unet_engine.pipeline.gpu.kept import Kept
from unet_engine.pipeline.gpu.lane import Lane
from unet_engine.pipeline.gpu.results import DeviceCore, DeviceHalo
from unet_engine.pipeline.host import finish_on_host
from unet_engine.pipeline.job import Halo
from unet_engine.pipeline.reduction import Merging
from unet_engine.plan.device_memory import FLAG
from unet_engine.plan.plan import Task
from unet_engine.profiling.recorder import PLAIN
from unet_engine.profiling.stages import ACTIVATION, COPY, MERGE


class Finisher:
    """Finishes blocks of a lane, from any thread."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def finish(self, task: Task, core: DeviceCore | Array, halos: Sequence[Halo]) -> tuple[Array, bool]:
        """See `unet_engine.pipeline.base.Pipeline.finish`."""
        lane, device = self._lane, self._lane.device
        if lane.job.finishes_on_host:
            return self._on_host(task, core, halos)
        device.use()
        ordered = sorted(halos, key=lambda h: h.source, reverse=True)
        pieces = [self._place(halo) for halo in ordered]
        shape = task.block.write.shape
        out_shape = lane.job.reduction.shape((lane.channels_out, *shape))
        count = FLAG + prod(out_shape) * np.dtype(lane.job.layout.dtype).itemsize
        kept = lane.pinned_copy(core) if isinstance(core, np.ndarray) else None
        back = lane.pools["finished voxels"].take(count)
        # not with the lock held: who gives a slot back may want it
        slot = core.slot if isinstance(core, DeviceCore) else lane.buffers.take_sums()
        assert slot is not None
        done, marks = lane.event(), lane.marks()
        with lane.queueing:
            sums = self._placed(task, slot, kept, marks)
            self._commit(task, sums, list(zip(ordered, pieces, strict=True)), marks)
            device.record(slot.free, lane.out)
            lane.copy_down([(back.region, lane.buffers.out.part(0, count))], marks)
            device.record(lane.buffers.out_free, lane.down)
            device.record(done, lane.down)
            lane.buffers.give_sums(slot)
            if isinstance(core, DeviceCore):
                core.slot = None
            for piece in pieces:
                if isinstance(piece, Kept):
                    piece.release()
        lane.wait_for(done)
        marks.read()
        device.touch(back.region, "r")
        return back.array(out_shape, lane.job.layout.dtype, FLAG), not back.array((1,), "int32")[0]

    def _place(self, halo: Halo) -> Piece | Kept:
        """Where it lies: on this device, or in pinned memory."""
        if isinstance(halo, DeviceHalo) and halo.lane is self._lane:
            return halo.kept
        return self._lane.pinned_copy(halo.values)

    def _on_host(self, task: Task, core: DeviceCore | Array, halos: Sequence[Halo]) -> tuple[Array, bool]:
        """The same where the output is of very many regions: no kernel does that."""
        if isinstance(core, DeviceCore):
            self._lane.device.use()
            held, core = core, core.copy()
            held.release()
        return finish_on_host(self._lane.job, task, core, halos, PLAIN)

    def _placed(self, task: Task, slot: SumsSlot, kept: Piece | None, marks: Marks) -> Voxels:
        """The core of the block in `slot`. `kept`: sums that are yet to go there."""
        lane, box, core = self._lane, task.block.sums, task.block.core
        if kept is None:
            whole = Voxels.packed(
                slot.sums.part(0, 4 * lane.channels_out * box.size), (lane.channels_out, *three(box.shape))
            )
            for a, (lo, size) in enumerate(zip(three(core.relative_to(box.lo).lo, 0), three(core.shape), strict=True)):
                whole = whole.cut(a - 3, lo, lo + size, 4)
            return whole
        region = slot.sums.part(0, kept.region.size)
        lane.device.wait(lane.up, slot.free)
        marks.begin("up")
        lane.device.copy(lane.up, region, kept.region)
        marks.lap("up", COPY)
        return Voxels.packed(region, (lane.channels_out, *three(core.shape)))

    def _commit(self, task: Task, sums: Voxels, halos: list[tuple[Halo, Piece | Kept]], marks: Marks) -> None:
        lane = self._lane
        device, kernels, reduction = lane.device, lane.device.kernels, lane.job.reduction
        merging, used = self._merged(task, sums, halos, marks)
        flag, values = lane.buffers.out.part(0, FLAG), lane.buffers.out.part(FLAG, lane.buffers.out.size - FLAG)
        core = sums.array(device)
        out = Voxels.packed(values, reduction.shape((lane.channels_out, *three(task.block.write.shape))))
        dtype = lane.job.layout.dtype
        if lane.grid is None:
            device.run(
                lane.out, "commit",
                lambda s: reduction.on_device(kernels, core, out.array(device, dtype), merging, s),
                [sums.region, *used], [sums.region, flag, values],
            )  # fmt: skip
            marks.lap("out", ACTIVATION)
        else:
            device.run(
                lane.out, "commit", lambda s: reduction.settle_on_device(kernels, core, merging, s),
                [sums.region, *used], [sums.region, flag],
            )  # fmt: skip
            marks.lap("out", MERGE)
            lane.grid.queue(task, sums, out)
            marks.lap("out", ACTIVATION)
        device.record(lane.buffers.halos_free, lane.out)

    def _merged(
        self, task: Task, sums: Voxels, halos: list[tuple[Halo, Piece | Kept]], marks: Marks
    ) -> tuple[Merging, list[Any]]:
        """Have the halos there, and those added that are more than one commit merges. What that is to merge, and the
        memory it lies in."""
        lane, low = self._lane, task.block.core.lo
        device, kernels, core = lane.device, lane.device.kernels, sums.array(lane.device)
        parts, corners, used, end = [], [], [], 0
        device.wait(lane.up, lane.buffers.halos_free)
        marks.begin("up")
        for halo, piece in halos:
            there = piece.region
            if isinstance(piece, Piece):
                there = lane.buffers.halos_in.part(end, piece.region.size)
                device.copy(lane.up, there, piece.region)
                end += there.size
            parts.append(lane.sums(there, halo.box.shape))
            corners.append(three(halo.box.relative_to(low).lo, 0))
            used.append(there)
        if end:
            marks.lap("up", COPY)
        came = lane.event()
        device.record(came, lane.up)
        device.wait(lane.out, came)
        lane.give(came)
        device.wait(lane.out, lane.buffers.out_free)
        marks.begin("out")
        # far more halos than any plan gives, unless windows overlap by nearly all their length
        while len(parts) > kernels.MOST_HALOS:

            def merge(part: Any, corner: tuple[int, ...], stream: int) -> None:
                kernels.merge(core, part, corner, stream=stream)

            work = partial(merge, parts.pop(0), corners.pop(0))
            device.run(lane.out, "merge", work, [sums.region, used.pop(0)], [sums.region])
            marks.lap("out", MERGE)
        flag = lane.buffers.out.part(0, FLAG)
        device.zero(lane.out, flag)
        nonfinite = device.array(flag.part(0, 4), (1,), "int32")
        return Merging(parts, corners, nonfinite, lane.channels_out), used
