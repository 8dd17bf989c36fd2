"""What the device pipeline takes of a GPU's memory, and the plan that fits into it. Pure arithmetic on sizes.

    network   what opening it took: weights, scratch, its input and output for one batch (measured, not computed)
    raw       RAW_SLOTS raw blocks in their own type, each with the tables that say where its windows lie
    image     where windows are on another grid than the scan: one block as they see it, tables, and scratch memory
    sums      SUMS_SLOTS blocks of float32 sums: one being added to, one waiting for its commit, one being finished
    halos     what one block sends to the host (at most its sums), and what one block receives from there
    out       one block of finished voxels
    grid      where the output is on another grid: its tables, and scratch memory between passes, see `device_grid`
    kept      halos that stay on the device until their block is committed, see `kept_halos`

Everything is allocated once, for the largest block of the plan, so the peak does not depend on how many blocks there
are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from unet_engine.errors import PlanError
from unet_engine.plan.device_grid import GridPasses, grid_passes, grid_tables, image_passes, image_tables
from unet_engine.plan.kept_halos import shelf_sizes
from unet_engine.plan.memory import Sizes
from unet_engine.plan.plan import Plan, read_span
from unet_engine.plan.sizing import shrunk
from unet_engine.units import size, times

RAW_SLOTS = 2
SUMS_SLOTS = 3
ALIGNMENT = 256
"""Bytes at whose multiples every array of a buffer begins, as CUDA's own allocations do."""
FLAG = ALIGNMENT
"""Bytes before the finished voxels: whether any sum was not finite."""
RESERVE = 256 * 2**20
"""Device memory left free for others: CUDA's own context grows as kernels are loaded."""
BATCH_VOXELS = 2**21
"""Voxels that a batch should have so that a GPU has enough to do: one window of 128³, 8 of 64³, 8 of 512²."""
LARGEST_BATCH = 32


@dataclass(frozen=True)
class Extents:
    """Largest sizes over all blocks of a plan, in voxels; per axis where there are several."""

    read: int
    sums: int
    write: int
    halos_in: int
    windows: int
    table_bytes: int
    """Bytes of the tables of one block."""
    cores: tuple[int, ...]
    writes: tuple[int, ...]
    reads: tuple[int, ...]
    sources: tuple[int, ...]
    """Of the scan, where windows are on another grid; else none."""


@dataclass(frozen=True)
class DeviceMemory:
    """Predicted peak of device memory, in bytes."""

    network: int
    raw: int
    sums: int
    halos: int
    out: int
    grid: int = 0
    kept: int = 0
    image: int = 0

    @property
    def total(self) -> int:
        return self.network + self.raw + self.image + self.sums + self.halos + self.out + self.grid + self.kept


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def extents(plan: Plan) -> Extents:
    """The largest block, axis by axis. An upper bound: no block need be the largest along all axes."""
    spans = [_axis_extents(plan, a) for a in range(len(plan.axes))]
    windows = [
        min(b, hi - lo) for b, lo, hi in zip(plan.block, plan.window_range.lo, plan.window_range.hi, strict=True)
    ]
    cores, overlaps = [s[3] for s in spans], [s[4] for s in spans]
    # a block receives from every lower block within reach: per axis its own core or a part of it, whatever the others
    received = prod(c + o for c, o in zip(cores, overlaps, strict=True)) - prod(cores)
    return Extents(
        read=prod(s[0] for s in spans),
        sums=prod(s[1] for s in spans),
        write=prod(s[2] for s in spans),
        halos_in=received,
        windows=prod(windows),
        table_bytes=_table_bytes(plan, windows, [s[1] for s in spans]),
        cores=tuple(cores),
        writes=tuple(s[2] for s in spans),
        reads=tuple(s[0] for s in spans),
        sources=tuple(s[5] for s in spans) if plan.image else (),
    )


def _axis_extents(plan: Plan, a: int) -> tuple[int, int, int, int, int, int]:
    """Along axis `a`, the largest read, sums, write and core of any block, what all lower blocks together add to one core,
    and the most of a scan on another grid that is read for a block."""
    axis, step = plan.axes[a], plan.block[a]
    first, stop = plan.window_range.lo[a], plan.window_range.hi[a]
    lo, hi = plan.roi.lo[a], plan.roi.hi[a]
    low, high = (whole := plan.core_span(a, lo, hi)).start, whole.stop
    read = sums = write = core = overlap = source = 0
    for j in range(plan.block_range.lo[a], plan.block_range.hi[a]):
        k0, k1 = max(first, j * step), min(stop, (j + 1) * step) - 1
        start, end = read_span(axis, k0, k1, plan.padding)
        read = max(read, end - start)
        if plan.image:
            from_scan = plan.image[a].reach(start, end)
            source = max(source, from_scan[1] - from_scan[0])
        edge, edge_up = plan.edge(a, j), plan.edge(a, j + 1)
        own = plan.core_span(a, edge, edge_up)
        first_sum = min(axis.support(k0)[0], own.start) if own else axis.support(k0)[0]
        begins, ends = max(low, first_sum), min(high, max(axis.support(k1)[1], own.stop))
        sums, write, core = max(sums, ends - begins), max(write, edge_up - edge), max(core, len(own))
        below = range(max(plan.block_range.lo[a], j - plan.reach[a]), j)
        reached = [min(high, axis.support(min(stop, (i + 1) * step) - 1)[1]) for i in below]
        overlap = max(overlap, sum(max(0, min(own.stop, r) - own.start) for r in reached))
    return read, sums, write, core, overlap, source


def _table_bytes(plan: Plan, windows: Sequence[int], sums: Sequence[int]) -> int:
    """Per axis and window its span, weights and positions; per inferred window of the block an entry and its place in
    the order, and where it is inferred several times its pose and share; per axis the weights that lie over each voxel
    of the sums, where those are divided by them."""
    per_axis = [
        aligned(24 * n) + aligned(4 * n * axis.window) + aligned(4 * n * (axis.window + 2 * axis.margin))
        for n, axis in zip(windows, plan.axes, strict=True)
    ]
    missing = 3 - len(windows)
    if plan.axes[0].divides:
        per_axis += [aligned(4 * axis.most * n) for axis, n in zip(plan.axes, sums, strict=True)]
        per_axis += [ALIGNMENT] * missing
    entries = prod(windows) * plan.calls
    each = [16, 4, *([4, 4] if plan.calls > 1 else [])]
    return sum(per_axis) + missing * 3 * ALIGNMENT + sum(aligned(size * entries) for size in each)


def device_memory(plan: Plan, sizes: Sizes, network: int) -> DeviceMemory:
    """Peak bytes of one worker on its GPU."""
    largest = extents(plan)
    sums = aligned(largest.sums * sizes.sums)
    return DeviceMemory(
        network=network,
        raw=RAW_SLOTS * (aligned(raw_bytes(largest, sizes)) + largest.table_bytes),
        sums=SUMS_SLOTS * sums,
        halos=sums + aligned(largest.halos_in * sizes.sums),
        out=FLAG + aligned(largest.write * sizes.out) + aligned(sizes.sums) + 2 * aligned(8 * 64),
        grid=sum(map(aligned, grid_tables(plan))) + sum(grid_scratch(plan, largest, sizes.sums)),
        image=_image(plan, largest, sizes) if sizes.scan else 0,
    )


def raw_bytes(largest: Extents, sizes: Sizes) -> int:
    """Bytes of the largest block that goes over: of the scan where it is interpolated there, unless that is done on the
    host, as for blocks that were not measured everywhere."""
    return max(largest.read * sizes.raw, prod(largest.sources) * sizes.scan if sizes.scan else 0)


def _image(plan: Plan, largest: Extents, sizes: Sizes) -> int:
    """Bytes of a block as windows see it, of what makes it, and of what it is cut off at."""
    longest = max(axis.target for axis in plan.image)
    ends = 2 * [sizes.raw * longest]
    how = [2 * sizes.raw, 2 * sizes.raw, 8 * sizes.raw, sizes.raw]  # scale, shift, limits, pivot
    constants = [*image_tables(plan), *ends, *how]
    scratch = image_scratch(plan, largest, sizes.raw)
    return aligned(largest.read * sizes.raw) + sum(map(aligned, constants)) + sum(scratch)


def grid_depth(plan: Plan, largest: Extents, voxel_bytes: int) -> int:
    """Planes of the output that are made at a time; of every block as many, so that scratch memory is enough for all."""
    return _depth(grid_passes(plan), largest.cores, largest.writes, voxel_bytes)


def grid_scratch(plan: Plan, largest: Extents, voxel_bytes: int) -> list[int]:
    """Bytes between the passes that bring sums to the grid of the output; none where these are one, or there are none.
    voxel_bytes: of the sums of one voxel."""
    return _scratch(grid_passes(plan), largest.cores, largest.writes, voxel_bytes) if plan.back else []


def image_depth(plan: Plan, largest: Extents, voxel_bytes: int) -> int:
    """Planes that windows see which are made at a time, likewise."""
    return _depth(image_passes(plan), largest.sources, largest.reads, voxel_bytes)


def image_scratch(plan: Plan, largest: Extents, voxel_bytes: int) -> list[int]:
    """Bytes between the passes that bring a scan to the grid of windows. voxel_bytes: of a voxel in float32."""
    return _scratch(image_passes(plan), largest.sources, largest.reads, voxel_bytes) if plan.image else []


def _depth(passes: GridPasses, source: Sequence[int], made: Sequence[int], voxel_bytes: int) -> int:
    missing = (1,) * (3 - len(made))
    return passes.depth((*missing, *source), (*missing, *made), voxel_bytes)


def _scratch(passes: GridPasses, source: Sequence[int], made: Sequence[int], voxel_bytes: int) -> list[int]:
    missing = (1,) * (3 - len(made))
    depth = _depth(passes, source, made, voxel_bytes)
    voxels = passes.scratch((*missing, *source), (*missing, *made), depth)
    return [aligned(count * voxel_bytes) for count in voxels]


def shelves(plan: Plan, sizes: Sizes, network: int, free: int) -> tuple[int, ...]:
    """Bytes for the halos that stay on the device, see `shelf_sizes`; `free` as in `fit_device`."""
    return shelf_sizes(plan, sizes.sums, free - RESERVE - device_memory(plan, sizes, network).total)


def fit_device(plan: Plan, sizes: Sizes, network: int, free: int) -> Plan:
    """The plan with blocks that fit `free` bytes of device memory beside a network of `network` bytes, which `free`
    still counts.

    Blocks shrink along their longest axis first. Raises `PlanError` where the smallest do not fit.
    """
    budget = free - RESERVE
    while (need := device_memory(plan, sizes, network).total) > budget:
        smaller = shrunk(plan)
        if smaller is None:
            raise PlanError(
                f"the smallest plan needs {size(need)} of device memory and {size(max(0, budget))} can be had "
                f"({size(network)} of it for "
                f"the network, blocks of {times(plan.block)} windows); use a smaller --window or another --device"
            )
        plan = smaller
    return plan


def default_batch(window: Sequence[int], windows: int, limit: int | None = None) -> int:
    """Windows per batch, for blocks of `windows` windows: about `BATCH_VOXELS` voxels or `limit` windows, all batches
    of a block alike.

    A batch never holds windows of two blocks, so one that does not divide the block would compute rows for nobody.
    """
    most = limit or max(1, min(LARGEST_BATCH, BATCH_VOXELS // prod(window)))
    return -(-windows // -(-windows // most))
