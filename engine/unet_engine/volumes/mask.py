"""A mask: a volume that says which voxels of another one are meant. It may be coarser or finer by whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.units import times
from unet_engine.volumes.base import Volume
from unet_engine.volumes.formats import open_stored
from unet_engine.volumes.laid import over, refuse_unsaid
from unet_engine.volumes.pick import Pick
from unet_engine.volumes.turn import Turn

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Axis:
    """How voxels of the scan lie over those of the mask: each takes the one that its middle lies in."""

    size: int
    """Of the mask."""
    coarser: int = 1
    """Voxels of the scan to one of the mask."""
    finer: int = 1
    """Voxels of the mask to one of the scan."""

    def at(self, x: int) -> int:
        """The voxel of the mask that voxel `x` of the scan takes."""
        return min((x * self.finer + self.finer // 2) // self.coarser, self.size - 1)


@dataclass(frozen=True, eq=False)
class Mask:
    """Opened for reading, from any number of threads at once. Boxes are in voxels of the scan."""

    volume: Volume
    """On the scan's grid as that is stored, or a coarser or finer one."""
    axes: tuple[_Axis, ...]
    turn: Turn | None = None
    """How the scan is seen, whose voxels are meant; None: as it is stored."""
    origin: tuple[int, ...] | None = None
    """The voxel of the scan as it is seen that boxes are counted from; None: the first one."""

    @property
    def voxel_bytes(self) -> int:
        """Bytes of what `read` gives, per voxel of the scan."""
        return self.volume.voxel_bytes

    @property
    def reading_bytes(self) -> int:
        """Bytes that `read` takes, with what it gives, per voxel of the scan. Of another resolution: as stored, picked,
        and in order."""
        ratio = prod(axis.finer for axis in self.axes) / prod(axis.coarser for axis in self.axes)
        return self.voxel_bytes * (1 if ratio == 1 else 2 + ceil(ratio))

    def keep(self, most: int) -> None:
        """Keep up to so many bytes of what is fetched or unpacked of it."""
        if self.volume.units or self.volume.pieces:
            self.volume.keep(most, None)

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        """The mask in `box`, (*box.shape); anything but 0 is inside. Raises what `Volume.read` raises."""
        found = self._read(self._as_stored(box), recorder)
        return found if self.turn is None else np.ascontiguousarray(self.turn.view(found))

    def _read(self, box: Box, recorder: Recorder) -> Array:
        """`read` of a box of the scan as it is stored."""
        there = self._over(box)
        found: Array = self.volume.read(there, recorder)[0]
        if there == box:
            return found
        taken = [
            np.array([axis.at(x) for x in range(lo, hi)], np.intp) - first
            for axis, lo, hi, first in zip(self.axes, box.lo, box.hi, there.lo, strict=True)
        ]
        return np.ascontiguousarray(found[np.ix_(*taken)])

    def may_hold(self, box: Box) -> bool:
        """Whether anything in `box` may be inside, told without reading."""
        return bool(self.volume.fill_value) or self.volume.has_data(self._there(box))

    def changed(self, box: Box, since: float) -> str | None:
        """See `Volume.changed`."""
        return self.volume.changed(self._there(box), since)

    def token(self, box: Box) -> tuple[str, str] | None:
        """See `Volume.token`."""
        return self.volume.token(self._there(box))

    def confirm(self) -> None:
        """See `Volume.confirm`."""
        self.volume.confirm()

    def _there(self, box: Box) -> Box:
        """The voxels of the mask that lie over `box`."""
        return self._over(self._as_stored(box))

    def _as_stored(self, box: Box) -> Box:
        box = box if self.origin is None else box.shift(self.origin)
        return box if self.turn is None else self.turn.stored_box(box)

    def _over(self, box: Box) -> Box:
        """The same of a box of the scan as it is stored."""
        lo = tuple(axis.at(x) for axis, x in zip(self.axes, box.lo, strict=True))
        hi = tuple(axis.at(x - 1) + 1 for axis, x in zip(self.axes, box.hi, strict=True))
        return Box(lo, hi)


@dataclass(frozen=True, eq=False)
class Masks:
    """Several for the same scan: what is inside is so in all of them. Of none, everything is."""

    masks: tuple[Mask, ...]

    @classmethod
    def of(cls, *masks: Mask | None) -> Masks:
        return cls(tuple(mask for mask in masks if mask is not None))

    def __bool__(self) -> bool:
        return bool(self.masks)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of what is kept of them, per voxel of the scan."""
        return sum(mask.voxel_bytes for mask in self.masks)

    @property
    def reading_bytes(self) -> int:
        """See `Mask.reading_bytes`."""
        return sum(mask.reading_bytes for mask in self.masks)


def open_mask(
    path: str,
    scan: Volume,
    turn: Turn | None = None,
    time: int | None = None,
    origin: tuple[int, ...] | None = None,
) -> Mask:
    """The mask at `path` for `scan`, all of it as it is stored, which is seen as `turn` says, and from `origin` on. Of a
    mask with several time points that of the scan counts, `time`. Where both say where they lie in the world, on one
    grid, the mask is what lies there: a part of the scan, or turned. Raises `InputError` where it does not lie over
    it."""
    stored = open_stored(path)
    volume = stored.picked(Pick(time if stored.timepoints > 1 else None))
    if volume.channels != 1:
        raise InputError(f"--mask {path} has {volume.channels} channels; give one of a single channel")
    refuse_unsaid(volume, scan, "--mask")
    if volume.frame and scan.frame:
        volume = over(volume, scan) or volume
    shape = scan.shape
    axes = [_axis(n, m) for n, m in zip(shape, volume.shape, strict=False)]
    found = tuple(axis for axis in axes if axis)
    if len(volume.shape) != len(shape) or len(found) != len(shape):
        raise InputError(
            f"--mask {path} has {times(volume.shape)} voxels, the volume {times(tuple(shape))}; "
            "give one of the same size, or one a whole number of times smaller or larger along each axis"
        )
    return Mask(volume, found, turn, origin)


def validity_of(volume: Volume) -> Mask | None:
    """What says where `volume` was measured, on its grid and seen as it is; None where nothing does."""
    found = volume.validity
    return None if found is None else Mask(found, tuple(map(_Axis, found.shape)))


def _axis(scan: int, mask: int) -> _Axis | None:
    """How an axis of the mask lies over that of the scan; None where it does not. Levels of a pyramid are rounded."""
    if scan == mask:
        return _Axis(mask)
    large, small = max(scan, mask), min(scan, mask)
    ratio = round(large / small)
    if ratio < 2 or small not in (large // ratio, -(-large // ratio)):
        return None
    return _Axis(mask, coarser=ratio) if mask < scan else _Axis(mask, finer=ratio)
