"""Outputs on the scan's grid, of voxels half as long as the network's: what share of a run on a GPU is the network, by the
clocks of `gpu_schedule.py`, and the kernels against a copy for `gpu_check.py`.

    python benchmarks/gpu_grid.py

``before``: the sums of a block come down and a thread of the host merges halos and interpolates, as it was until kernels
did. What interpolating takes of the device is taken from the network, as it keeps all processors busy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from gpu_clocks import Came, Clocks, Costs, shares_of
from gpu_common import device_name, need
from gpu_counts import CLASSES, SHAPE, plan_of
from gpu_kernels import Arrays, copy_bandwidth
from gpu_schedule import STEADY, STEADY_THROUGH_HOST

from unet_engine.devices.base import Device
from unet_engine.devices.opening import open_device
from unet_engine.plan.box import Box
from unet_engine.plan.device_grid import MOST_TAPS, grid_passes
from unet_engine.plan.plan import Plan, Task
from unet_engine.plan.resampling import AxisResampling, Order
from unet_engine.plan.sizing import default_chunk
from unet_engine.stitching import reference
from unet_engine.stitching.interpolation import taps

TIMES = 2
"""Voxels of the scan for each of the network's, along each axis."""


@dataclass(frozen=True)
class GridCosts(Costs):
    on_host: float = 2 * 64**3 / 0.41e-3
    """Voxels of one class that a thread of the host interpolates linearly in a second, as `halo_bench.py` measured it (its
    table is in ``docs/performance.md``)."""
    loads: float = 132 * 32 * 1.755e9 / 2
    """Sums that the device's processors load in a second: half of what those of an H200 can (132, 32 a clock, 1.755 GHz)."""


def finer(plan: Plan, order: Order = 1) -> Plan:
    """The plan with its output on a grid of `TIMES` as many voxels along each axis."""
    back = tuple(AxisResampling(n, TIMES * n, order) for n in SHAPE)
    roi = Box.of_shape(tuple(axis.target for axis in back))
    return replace(plan, back=back, roi=roi, chunk=default_chunk(plan.axes, plan.block, back))


def loads(plan: Plan) -> float:
    """Sums that are loaded for a voxel and class: of passes that make fewer voxels, as a part."""
    passes, made, done = grid_passes(plan), 0.0, 0
    counts = [axis.taps for axis in plan.back]
    for axes in passes.axes:
        done += len(axes)
        made += prod(counts[a] for a in axes) / TIMES ** (len(counts) - done)
    return made


def on_host(
    of: tuple[Task, float, float], came: Came, classes: int, clocks: Clocks, ways: tuple[str, str],
    free: dict[str, float], costs: Any,
) -> float:  # fmt: skip
    """The sums come down; the thread that writes adds halos and interpolates."""
    task, packed, done = of
    clocks.at["host"] = max(clocks.at["host"], done)
    core, written = task.block.core.size, task.block.write.size
    packed = clocks.do("out", 8 * core * classes / costs.memory, max(clocks.at["write"], packed), free["packed"])
    free["packed"] = clocks.do(ways[1], 4 * core * classes / costs.wire, packed)
    clocks.at["write"] = free["packed"] + written * classes / costs.on_host + written / costs.write
    return packed


def on_device(each: float) -> Any:
    """What is done where kernels do it. each: loads for a voxel and class."""

    def finish(
        of: tuple[Task, float, float], came: Came, classes: int, clocks: Clocks, ways: tuple[str, str],
        free: dict[str, float], costs: Any,
    ) -> float:  # fmt: skip
        task, packed, done = of
        clocks.at["host"] = max(clocks.at["host"], done)
        begun = max(clocks.at["write"], done)
        core, written = task.block.core.size, task.block.write.size
        there = clocks.do(ways[0], came.by_host / costs.wire, begun, free["halos"]) if came.by_host else begun
        moved = (came.all + 8 * core * classes) / costs.memory
        made = max((4 * core * classes + written) / costs.memory, written * classes * each / costs.loads)
        merged = clocks.do("out", moved + made, there, packed, free["out"])
        clocks.at["compute"] += made
        free["halos"] = merged
        free["out"] = clocks.do(ways[1], written / costs.wire, merged)
        clocks.at["write"] = free["out"] + written / costs.write
        return merged

    return finish


def share(classes: int, *, before: bool, order: Order = 1, costs: GridCosts = GridCosts()) -> float:
    """The network's share of a whole run, once all memory is locked."""
    plan = finer(plan_of(classes), order)
    way = replace(STEADY_THROUGH_HOST, finish=on_host) if before else replace(STEADY, finish=on_device(loads(plan)))
    return shares_of(plan, classes, way, costs).whole


def table(costs: GridCosts = GridCosts()) -> str:
    lines = ["| classes | before | linear | cubic |", "|---|---|---|---|"]
    for classes in CLASSES:
        found = share(classes, before=True, costs=costs), *(
            share(classes, before=False, order=order, costs=costs) for order in (1, 3)
        )  # fmt: skip
        lines.append(f"| {classes} | {' | '.join(f'{one:.2f}' for one in found)} |")
    return "\n".join(lines) + "\n"


TWO_PASSES, TO_MEMORY = 4, 8 / 2
"""Loads for a voxel and class where x is interpolated apart, of half as many voxels before; and bytes that are then written
and read again between the two passes."""


def what_holds(classes: int = 104, costs: GridCosts = GridCosts()) -> str:
    """Shares of the linear way as it is, and as it would be with fewer loads."""
    each = 8.0
    again = TO_MEMORY / costs.memory * costs.loads  # as if they were loads: none of it at the same time
    cases = {
        "as it is": each, "two passes, what is between them in the cache": TWO_PASSES,
        "two passes, what is between them through memory": TWO_PASSES + again,
        "two neighbours along x of the same loads": each / 2, "no loads": 0.0,
    }  # fmt: skip
    plan = finer(plan_of(classes))
    lines = [f"| {classes} classes, linear | share |", "|---|---|"]
    for name, count in cases.items():
        found = shares_of(plan, classes, replace(STEADY, finish=on_device(count)), costs).whole
        lines.append(f"| {name} | {found:.2f} |")
    return "\n".join(lines) + "\n"


# --- the kernels alone ---


@dataclass
class Scene:
    """Sums of `classes` in `side`³ voxels on a device, and what brings them to a finer grid in the passes of the pipeline,
    here whole ones (it takes some planes at a time)."""

    device: Device
    classes: int
    side: int
    order: Order

    def __post_init__(self) -> None:
        self.target, self.arrays = TIMES * self.side, Arrays(self.device)
        self.taps = taps(AxisResampling(self.side, self.target, self.order), 0, self.target, 0)
        self.sums = np.random.default_rng(0).normal(size=(self.classes, *(self.side,) * 3)).astype(np.float32)
        self.core = self.arrays.put(self.sums)
        self._tables = self.arrays.put(self.taps.first.astype(np.int32)), self.arrays.put(self.taps.weights)
        sizes = [] if self.taps.weights.shape[1] ** 3 <= MOST_TAPS else [(self.target, self.side), (self.target,) * 2]
        shapes = [(self.classes, *size, self.side) for size in sizes]
        self.between = [self.arrays.empty(shape, "float32") for shape in shapes]
        self.moved = 4 * self.sums.size + 8 * sum(prod(shape) for shape in shapes)
        """Bytes of sums that are read, and of those between two passes."""

    def finished(self, out: Any, kind: str) -> Callable[[int], None]:
        """Work that makes `out`."""
        interpolate = self.device.kernels.interpolate

        def work(stream: int) -> None:
            source = self.core
            for a, scratch in enumerate(self.between):
                interpolate(source, scratch, *self._along({a}), [0] * 3, "logits", "none", stream=stream)
                source = scratch
            rest = set(range(len(self.between), 3))
            interpolate(source, out, *self._along(rest), [0] * 3, kind, "softmax", stream=stream)

        return work

    def _along(self, axes: set[int]) -> list[list[Any]]:
        return [[table if a in axes else None for a in range(3)] for table in self._tables]


def same(device: Device, order: Order) -> bool:
    """Whether the device's labels and logits are the host's."""
    scene = Scene(device, 5, 12, order)
    grid, arrays, target = [scene.taps] * 3, scene.arrays, (scene.target,) * 3
    logits, labels = np.empty((5, *target), np.float32), np.zeros(target, np.uint8)
    reference.interpolate(logits, scene.sums, grid)
    reference.labels(logits, labels, above=None)
    held = []
    for wanted, kind in ((labels, "labels"), (logits, "logits")):
        number = arrays.count
        arrays.run(scene.finished(arrays.put(np.zeros_like(wanted)), kind))
        held.append(arrays.get(number).tobytes() == wanted.tobytes())
    arrays.close()
    return all(held)


def grid(args: argparse.Namespace) -> Iterator[tuple[str, float | str]]:
    """Sums brought to twice the resolution, linear and cubic, against a copy on the device."""
    need("grid", args)
    is_small = args.quick or args.simulate
    device, side, at_least = open_device(device_name(args)), 8 if args.simulate else 64, 0.02 if is_small else 0.3
    orders: dict[str, Order] = {"linear": 1, "cubic": 3}
    for name, order in orders.items():
        if not same(device, order):
            raise RuntimeError(f"{name}: other bits than the host's")
    yield "labels and logits on a finer grid", "the host's bits"
    copied = copy_bandwidth(device, 2**20 if args.simulate else 2**30, at_least)
    yield "copy on the device, GB/s", copied / 1e9
    for classes in CLASSES[:1] if args.simulate else CLASSES:
        for name, order in orders.items():
            scene = Scene(device, classes, side, order)
            target = (scene.target,) * 3
            for kind, out, written in (
                ("labels", scene.arrays.empty(target, "uint8"), prod(target)),
                ("probabilities", scene.arrays.empty((classes, *target), "uint8"), classes * prod(target)),
            ):
                seconds = scene.arrays.seconds(scene.finished(out, kind), at_least)
                what = f"{kind}, {name}, {classes} classes"
                yield f"{what}: voxels of a class per second, 1e9", classes * prod(target) / seconds / 1e9
                yield f"{what}: share of the copy's bandwidth", (scene.moved + written) / seconds / copied
            scene.arrays.close()


if __name__ == "__main__":
    print(table())
    print(what_holds())
