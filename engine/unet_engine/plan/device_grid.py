"""How a device brings voxels to another grid, sums to that of the output and a scan to the network's, and what memory
that takes. Pure arithmetic on sizes.

A voxel is made of the taps of each axis, which are multiplied: of 8 sums where all are linear, of 28 along each axis
where they are cubic. So axes go together in one pass as long as few sums are read for a voxel; else a pass writes what
comes of the first axes to scratch memory, some planes at a time, for the next one. The order of additions, along z, then
y, then x, is that of one pass, and so the bytes are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from unet_engine.plan.plan import Plan
from unet_engine.plan.resampling import AxisResampling

MOST_TAPS = 8
"""Sums that a voxel is made of in one pass, where several axes are."""
SCRATCH = 64 * 2**20
"""Bytes between two passes, about: some planes of a block, which are then still in a GPU's cache."""


@dataclass(frozen=True)
class GridPasses:
    """The passes over a block, each with the axes (0 is z) that it interpolates along."""

    axes: tuple[tuple[int, ...], ...]
    along: int
    """The axis along which a block is cut where there are several passes: z, of planes y."""

    def sizes(self, core: Sequence[int], write: Sequence[int], depth: int) -> list[tuple[int, ...]]:
        """Voxels along three axes of what each pass makes, of a block with this core and write box, `depth` of its
        voxels along `along` at a time."""
        found, now = [], list(core)
        for axes in self.axes:
            for a in axes:
                now[a] = depth if a == self.along else write[a]
            found.append(tuple(now))
        return found

    def scratch(self, core: Sequence[int], write: Sequence[int], depth: int) -> list[int]:
        """Voxels between passes: of what each but the last one makes."""
        return [prod(size) for size in self.sizes(core, write, depth)[:-1]]

    def depth(self, core: Sequence[int], write: Sequence[int], voxel_bytes: int) -> int:
        """Voxels along `along` that are made at a time. voxel_bytes: of the sums of one voxel."""
        each = sum(self.scratch(core, write, 1)) * voxel_bytes
        return max(1, min(write[self.along], SCRATCH // each)) if each else max(1, write[self.along])


def grid_passes(plan: Plan) -> GridPasses:
    """Those of a plan whose output is on another grid than its windows."""
    return _passes(plan.back)


def image_passes(plan: Plan) -> GridPasses:
    """Those of a plan whose windows are on another grid than the scan."""
    return _passes(plan.image)


def _passes(axes: Sequence[AxisResampling]) -> GridPasses:
    taps = [1] * (3 - len(axes)) + [axis.taps for axis in axes]
    passes: list[list[int]] = [[]]
    made = 1
    for a, count in enumerate(taps):
        if count > 1 and made > 1 and made * count > MOST_TAPS:
            passes.append([])
            made = 1
        passes[-1].append(a)
        made *= count
    return GridPasses(tuple(map(tuple, passes)), 3 - len(axes))


def grid_tables(plan: Plan) -> list[int]:
    """Bytes of the tables that say where each voxel of the output begins, and with which weights."""
    spans = zip(plan.back, plan.roi.lo, plan.roi.hi, strict=True) if plan.back else ()
    return _tables((axis, hi - lo) for axis, lo, hi in spans)


def image_tables(plan: Plan) -> list[int]:
    """The same of voxels that windows are cut from."""
    return _tables((axis, axis.target) for axis in plan.image)


def _tables(axes: Iterable[tuple[AxisResampling, int]]) -> list[int]:
    return [size for axis, count in axes for size in (4 * count, 4 * count * axis.taps)]
