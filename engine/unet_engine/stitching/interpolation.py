"""Tables of interpolation: for each voxel along an axis, the voxels that it is made of and their weights.

The cubic spline that goes through all voxels is a sum of B-splines whose coefficients are the voxels, filtered with
``sqrt(3) * z**|n|``, ``z = sqrt(3) - 2`` (M. Unser, "Splines: a perfect fit", 1999). Filter and B-spline are put into
one row of weights here, cut off as `unet_engine.plan.resampling` says. What lies beyond the ends of the source is added
to its last voxels' weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor, sqrt

import numpy as np
from numpy.typing import NDArray

from unet_engine.plan.resampling import PREFILTER, AxisResampling


@dataclass(frozen=True, eq=False)
class Taps:
    """Along one axis: voxel i is the sum over t of ``weights[i, t]`` times voxel ``first[i] + t`` of the source."""

    first: NDArray[np.int64]
    weights: NDArray[np.float32]
    """(voxels, taps); they sum to 1, and are 1 where there is one tap."""

    @property
    def size(self) -> int:
        return self.first.size

    def part(self, lo: int, hi: int) -> Taps:
        """Those of the voxels [lo, hi)."""
        return Taps(self.first[lo:hi], self.weights[lo:hi])


def taps(axis: AxisResampling, lo: int, hi: int, origin: int) -> Taps:
    """Of the voxels [lo, hi) of the target, in a block that begins at voxel `origin` of the source."""
    found = _span(axis, lo, hi)
    return Taps(found.first - origin, found.weights)


@lru_cache(maxsize=64)
def _span(axis: AxisResampling, lo: int, hi: int) -> Taps:
    first = np.array([axis.first(k) for k in range(lo, hi)], np.int64)
    if axis.taps == 1:
        return Taps(first, np.ones((hi - lo, 1), np.float32))
    weights = np.zeros((hi - lo, axis.taps))
    rows = np.arange(hi - lo)
    bare = np.array([axis.bare_first(k) for k in range(lo, hi)], np.int64)
    fraction = np.array([p - floor(p) for p in map(axis.position, range(lo, hi))])
    for t, weight in enumerate(_weights(axis.order, fraction)):
        np.add.at(weights, (rows, np.clip(bare + t, 0, axis.source - 1) - first), weight)
    weights /= weights.sum(axis=1, keepdims=True)
    return Taps(first, np.ascontiguousarray(weights, np.float32))


def _weights(order: int, x: NDArray[np.float64]) -> Sequence[NDArray[np.float64]]:
    """Of the taps in a row, for voxels that lie `x` (0 to below 1) behind the middle one's position."""
    if order == 1:
        return [1 - x, x]
    spline = [(1 - x) ** 3 / 6, 2 / 3 - x**2 + x**3 / 2, 2 / 3 - (1 - x) ** 2 + (1 - x) ** 3 / 2, x**3 / 6]
    pole = sqrt(3) - 2
    line = [sqrt(3) * pole ** abs(n) for n in range(-PREFILTER, PREFILTER + 1)]
    found = [np.zeros_like(x) for _ in range(len(line) + 3)]
    for i, weight in enumerate(spline):
        for j, factor in enumerate(line):
            found[i + j] = found[i + j] + weight * factor
    return found
