"""The windows of one block on the compute stream: gather, network, add, batch after batch; three launches each and
nothing waited for."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np

from unet_engine.backends.device_tensor import DeviceTensor
from unet_engine.devices.base import Region
from unet_engine.devices.timeline import Marks
from unet_engine.pipeline.gpu.buffers import RawSlot
from unet_engine.pipeline.gpu.grid import three
from unet_engine.pipeline.gpu.lane import Lane
from unet_engine.pipeline.gpu.tables import Batch, Tables
from unet_engine.pipeline.gpu.tables import Piece as Table
from unet_engine.pipeline.job import Raw
from unet_engine.plan.plan import Task
from unet_engine.profiling.stages import ADD, GATHER, NETWORK


class Inference:
    """What puts windows through the network of a lane."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._windows = [(self._in_three_axes(b.input), self._in_three_axes(b.output)) for b in lane.backends]

    def _in_three_axes(self, tensor: DeviceTensor) -> Any:
        """A batch as the kernels take it; axes that the network does not have are of length 1."""
        missing = 5 - len(tensor.shape)
        shape = (*tensor.shape[:2], *(1,) * missing, *tensor.shape[2:])
        strides = (*tensor.strides[:2], *(0,) * missing, *tensor.strides[2:])
        return self._lane.device.array(tensor.region, shape, tensor.dtype, strides)

    def queue(
        self, task: Task, raw: Raw | None, slot: RawSlot, source: Region, tables: Tables, sums: Region, marks: Marks
    ) -> None:
        """Put all windows of a block on the stream: cut from `source` and normalised, inferred, added to `sums`, which
        were cleared."""
        lane = self._lane
        device, stream, kernels = lane.device, lane.stream, lane.device.kernels

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
        held = {} if tables.poses is None else {"poses": on_device(tables.poses)}
        target = lane.sums(sums, task.block.sums.shape)
        source_region, voxels = self._voxels(task, raw, source)
        inputs = [slot.tables, source_region, lane.buffers.constants]

        def add(batch: Batch, stream: int) -> None:
            chosen = some(tables.entries, batch.first, batch.stop)
            every = {"poses": tables.poses, "shares": tables.shares}
            held = {name: some(table, batch.first, batch.stop) for name, table in every.items() if table is not None}
            values = self._windows[batch.network][1]
            where = (spans, chosen, lane.empty, batch.lo, batch.hi)
            kernels.add(target, values, weights, *where, **held, floor=lane.job.floor, stream=stream)

        def gather(batch: Batch, stream: int) -> None:
            order = some(tables.order, batch.at, batch.at + batch.rows)
            how = (lane.scale, lane.shift, 0.0)
            windows = self._windows[batch.network][0]
            kernels.gather(windows, voxels, positions, entries, order, *how, limits=lane.limits, **held, stream=stream)

        for batch in tables.batches:
            backend = lane.backends[batch.network]
            if batch.rows:
                device.run(stream, "gather", partial(gather, batch), inputs, [backend.input.region])
                marks.lap("compute", GATHER)
                device.run(
                    stream, f"{backend.name} network", backend.run, [backend.input.region], [backend.output.region]
                )
                marks.lap("compute", NETWORK)
            read = [slot.tables, sums, lane.buffers.constants, *([backend.output.region] if batch.rows else [])]
            device.run(stream, "add", partial(add, batch), read, [sums])
            marks.lap("compute", ADD)
        if tables.covers:
            over = [on_device(t) for t in tables.covers]
            device.run(
                stream, "divide",
                lambda s: kernels.divide(target, over, lane.job.floor, stream=s), [slot.tables, sums], [sums],
            )  # fmt: skip
            marks.lap("compute", ADD)

    def _voxels(self, task: Task, raw: Raw | None, source: Region) -> tuple[Region, Any]:
        """What windows are cut from: as it was copied over, or as it was made there."""
        if raw is None:
            return source.part(0, 0), None
        shape = (raw.voxels.shape[0], *three(task.read.shape))
        dtype = np.dtype(np.float32) if raw.there is not None else raw.voxels.dtype
        region = source.part(0, prod(shape) * dtype.itemsize)
        return region, self._lane.device.array(region, shape, dtype.name)
