"""A volume seen from farther away: each voxel is the mean of a box of voxels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.volumes.lens import Lens

Array = npt.NDArray[Any]


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
    def nodata(self) -> tuple[float, ...]:
        return ()

    def there(self, box: Box) -> Box:
        lo = tuple(x * f for x, f in zip(box.lo, self.factors, strict=True))
        hi = tuple(min(x * f, n) for x, f, n in zip(box.hi, self.factors, self.scan.shape, strict=True))
        return Box(lo, hi)

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        """(channels, *box.shape) float32."""
        found = np.zeros((self.channels, *box.shape), np.float32)
        for part in self._slabs(box):
            at = part.relative_to(box.lo).slices()
            found[(slice(None), *at)] = self._means(self.scan.read(self.there(part), recorder))
        return found

    def _slabs(self, box: Box) -> Iterator[Box]:
        """Parts one voxel thick, so that little of the scan is held at once."""
        for x in range(box.lo[0], box.hi[0]):
            yield Box((x, *box.lo[1:]), (x + 1, *box.hi[1:]))

    def _means(self, voxels: Array) -> Array:
        found: Array = voxels.astype(np.float32)
        for a, factor in enumerate(self.factors, start=1):
            size = found.shape[a]
            starts = np.arange(0, size, factor)
            counts = np.minimum(starts + factor, size) - starts
            sums = np.add.reduceat(found, starts, axis=a)
            found = sums / counts.astype(np.float32).reshape(-1, *(1,) * (found.ndim - 1 - a))
        return found
