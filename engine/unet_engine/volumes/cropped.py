"""A volume seen as a box of it, and the box of all that is not 0, or above a number: what nnU-Net and MONAI take for the
whole image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.lens import Lens
from unet_engine.volumes.pieces import pieces


@dataclass(frozen=True, eq=False)
class Cropped(Lens):
    """`box` of the scan, its first voxel the origin. Boxes that reach beyond it are read as the scan goes on there."""

    box: Box

    def there(self, box: Box) -> Box:
        return box.shift(self.box.lo)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.box.shape

    @property
    def chunks(self) -> tuple[int, ...]:
        return tuple(map(min, self.scan.chunks, self.shape))

    def begins(self, pieces: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(at % piece for at, piece in zip(self._at(pieces), pieces, strict=True))

    def _at(self, pieces: tuple[int, ...]) -> list[int]:
        """How far before the box the scan's first piece begins."""
        return [lo + begin for lo, begin in zip(self.box.lo, self.scan.begins(pieces), strict=True)]

    def keep(self, most: int, reads: Fetching | None) -> None:
        if reads is None or self.units is None:
            self.scan.keep(most, None)
        else:
            at = zip(self._at(self.units), self.units, strict=True)
            self.scan.keep(most, reads.moved([lo // unit for lo, unit in at]))

    @property
    def spacing(self) -> tuple[float, ...] | None:
        return self.scan.spacing

    @property
    def translation(self) -> tuple[float, ...]:
        spacing = self.scan.spacing or (1.0,) * len(self.shape)
        return tuple(t + s * l for t, s, l in zip(self.scan.translation, spacing, self.box.lo, strict=True))

    @property
    def frame(self) -> Frame | None:
        return self.scan.frame and self.scan.frame.moved(self.box.lo)

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        return self.scan.read(self.there(box), recorder)


_FOUND: WeakKeyDictionary[Volume, dict[float | None, Box]] = WeakKeyDictionary()
"""Of volumes that are still open, by what was looked for."""


def nonzero_box(volume: Volume, above: float | None = None) -> Box:
    """The smallest box of all voxels that are not 0 in some channel, or that are `above` a number in one; the whole
    volume where there are none. Raises `DataError` as reading does.

    Read from each end inwards, piece by piece, until something is met: of a volume without an edge of 0 the outermost
    pieces alone, and no voxel more than a few times."""
    known = _FOUND.setdefault(volume, {})
    if above not in known:
        known[above] = _found(volume, above)
    return known[above]


def _found(volume: Volume, above: float | None) -> Box:
    known = Box.of_shape(volume.shape)
    for axis in range(known.ndim):
        slabs = _slabs(volume, known, axis)
        lo = _outermost(volume, above, slabs, axis, min)
        hi = _outermost(volume, above, slabs[::-1], axis, max)
        if lo is None or hi is None:
            return known
        known = _along(known, axis, lo, hi + 1)
    return known


def _outermost(
    volume: Volume, above: float | None, slabs: Iterable[Box], axis: int, of: Callable[[list[int]], int]
) -> int | None:
    """The least or largest place along `axis`, as `of` says, of a voxel that is looked for in the first of the slabs
    that has any; None where none has."""
    empty = not _is_looked_for(np.asarray(volume.fill_value), above)
    for slab in slabs:
        end = of([slab.lo[axis], slab.hi[axis] - 1])
        met: list[int] = []
        for piece in pieces(volume, slab):
            if empty and not volume.has_data(piece):
                continue
            inside: Array = np.any(_is_looked_for(volume.read(piece), above), axis=0)
            where = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
            met += [piece.lo[axis] + int(x) for x in where[[0, -1]]] if where.size else []
            if end in met:
                break
        if met:
            return of(met)
    return None


def _is_looked_for(voxels: Array, above: float | None) -> Array:
    return np.asarray(voxels != 0 if above is None else voxels > above)


def _slabs(volume: Volume, box: Box, axis: int) -> list[Box]:
    """`box` in slabs of a chunk's thickness along `axis`."""
    step = min(volume.chunks[axis], volume.shape[axis])
    begins = range(box.lo[axis] // step * step, box.hi[axis], step)
    return [_along(box, axis, max(b, box.lo[axis]), min(b + step, box.hi[axis])) for b in begins]


def _along(box: Box, axis: int, lo: int, hi: int) -> Box:
    """`box`, from `lo` to `hi` along `axis`."""
    return Box((*box.lo[:axis], lo, *box.lo[axis + 1 :]), (*box.hi[:axis], hi, *box.hi[axis + 1 :]))
