"""How a device brings sums to the grid of the output, and what memory that takes. Pure arithmetic on sizes.

A voxel is made of the taps of each axis, which are multiplied: of 8 sums where all are linear, of 28 along each axis
where they are cubic. So axes go together in one pass as long as few sums are read for a voxel; else a pass writes what
comes of the first axes to scratch memory, some planes at a time, for the next one. The order of additions, along z, then
y, then x, is that of one pass, and so the bytes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from unet_engine.plan.plan import Plan

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
    taps = [1] * (3 - len(plan.back)) + [axis.taps for axis in plan.back]
    passes: list[list[int]] = [[]]
    made = 1
    for a, count in enumerate(taps):
        if count > 1 and made > 1 and made * count > MOST_TAPS:
            passes.append([])
            made = 1
        passes[-1].append(a)
        made *= count
    return GridPasses(tuple(map(tuple, passes)), 3 - len(plan.back))


def table_sizes(plan: Plan) -> list[tuple[int, int]]:
    """Per axis of the output, bytes of the tables that say where each of its voxels begins, and with which weights."""
    return [
        (4 * (hi - lo), 4 * (hi - lo) * axis.taps)
        for axis, lo, hi in zip(plan.back, plan.roi.lo, plan.roi.hi, strict=True)
    ]
