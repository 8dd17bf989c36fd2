"""A volume seen from farther away: each voxel is the mean of a box of voxels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.volumes.lens import Lens
from unet_engine.volumes.nodata import Missing

Array = npt.NDArray[Any]

MOST = 2**24
"""Voxels of the scan that are read at once, but for those of a chunk."""


@dataclass(frozen=True, eq=False)
class Coarse(Lens):
    """Boxes and sizes are in its own voxels; the last ones along an axis may be the mean of fewer."""

    factors: tuple[int, ...]
    """Voxels of the scan to one of these, per axis of `spatial`."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(-(-n // f) for n, f in zip(self.scan.shape, self.factors, strict=True))

    @property
    def chunks(self) -> tuple[int, ...]:
        return tuple(max(1, c // f) for c, f in zip(self.scan.chunks, self.factors, strict=True))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def spacing(self) -> tuple[float, ...] | None:
        spacing = self.scan.spacing
        return None if spacing is None else tuple(s * f for s, f in zip(spacing, self.factors, strict=True))

    @property
    def translation(self) -> tuple[float, ...]:
        return self.scan.translation

    @property
    def missing(self) -> Missing:
        return ()

    def there(self, box: Box) -> Box:
        lo = tuple(x * f for x, f in zip(box.lo, self.factors, strict=True))
        hi = tuple(min(x * f, n) for x, f, n in zip(box.hi, self.factors, self.scan.shape, strict=True))
        return Box(lo, hi)

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        """(channels, *box.shape) float32."""
        found = np.empty((self.channels, *box.shape), np.float32)
        for part in self._parts(box):
            at = part.relative_to(box.lo).slices()
            found[(slice(None), *at)] = self._means(self.scan.read(self.there(part), recorder))
        return found

    def _parts(self, box: Box) -> Iterator[Box]:
        """Parts that end where chunks of the scan do, so that hardly any is decoded twice, and small enough that little
        of the scan is held at once."""
        spans = [[(lo, hi)] for lo, hi in zip(box.lo, box.hi, strict=True)]
        for a, (lo, hi) in enumerate(zip(box.lo, box.hi, strict=True)):
            longest = (max(end - begin for begin, end in found) for found in spans)
            if prod(n * f for n, f in zip(longest, self.factors, strict=True)) <= MOST:
                break
            chunk, factor = self.scan.chunks[a], self.factors[a]
            edges = (k * chunk // factor for k in range(lo * factor // chunk, hi * factor // chunk + 1))
            spans[a] = list(pairwise(sorted({lo, hi, *(edge for edge in edges if lo < edge < hi)})))
        for ends in product(*spans):
            yield Box(*map(tuple, zip(*ends, strict=True)))

    def _means(self, voxels: Array) -> Array:
        for a, factor in enumerate(self.factors, start=1):
            voxels = _mean_along(voxels, a, factor)
        return voxels


def _mean_along(values: Array, axis: int, factor: int) -> Array:
    """Means in float32 of every `factor` values along an axis, and of those that are left at its end."""
    rows = np.moveaxis(values, axis, 0)
    sums = rows[::factor].astype(np.float32)
    for k in range(1, factor):
        more = rows[k::factor]
        sums[: len(more)] += more
    counts = np.minimum(factor, len(rows) - factor * np.arange(len(sums))).astype(np.float32)
    sums /= counts.reshape(-1, *(1,) * (sums.ndim - 1))
    return np.moveaxis(sums, 0, axis)
