"""A scan brought to the grid of windows on the device: voxels go over once, as they are stored and as they lie in memory,
and are normalised and interpolated there, in passes as `plan/device_grid.py` says. The CPU's bits."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.devices.base import Device, Region, Stream
from unet_engine.devices.pinned import Piece, piece_under
from unet_engine.pipeline.gpu.buffers import DeviceBuffers
from unet_engine.pipeline.gpu.grid import Constant, Passes, Step, Voxels, three
from unet_engine.pipeline.job import Raw
from unet_engine.plan.box import Box
from unet_engine.plan.device_grid import image_passes
from unet_engine.plan.plan import Plan, Task
from unet_engine.stitching.interpolation import taps
from unet_engine.volumes.resampled import Interpolated

HOW = ("scale", "shift", "limits", "pivot")
"""Of normalising, as the kernel `resample` takes it."""


def constants_of(seen: Interpolated) -> dict[str, Array]:
    """What every block uses: per axis of the network's grid what its voxels are made of, for all of them, how they are
    normalised before, and what they are cut off at."""
    found: dict[str, Array] = {}
    for a, axis in enumerate(seen.grid):
        made = taps(axis, 0, axis.target, 0)
        found |= {f"image first {a}": made.first.astype(np.int32), f"image weights {a}": made.weights}
    if seen.before is not None:
        scaling, pivot = seen.before
        found |= {
            "image scale": np.array(scaling.scale, np.float64),
            "image shift": np.array(scaling.shift, np.float64),
        }
        found["image pivot"] = np.array(pivot, np.float32)
        if scaling.limits is not None:
            found["image limits"] = scaling.limits
    if seen.bounds is not None:
        found["image low"], found["image high"] = seen.bounds
    return found


def copied_as_it_lies(voxels: Array, piece: Piece) -> Array:
    """A copy of `voxels` in `piece`, in the order of their own memory, turned and mirrored as they are: copied in one go,
    however they are seen."""
    place = tuple(slice(None, None, -1 if stride < 0 else 1) for stride in voxels.strides)
    upright = voxels[place]
    order = sorted(range(voxels.ndim), key=lambda a: -upright.strides[a])
    stored = upright.transpose(order)
    staged = piece.array(stored.shape, stored.dtype.name)
    staged[...] = stored
    copied: Array = staged.transpose(np.argsort(order))[place]
    return copied


class Image:
    """Puts the passes over a block of a scan on a stream."""

    def __init__(
        self,
        plan: Plan,
        placed: Mapping[str, Constant],
        device: Device,
        stream: Stream,
        buffers: DeviceBuffers,
        depth: int,
    ) -> None:
        """placed: the arrays of `constants_of`, on the device. depth: planes that are made at a time."""
        self._device, self._stream, self._buffers, self._placed = device, stream, buffers, placed
        tables = [(placed[f"image first {a}"], placed[f"image weights {a}"]) for a in range(len(plan.image))]
        missing = (None,) * (3 - len(tables))
        self._passes = Passes(device, image_passes(plan), depth, (*missing, *tables), buffers.image_scratch)

    def queue(self, task: Task, raw: Raw, copied: Region) -> Region:
        """Make what windows are cut from of `raw`, whose bytes are in `copied`: where it will be, (channels, *task.read)
        float32."""
        assert raw.there is not None
        assert self._buffers.image is not None
        channels, made = len(raw.voxels), Box(three(task.read.lo, 0), three(task.read.hi))
        shape = (channels, *made.shape)
        out = Voxels.packed(self._buffers.image.part(0, 4 * prod(shape)), shape)
        scan, along = self._as_it_lies(raw.voxels, copied), self._passes.axes.along
        source = (channels, *three(raw.there.shape))
        for step in self._passes.steps(source, three(raw.there.lo, 0), made):
            to = step.made or out.cut(along - 3, step.lo, step.hi, 4)
            if step.source is None:
                self._pass(step, scan, copied.part(0, raw.voxels.nbytes), to, self._how())
            else:
                self._pass(step, step.source.array(self._device), step.source.region, to, {})
        if "image low" in self._placed:
            self._clip(out, made)
        return out.region

    def _as_it_lies(self, voxels: Array, copied: Region) -> Any:
        """The voxels of a piece of pinned memory where it was copied to, with their own strides."""
        piece = piece_under(voxels, self._device)
        assert piece is not None
        start, item = voxels.ctypes.data - piece.region.address, voxels.itemsize
        missing = 4 - voxels.ndim
        shape = (len(voxels), *(1,) * missing, *voxels.shape[1:])
        strides = [s // item for s in voxels.strides]
        region = copied.part(start, copied.size - start)
        return self._device.array(region, shape, voxels.dtype.name, [strides[0], *(0,) * missing, *strides[1:]])

    def _how(self) -> dict[str, Any]:
        found = {name: self._placed.get(f"image {name}") for name in HOW}
        return {
            name: self._device.array(one.region, one.shape, one.dtype) for name, one in found.items() if one is not None
        }

    def _pass(self, step: Step, source: Any, region: Region, made: Voxels, how: Mapping[str, Any]) -> None:
        tables, to = step.tables, made.array(self._device)

        def work(stream: int) -> None:
            self._device.kernels.resample(source, to, tables.first, tables.weights, tables.begin, **how, stream=stream)

        self._device.run(self._stream, "resample", work, [region, self._buffers.constants], [made.region])

    def _clip(self, out: Voxels, made: Box) -> None:
        ends = [self._planes(self._placed[f"image {name}"], out.shape, made) for name in ("low", "high")]
        voxels = out.array(self._device)

        def work(stream: int) -> None:
            self._device.kernels.clip(voxels, *ends, stream=stream)

        self._device.run(self._stream, "clip", work, [out.region, self._buffers.constants], [out.region])

    def _planes(self, ends: Constant, shape: tuple[int, ...], made: Box) -> Any:
        """Those of the voxels `made`, with their shape."""
        planes = (ends.shape[0], *(1,) * (4 - len(ends.shape)), *ends.shape[1:])
        packed = Voxels.packed(ends.region, planes).strides
        strides = [packed[0], *(s if n > 1 else 0 for s, n in zip(packed[1:], planes[1:], strict=True))]
        start = 4 * sum(l * s for l, s in zip(made.lo, strides[1:], strict=True))
        return self._device.array(ends.region.part(start, ends.region.size - start), shape, "float32", strides)
