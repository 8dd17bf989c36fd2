"""Volumes that lie on the voxels of another one, by where both are in the world: a part of it, as a DICOM segmentation
which leaves out slices in which nothing is, or with axes that run otherwise, as files of other tools have them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.units import times
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.lens import Lens
from unet_engine.volumes.reference_systems import same_system
from unet_engine.volumes.turn import Turn
from unet_engine.volumes.turned import Turned

_SAME = 1e-4
"""Part of a voxel's size that two may differ by: headers round."""
_OFF = 0.02
"""Voxels that one grid may lie beside another over all of it."""


def refuse_unsaid(part: Volume, whole: Volume, option: str) -> None:
    """Raises `InputError` where nothing says how the axes of `part` run, and it would fit both as those of `whole` are
    stored and as z, y, x; of a cube nothing but names tells."""
    size = dict(zip(whole.spatial, whole.shape, strict=True))
    fits_both = tuple(size[a] for a in whole.stored_spatial) == tuple(whole.shape)
    if part.supposed and whole.stored_spatial != whole.spatial and fits_both:
        raise InputError(
            f"{option} {part.path} does not say how its axes run, {whole.spatial} or {whole.stored_spatial} as those of "
            f"{whole.path}; write one that does: unet-engine convert {part.path} NAMED.zarr --axes {whole.stored_spatial}"
        )


def over(part: Volume, whole: Volume) -> Volume | None:
    """`part` on the grid of `whole`: turned as that lies, 0 where it does not reach; itself where it is so already.
    None where they are on other grids, `part` reaches beyond, or nothing says where they lie.

    Raises `InputError` where their axes run otherwise, and `part` lies elsewhere nevertheless: voxel by voxel it would
    be read the wrong way round."""
    turn = turn_to(part, whole)
    seen: Volume = part if turn is None else Turned(part, turn)
    start = start_in(seen, whole)
    if start is None:
        if turn is not None:
            raise InputError(
                f"{part.path} ({times(part.shape)}) lies turned to {whole.path} ({times(whole.shape)}), and not on its "
                "voxels; give one that lies on these"
            )
        return None
    return seen if seen.shape == whole.shape else Laid(seen, start, whole.shape)


def turn_to(part: Volume, whole: Volume) -> Turn | None:
    """How `part` has to be turned so that its axes run as those of `whole`; None where they do, where they are no axes
    of that grid, or where nothing says it."""
    placed, other = _place(part), _place(whole)
    if placed is None or other is None or part.spatial != whole.spatial or not same_system(placed[2], other[2]):
        return None
    try:
        steps = np.linalg.solve(other[0], placed[0])  # of an axis of the part, in voxels of the whole
    except np.linalg.LinAlgError:
        return None
    near = np.rint(steps)
    if not np.allclose(steps, near, atol=_OFF) or not np.array_equal(near @ near.T, np.eye(len(near))):
        return None
    order = tuple(int(np.argmax(np.abs(row))) for row in near)
    turn = Turn(order, tuple(bool(near[i, a] < 0) for i, a in enumerate(order)), part.shape)
    return None if turn.is_none else turn


def start_in(part: Volume, whole: Volume) -> tuple[int, ...] | None:
    """The voxel of `whole` that the first one of `part` lies on; None where they are on other grids, `part` reaches
    beyond, or nothing says where they lie."""
    placed, other = _place(part), _place(whole)
    if placed is None or other is None or part.spatial != whole.spatial or not same_system(placed[2], other[2]):
        return None
    matrix, origin, _ = other
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


@dataclass(frozen=True, eq=False)
class Laid(Lens):
    """The scan as a part of a volume of `shape`; 0 in the rest of it."""

    start: tuple[int, ...]
    """The voxel that the first one of the scan lies on."""
    shape: tuple[int, ...]

    def there(self, box: Box) -> Box:
        """Empty where nothing of it is there."""
        lo = tuple(min(max(l - s, 0), n) for l, s, n in zip(box.lo, self.start, self.scan.shape, strict=True))
        hi = tuple(min(max(h - s, 0), n) for h, s, n in zip(box.hi, self.start, self.scan.shape, strict=True))
        return Box(lo, hi)

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.scan.chunks

    @property
    def spacing(self) -> tuple[float, ...] | None:
        return self.scan.spacing

    @property
    def translation(self) -> tuple[float, ...]:
        spacing = self.scan.spacing or (1.0,) * len(self.shape)
        return tuple(t - s * l for t, s, l in zip(self.scan.translation, spacing, self.start, strict=True))

    @property
    def frame(self) -> Frame | None:
        return self.scan.frame and self.scan.frame.moved(tuple(-l for l in self.start))

    @property
    def fill_value(self) -> float:
        return 0.0

    def has_data(self, box: Box) -> bool:
        there = self.there(box)
        return not there.is_empty and (bool(self.scan.fill_value) or self.scan.has_data(there))

    def changed(self, box: Box, since: float) -> str | None:
        there = self.there(box)
        return None if there.is_empty else self.scan.changed(there, since)

    def token(self, box: Box) -> tuple[str, str] | None:
        there = self.there(box)
        return None if there.is_empty else self.scan.token(there)

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        out = np.zeros((self.channels, *box.shape), self.dtype)
        there = self.there(box)
        if not there.is_empty:
            out[(slice(None), *there.shift(self.start).relative_to(box.lo).slices())] = self.scan.read(there, recorder)
        return out
