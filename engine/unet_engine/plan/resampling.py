"""How the voxels of one grid follow from those of another along one axis: which of them, never their values. Pure.

Both grids span the same length, so voxel k of the target lies at ``(k + 0.5) * source / target - 0.5`` of the source
(as `scipy.ndimage.zoom` has it with ``grid_mode``, and nnU-Net with it); or the middles of their first voxels are the
same, and voxel k lies at ``k * step`` (as MONAI's Spacing has it). Beyond its ends the source goes on with its
last voxels. Cubic splines need the whole line; their taps are cut off where they have fallen below the rounding of
float32, so that a voxel follows from the voxels around it, whichever others were read: the same bits for any block.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import floor
from typing import Literal

Order = Literal[0, 1, 3]
"""Of splines: the nearest voxel, linear, cubic."""
PREFILTER = 12
"""Voxels at each side that decide a coefficient of the cubic spline: the weight of the next one is 7e-8."""
TAPS: dict[int, int] = {0: 1, 1: 2, 3: 4 + 2 * PREFILTER}


@dataclass(frozen=True, slots=True)
class AxisResampling:
    """From `source` voxels to `target` voxels of the same length together. Where these are as many, nothing is done."""

    source: int
    target: int
    order: Order
    step: float = 0.0
    """Voxels of the source from one of the target to the next, where the first of both lie at the same place; 0 where
    both span the same length."""
    start: float = 0.0
    """Where the first voxel of the target lies, in voxels of the source; for a `step` above 0."""

    @property
    def is_identity(self) -> bool:
        return self.source == self.target and self.step in (0.0, 1.0) and not self.start

    @property
    def ratio(self) -> float:
        """Voxels of the source from one of the target to the next."""
        return self.step or self.source / self.target

    @property
    def taps(self) -> int:
        """Voxels of the source that each voxel of the target is made of."""
        return 1 if self.is_identity else min(self.source, TAPS[self.order])

    def position(self, k: int) -> float:
        """Where the middle of voxel k of the target lies, in voxels of the source."""
        if self.is_identity:
            return float(k)
        return self.start + k * self.step if self.step else (k + 0.5) * (self.source / self.target) - 0.5

    def bare_first(self, k: int) -> int:
        """The first of the source's voxels around voxel k; it may lie outside."""
        if self.is_identity:
            return k
        if self.order == 0:
            return floor(min(max(self.position(k), 0.0), self.source - 1.0) + 0.5)
        return floor(self.position(k)) - (TAPS[self.order] // 2 - 1)

    def first(self, k: int) -> int:
        """The first of the `taps` voxels of the source that voxel k is made of, all of them inside."""
        return min(max(self.bare_first(k), 0), self.source - self.taps)

    def reach(self, lo: int, hi: int) -> tuple[int, int]:
        """The interval of the source that the voxels [lo, hi) are made of; empty where that is."""
        return (self.first(lo), self.first(hi - 1) + self.taps) if lo < hi else (0, 0)

    def settled(self, x: int) -> int:
        """How many voxels at the beginning of the target are made of voxels below `x` of the source alone."""
        if x >= self.source:
            return self.target
        return bisect_right(range(self.target), x - self.taps, key=self.first)

    def made_of(self, lo: int, hi: int) -> tuple[int, int]:
        """The interval of the target whose voxels are made of any of the voxels [lo, hi) of the source."""
        return self.settled(lo), bisect_right(range(self.target), hi - 1, key=self.first)

    def part(self, source: tuple[int, int], target: tuple[int, int]) -> AxisResampling:
        """The same between intervals of both."""
        start = self.position(target[0]) - source[0]
        return AxisResampling(source[1] - source[0], target[1] - target[0], self.order, self.ratio, start)

    def reversed(self, order: Order) -> AxisResampling:
        """The way back, of whole axes."""
        return AxisResampling(self.target, self.source, order, 1 / self.step if self.step else 0.0)
