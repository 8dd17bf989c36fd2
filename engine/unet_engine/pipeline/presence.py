"""Which voxels are there and meant: what the mask, values for 'not measured' and stored chunks say of a box."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.pipeline.job import Job
from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import Recorder
from unet_engine.volumes import nodata
from unet_engine.volumes.base import Volume
from unet_engine.volumes.cells import common
from unet_engine.volumes.mask import validity_of
from unet_engine.volumes.resampled import AnyMask, Interpolated, Nearest, made_of, nearest, on_windows_grid
from unet_engine.volumes.validity import marked


@dataclass(frozen=True)
class Presence:
    """Of one job, its volume and its masks (the user's, and what says where the volume was measured), as windows see
    them and on the grid of the output, which is the same unless the volume is resampled. May be asked by any thread."""

    job: Job
    volume: Volume
    mask: AnyMask | None
    validity: AnyMask | None
    written_volume: Volume
    written: tuple[AnyMask, ...]
    """Both masks, as far as there are any."""

    @classmethod
    def of(cls, job: Job, volume: Volume, mask: AnyMask | None) -> Presence:
        """volume: as windows see it; mask: on the grid that the volume is stored on."""
        if not isinstance(volume, Interpolated):
            own, meant = validity_of(volume), common(mask, job.cells)
            return cls(job, volume, meant, own, volume, _both(meant, own))
        image, back, own = job.plan.image, job.plan.back, validity_of(volume.scan)
        seen, valid = on_windows_grid(mask, image, back), on_windows_grid(own, image, back)
        if back:
            return cls(job, volume, seen, valid, volume.scan, _both(mask, own))
        return cls(job, volume, seen, valid, Nearest(volume.scan, nearest(volume.grid)), _both(seen, valid))

    def has_data(self, box: Box) -> bool:
        """Whether `box` of the grid of windows holds anything but background or what is not meant, or is part of a
        voxel of the output that does, as far as stored chunks tell."""
        if not all(mask.may_hold(box) for mask in _both(self.mask, self.validity)):
            return False
        if not (self._absent_unless_stored or self._background_unless_stored) or self.volume.has_data(box):
            return True
        if not (self.job.plan.back and self._absent_unless_stored):
            return False
        there = made_of(self.job.plan.back, box)
        return not there.is_empty and self.written_volume.has_data(there)

    def is_outside(self, box: Box) -> bool:
        """Whether all of `box` of the output is overwritten, as far as the mask and stored chunks tell."""
        if self.job.outside is None:
            return False
        if any(not (mask.may_hold(box) and mask.read(box).any()) for mask in self.written):
            return True
        return self._absent_unless_stored and not self.written_volume.has_data(box)

    def outside(self, box: Box, recorder: Recorder) -> Array | None:
        """Which voxels of `box` of the output are overwritten, (*box.shape) bool; None where none are."""
        if self.job.outside is None:
            return None
        found: Array | None = None
        for mask in self.written:
            lies = mask.read(box, recorder) == 0
            found = lies if found is None else np.logical_or(found, lies, out=found)
        if found is None:
            found = np.zeros(box.shape, bool)
        if self.job.missing or self.written_volume.gaps is not None:
            if self._absent_unless_stored and not self.written_volume.has_data(box):
                found[...] = True
            else:
                voxels, gaps = self.written_volume.read(box, recorder), self.gaps(self.written_volume, box, recorder)
                absent = marked(voxels, self.job.missing, gaps)
                found |= False if absent is None else absent.all(axis=0)
        return found if found.any() else None

    def gaps(self, volume: Volume, box: Box, recorder: Recorder) -> Array | None:
        """Which voxels of `box` a mask of a channel of `volume` leaves out in that channel, (channels, *box.shape) bool;
        None where masks are of all channels."""
        return None if volume.gaps is None else np.equal(volume.gaps.read(box, recorder), 0)

    def without_unmeasured(
        self, voxels: Array, box: Box, inside: Array | None, nowhere: Array | None, recorder: Recorder
    ) -> Array | None:
        """`inside` without the voxels of `box` that were measured in no channel, by their values, by masks of channels or
        by `nowhere`, (*box.shape). In `voxels`, (channels, *box.shape), those that were not measured become what is
        normalised to about 0, so that windows around them see nothing remarkable."""
        gaps = self.gaps(self.volume, box, recorder)
        absent = marked(voxels, self.job.missing, gaps if gaps is not None or nowhere is None else nowhere[np.newaxis])
        if absent is None:
            return inside
        for channel, where, shift in zip(voxels, absent, self.job.scaling.shift, strict=True):
            channel[where] = _nearest(shift, voxels.dtype)
        measured = np.logical_not(absent.all(axis=0))
        return measured if inside is None else measured & (inside != 0)

    @cached_property
    def _background_unless_stored(self) -> bool:
        return self.job.model.spec.empty is not None and self.volume.fill_value == self.job.background

    @cached_property
    def _absent_unless_stored(self) -> bool:
        """Whether voxels that are not stored read as not measured, and are overwritten for that."""
        return self.job.outside is not None and bool(
            self.job.missing
            and nodata.where_of_each(
                np.full(len(self.job.missing), self.written_volume.fill_value), self.job.missing
            ).all()
        )


def _both(mask: AnyMask | None, validity: AnyMask | None) -> tuple[AnyMask, ...]:
    return tuple(one for one in (mask, validity) if one is not None)


def _nearest(value: float, dtype: np.dtype[Any]) -> float:
    """What a voxel of `dtype` can be that is nearest to `value`."""
    if dtype.kind == "f":
        return float(np.clip(value, np.finfo(dtype).min, np.finfo(dtype).max))
    if dtype.kind == "b":
        return float(value >= 0.5)
    return min(max(round(value), int(np.iinfo(dtype).min)), int(np.iinfo(dtype).max))
