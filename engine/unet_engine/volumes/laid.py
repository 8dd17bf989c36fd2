"""Volumes that are a part of another one, by where both lie: as a DICOM segmentation, which leaves out slices in which
nothing is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unet_engine.plan.box import Box
from unet_engine.volumes.base import Array, Volume

_SAME = 1e-4
"""Part of a voxel's size that two may differ by: headers round."""
_OFF = 0.02
"""Voxels that one grid may lie beside another over all of it."""


def start_in(part: Volume, whole: Volume) -> tuple[int, ...] | None:
    """The voxel of `whole` that the first one of `part` lies on; None where they are on other grids, `part` reaches
    beyond, or nothing says where they lie."""
    placed, over = _place(part), _place(whole)
    if placed is None or over is None or part.spatial != whole.spatial or placed[2] != over[2]:
        return None
    matrix, origin, _ = over
    if not np.allclose(placed[0], matrix, rtol=_SAME, atol=_SAME * float(np.abs(matrix).max())):
        return None
    try:
        at = np.linalg.solve(matrix, placed[1] - origin)
    except np.linalg.LinAlgError:
        return None
    start = np.rint(at)
    if not np.abs(at - start).max() < _OFF or (start < 0).any() or (start + part.shape > whole.shape).any():
        return None
    return tuple(map(int, start))


def _place(volume: Volume) -> tuple[Array, Array, str] | None:
    """A row of numbers for each axis of the world, where the first voxel lies, and what that world is."""
    if volume.frame:
        frame = volume.frame.seen_in("LPS")
        return np.array(frame.matrix), np.array(frame.origin), frame.crs or frame.space
    if volume.spacing is None:
        return None
    return np.diag(volume.spacing)[::-1], np.array(volume.translation[::-1]), volume.unit or ""


@dataclass(frozen=True)
class Laid:
    """Labels that are a part of a volume; 0 in the rest of it."""

    volume: Volume
    start: tuple[int, ...]
    """The voxel that the first one of `volume` lies on."""

    def read(self, box: Box) -> Array:
        """In `box` of the whole, of its shape."""
        there = [
            (max(lo - s, 0), min(hi - s, n))
            for lo, hi, s, n in zip(box.lo, box.hi, self.start, self.volume.shape, strict=True)
        ]
        out = np.zeros(box.shape, self.volume.dtype)
        if all(lo < hi for lo, hi in there):
            found = self.volume.read(Box(tuple(lo for lo, _ in there), tuple(hi for _, hi in there)))[0]
            spans = [slice(lo + s - b, hi + s - b) for (lo, hi), s, b in zip(there, self.start, box.lo, strict=True)]
            out[tuple(spans)] = found
        return out
