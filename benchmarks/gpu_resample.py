"""Volumes of voxels half as long as the network's, brought to its grid: what share of a run on a GPU is the network, by the
clocks of `gpu_schedule.py`, and the kernel against a copy for `gpu_check.py`.

    python benchmarks/gpu_resample.py

``before``: the threads that read normalise and interpolate, and float32 goes over, as it was until a kernel did. Decoding
is left out. What the kernel takes is taken from the network, as it keeps all processors busy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from gpu_clocks import Feed, shares_of
from gpu_common import device_name, need
from gpu_counts import VOXEL_BYTES, plan_of
from gpu_grid import GridCosts
from gpu_kernels import Arrays, copy_bandwidth
from gpu_schedule import STEADY

from unet_engine.devices.base import Device
from unet_engine.devices.opening import open_device
from unet_engine.plan.resampling import TAPS, AxisResampling, Order
from unet_engine.stitching import reference
from unet_engine.stitching.interpolation import taps

TIMES = 2
"""Voxels of the scan for each of the network's, along each axis."""
ON_HOST: dict[Order, float] = {1: 2 * 64**3 / 0.41e-3, 3: 2 * 32**3 / 0.70e-3}
"""Voxels of one channel that a thread of the host interpolates in a second, by order, as `halo_bench.py` measured it (its
table is in ``docs/performance.md``)."""
ORDERS: dict[str, Order] = {"linear": 1, "cubic": 3}
CHANNELS = (1, 4)
COSTS = GridCosts()


def feed(channels: int, order: Order, costs: GridCosts, *, before: bool) -> Feed:
    """For each voxel of the network's grid. Cubic in three passes: along z, of as many rows and columns as the scan has,
    then y, then x."""
    if before:
        return Feed(4 * channels, channels / ON_HOST[order], 0.0)
    between = (TIMES**2, TIMES) if order == 3 else ()
    loads = TAPS[order] * (sum(between) + 1) if between else TAPS[order] ** 3
    moved = VOXEL_BYTES * TIMES**3 + 4 + 8 * sum(between)
    return Feed(VOXEL_BYTES * TIMES**3 * channels, 0.0, channels * max(moved / costs.memory, loads / costs.loads))


def share(classes: int, channels: int, order: Order, *, before: bool, costs: GridCosts = COSTS) -> float:
    """The network's share of a whole run, once all memory is locked."""
    return shares_of(
        plan_of(classes), classes, replace(STEADY, feed=feed(channels, order, costs, before=before)), costs
    ).whole


def table(costs: GridCosts = COSTS) -> str:
    lines = ["| channels | linear, before | linear | cubic, before | cubic |", "|---|---|---|---|---|"]
    for channels in CHANNELS:
        found = [share(3, channels, o, before=b, costs=costs) for o in ORDERS.values() for b in (True, False)]
        lines.append(f"| {channels} | {' | '.join(f'{one:.2f}' for one in found)} |")
    return "\n".join(lines) + "\n"


# --- the kernel alone ---


class Scene:
    """Voxels of int16 on a device, and what makes voxels twice as long of them, in the passes of the pipeline, here whole
    ones (it takes some planes at a time)."""

    def __init__(self, device: Device, side: int, order: Order) -> None:
        self.device, self.target, self.arrays = device, side, Arrays(device)
        source = TIMES * side
        self.taps = taps(AxisResampling(source, side, order), 0, side, 0)
        self.scan = np.random.default_rng(0).integers(-999, 999, (1, *(source,) * 3)).astype(np.int16)
        self._scan = self.arrays.put(self.scan)
        self._tables = self.arrays.put(self.taps.first.astype(np.int32)), self.arrays.put(self.taps.weights)
        self.scale, self.shift, self.pivot = 0.01, 3.0, np.float32(-0.03)
        self._how = {
            "scale": self.arrays.put(np.array([self.scale])), "shift": self.arrays.put(np.array([self.shift])),
            "pivot": self.arrays.put(np.array([self.pivot])),
        }  # fmt: skip
        shapes = [(1, side, source, source), (1, side, side, source)] if order == 3 else []
        self._between = [self.arrays.empty(shape, "float32") for shape in shapes]
        self.moved = self.scan.nbytes + 4 * side**3 + 8 * sum(prod(shape) for shape in shapes)
        """Bytes of the scan, of what is made, and of what lies between two passes, which is written and read."""

    def make(self, out: Any, stream: int) -> None:
        resample, source, how = self.device.kernels.resample, self._scan, self._how
        for a, scratch in enumerate(self._between):
            resample(source, scratch, *self._along({a}), [0] * 3, **how, stream=stream)
            source, how = scratch, {}
        resample(source, out, *self._along(set(range(len(self._between), 3))), [0] * 3, **how, stream=stream)

    def _along(self, axes: set[int]) -> list[list[Any]]:
        return [[table if a in axes else None for a in range(3)] for table in self._tables]

    def expected(self) -> np.ndarray:
        normal = (self.scan.astype(np.float32) - np.float32(self.shift)) * np.float32(self.scale) - self.pivot
        made = np.empty((1, *(self.target,) * 3), np.float32)
        reference.interpolate(made, normal, [self.taps] * 3)
        return made


def same(device: Device, order: Order) -> bool:
    """Whether the device's voxels are the host's."""
    scene = Scene(device, 10, order)
    wanted = scene.expected()
    number, out = scene.arrays.count, scene.arrays.put(np.zeros_like(wanted))
    scene.arrays.run(lambda stream: scene.make(out, stream))
    held = scene.arrays.get(number).tobytes() == wanted.tobytes()
    scene.arrays.close()
    return held


def resample(args: argparse.Namespace) -> Iterator[tuple[str, float | str]]:
    """A scan brought to half the resolution, linear and cubic, against a copy on the device."""
    need("resample", args)
    is_small = args.quick or args.simulate
    device, side, at_least = open_device(device_name(args)), 8 if args.simulate else 128, 0.02 if is_small else 0.3
    for name, order in ORDERS.items():
        if not same(device, order):
            raise RuntimeError(f"{name}: other bits than the host's")
    yield "voxels of a scan on a coarser grid", "the host's bits"
    copied = copy_bandwidth(device, 2**20 if args.simulate else 2**30, at_least)
    yield "copy on the device, GB/s", copied / 1e9
    for name, order in ORDERS.items():
        scene = Scene(device, side, order)
        out = scene.arrays.empty((1, *(side,) * 3), "float32")
        seconds = scene.arrays.seconds(lambda stream, s=scene, o=out: s.make(o, stream), at_least)
        yield f"{name}: voxels of the network's grid per second, 1e9", side**3 / seconds / 1e9
        yield f"{name}: share of the copy's bandwidth", scene.moved / seconds / copied
        scene.arrays.close()


if __name__ == "__main__":
    print(table())
