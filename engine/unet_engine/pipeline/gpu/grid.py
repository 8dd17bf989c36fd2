"""Sums of a block brought to the grid of the output on the device: passes that `plan/device_grid.py` says, from tables
that are there once for all blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.devices.base import Device, Region, Stream
from unet_engine.pipeline.job import Job
from unet_engine.pipeline.reduction import Reduction, Tables
from unet_engine.plan.device_grid import grid_passes
from unet_engine.plan.plan import Plan, Task
from unet_engine.stitching.interpolation import taps


@dataclass(frozen=True)
class Constant:
    """An array that every block uses, on the device."""

    region: Region
    shape: tuple[int, ...]
    dtype: str

    def rows(self, device: Device, lo: int, hi: int) -> Any:
        """Those from `lo` to `hi`."""
        row = prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        return device.array(self.region.part(lo * row, (hi - lo) * row), (hi - lo, *self.shape[1:]), self.dtype)


@dataclass(frozen=True)
class Voxels:
    """Channels of voxels along three axes, in memory of the device; strides in elements."""

    region: Region
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def packed(cls, region: Region, shape: Sequence[int]) -> Voxels:
        """Without gaps."""
        return cls(region, tuple(shape), tuple(prod(shape[a + 1 :]) for a in range(len(shape))))

    def array(self, device: Device, dtype: str = "float32") -> Any:
        return device.array(self.region, self.shape, dtype, self.strides)

    def cut(self, axis: int, lo: int, hi: int, item: int) -> Voxels:
        """Those from `lo` to `hi` along an axis, counted from the last one (-1). item: bytes of an element."""
        start = lo * self.strides[axis] * item
        shape = list(self.shape)
        shape[axis] = hi - lo
        return Voxels(self.region.part(start, self.region.size - start), tuple(shape), self.strides)


def tables_of(plan: Plan) -> dict[str, Array]:
    """Per axis of the output what its voxels are made of, for all that are written: which sum is the first, counted from
    that of the whole volume, and the weights. Nothing where the output is on the grid of windows."""
    found: dict[str, Array] = {}
    for a, (axis, lo, hi) in enumerate(zip(plan.back, plan.roi.lo, plan.roi.hi, strict=True) if plan.back else ()):
        made = taps(axis, lo, hi, 0)
        found |= {f"first {a}": made.first.astype(np.int32), f"weights {a}": made.weights}
    return found


class Grid:
    """Puts the passes over a block on a stream."""

    def __init__(
        self, job: Job, placed: Mapping[str, Constant], device: Device, stream: Stream, scratch: Sequence[Region]
    ) -> None:
        """placed: the arrays of `tables_of`, on the device. scratch: between two passes each."""
        plan, missing = job.plan, 3 - len(job.plan.back)
        self._device, self._stream, self._scratch = device, stream, scratch
        self._passes, self._reduction = grid_passes(plan), job.reduction
        self._dtype = job.layout.dtype
        axes = range(len(plan.back))
        self._tables = (*[None] * missing, *((placed[f"first {a}"], placed[f"weights {a}"]) for a in axes))
        self._begin = (0,) * missing + plan.roi.lo

    def queue(self, task: Task, core: Voxels, out: Voxels) -> None:
        """core: (channels, z, y, x) float32, as `Reduction.settle_on_device` leaves it. out: what is written, with or
        without channels."""
        passes, channels, write = self._passes, core.shape[0], out.shape[-3:]
        along, item = passes.along, np.dtype(self._dtype).itemsize
        begin = [w - b for w, b in zip(three(task.block.write.lo, 0), self._begin, strict=True)]
        depth = passes.depth(core.shape[1:], write, 4 * channels)
        for lo in range(0, write[along], depth):
            hi = min(write[along], lo + depth)
            spans = [(b, b + n) for b, n in zip(begin, write, strict=True)]
            spans[along] = begin[along] + lo, begin[along] + hi
            source = core
            sizes = passes.sizes(core.shape[1:], write, hi - lo)
            for axes, size, scratch in zip(passes.axes, sizes, self._scratch, strict=False):
                made = Voxels.packed(scratch.part(0, 4 * channels * prod(size)), (channels, *size))
                self._pass(self._tables_of(axes, spans, task), source, made, "float32")
                source = made
            last = out.cut(along - 3, lo, hi, item)
            self._pass(self._tables_of(passes.axes[-1], spans, task), source, last, self._dtype, self._reduction)

    def _pass(self, tables: Tables, source: Voxels, made: Voxels, dtype: str, finish: Reduction | None = None) -> None:
        """Interpolate along some axes and, where `finish` says how, finish."""
        kernels, given = self._device.kernels, source.array(self._device)
        to = made.array(self._device, dtype)

        def work(stream: int) -> None:
            if finish is None:
                how = tables.first, tables.weights, tables.begin, "logits", "none"
                kernels.interpolate(given, to, *how, stream=stream)
            else:
                finish.on_grid_on_device(kernels, given, to, tables, source.shape[0], stream)

        self._device.run(self._stream, "interpolate", work, [source.region], [made.region])

    def _tables_of(self, axes: Sequence[int], spans: Sequence[tuple[int, int]], task: Task) -> Tables:
        """Of these axes, for the voxels `spans` of them."""
        first: list[Any] = [None] * 3
        weights: list[Any] = [None] * 3
        for a in axes:
            if table := self._tables[a]:
                first[a], weights[a] = (t.rows(self._device, *spans[a]) for t in table)
        return Tables(first, weights, three(task.block.core.lo, 0))


def three(values: Sequence[int], first: int = 1) -> tuple[int, ...]:
    """Three values, whether there are two axes or three."""
    return (first,) * (3 - len(values)) + tuple(values)
