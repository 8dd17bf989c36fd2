"""Sums of a block brought to the grid of the output on the device: passes that `plan/device_grid.py` says, from tables
that are there once for all blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.devices.base import Device, Region, Stream
from unet_engine.pipeline.job import Job
from unet_engine.pipeline.reduction import Reduction, Tables
from unet_engine.plan.box import Box
from unet_engine.plan.device_grid import GridPasses, grid_passes
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


@dataclass(frozen=True)
class Step:
    """One pass over some planes."""

    tables: Tables
    source: Voxels | None
    """What the pass before made; None: the first one."""
    made: Voxels | None
    """None: the last one."""
    lo: int
    hi: int
    """The planes."""


@dataclass(frozen=True)
class Passes:
    """Those that bring voxels to another grid, on a device."""

    device: Device
    axes: GridPasses
    depth: int
    """Planes that are made at a time."""
    tables: Sequence[tuple[Constant, Constant] | None]
    """Per axis, on the device; None: along it nothing changes."""
    scratch: Sequence[Region]
    """Between two passes each."""

    def steps(self, source: Sequence[int], begin: Sequence[int], made: Box) -> Iterator[Step]:
        """Over one block. source: (channels, z, y, x) of what there is, which begins at `begin`. made: what is made of it,
        in rows of the tables; three axes."""
        channels, along = source[0], self.axes.along
        for lo in range(0, made.shape[along], self.depth):
            hi = min(made.shape[along], lo + self.depth)
            spans = list(zip(made.lo, made.hi, strict=True))
            spans[along] = made.lo[along] + lo, made.lo[along] + hi
            sizes, before = self.axes.sizes(source[1:], made.shape, hi - lo), None
            for axes, size, scratch in zip(self.axes.axes, sizes, self.scratch, strict=False):
                there = Voxels.packed(scratch.part(0, 4 * channels * prod(size)), (channels, *size))
                yield Step(self._of(axes, spans, begin), before, there, lo, hi)
                before = there
            yield Step(self._of(self.axes.axes[-1], spans, begin), before, None, lo, hi)

    def _of(self, axes: Sequence[int], spans: Sequence[tuple[int, int]], begin: Sequence[int]) -> Tables:
        """Of these axes, for the voxels `spans` of them."""
        first: list[Any] = [None] * 3
        weights: list[Any] = [None] * 3
        for a in axes:
            if table := self.tables[a]:
                first[a], weights[a] = (t.rows(self.device, *spans[a]) for t in table)
        return Tables(first, weights, begin)


class Grid:
    """Puts the passes over the sums of a block on a stream."""

    def __init__(
        self,
        job: Job,
        placed: Mapping[str, Constant],
        device: Device,
        stream: Stream,
        scratch: Sequence[Region],
        depth: int,
    ) -> None:
        """placed: the arrays of `tables_of`, on the device. scratch: between two passes each. depth: planes of the output
        that are made at a time."""
        plan, missing = job.plan, 3 - len(job.plan.back)
        self._device, self._stream, self._reduction = device, stream, job.reduction
        self._dtype = job.layout.dtype
        axes = range(len(plan.back))
        tables = (*[None] * missing, *((placed[f"first {a}"], placed[f"weights {a}"]) for a in axes))
        self._passes = Passes(device, grid_passes(plan), depth, tables, scratch)
        self._origin = plan.roi.lo

    def queue(self, task: Task, core: Voxels, out: Voxels) -> None:
        """core: (channels, z, y, x) float32, as `Reduction.settle_on_device` leaves it. out: what is written, with or
        without channels."""
        write = task.block.write.relative_to(self._origin)
        made, along = Box(three(write.lo, 0), three(write.hi)), self._passes.axes.along
        for step in self._passes.steps(core.shape, three(task.block.core.lo, 0), made):
            source = step.source or core
            if step.made is not None:
                self._pass(step.tables, source, step.made, "float32")
                continue
            last = out.cut(along - 3, step.lo, step.hi, np.dtype(self._dtype).itemsize)
            self._pass(step.tables, source, last, self._dtype, self._reduction)

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


def three(values: Sequence[int], first: int = 1) -> tuple[int, ...]:
    """Three values, whether there are two axes or three."""
    return (first,) * (3 - len(values)) + tuple(values)
