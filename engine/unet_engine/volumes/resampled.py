"""A volume, or a mask, on another grid than its own: the one that a network was trained on. Nothing is copied: a box is
read as the voxels that it is made of, and made of them.

    box on the network's grid --AxisResampling.reach--> box of the scan --read--> normalised --interpolate--> voxels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.plan.resampling import AxisResampling
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.profiling.stages import GATHER
from unet_engine.stitching import operations
from unet_engine.stitching.interpolation import taps
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.holes import Holes, outside
from unet_engine.volumes.lens import Lens
from unet_engine.volumes.nodata import Missing
from unet_engine.volumes.normalize import Scaling
from unet_engine.volumes.pieces import pieces
from unet_engine.volumes.validity import unmeasured


def reach(grid: Sequence[AxisResampling], box: Box) -> Box:
    """The voxels of the source that those of `box` are made of."""
    spans = [axis.reach(lo, hi) for axis, lo, hi in zip(grid, box.lo, box.hi, strict=True)]
    return Box(*map(tuple, zip(*spans, strict=True)))


@dataclass(frozen=True, eq=False)
class Regridded(Lens):
    """What a volume says of itself when it is seen on another grid. Spatial tuples follow `spatial`."""

    grid: tuple[AxisResampling, ...]
    """From the scan's voxels to these."""

    def there(self, box: Box) -> Box:
        """The voxels of the scan that those of `box` are made of."""
        return reach(self.grid, box)

    def keep(self, most: int, reads: Fetching | None) -> None:
        self.scan.keep(most, reads)  # which counts what voxels are made of

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.target for axis in self.grid)

    @property
    def chunks(self) -> tuple[int, ...]:
        """About what a chunk of the scan gives."""
        return tuple(
            max(1, min(axis.target, round(chunk * axis.target / axis.source)))
            for axis, chunk in zip(self.grid, self.scan.chunks, strict=True)
        )

    @property
    def spacing(self) -> tuple[float, ...] | None:
        if self.scan.spacing is None:
            return None
        return tuple(s * axis.ratio for s, axis in zip(self.scan.spacing, self.grid, strict=True))

    @property
    def translation(self) -> tuple[float, ...]:
        spacing = self.scan.spacing or (1.0,) * len(self.grid)
        return tuple(
            t + s * axis.position(0) for t, s, axis in zip(self.scan.translation, spacing, self.grid, strict=True)
        )

    @property
    def frame(self) -> Frame | None:
        begin = [axis.position(0) for axis in self.grid]
        return self.scan.frame and self.scan.frame.resampled([axis.ratio for axis in self.grid], begin)


@dataclass(frozen=True, eq=False)
class Nearest(Regridded):
    """Each voxel as the scan's nearest one is stored."""

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        there = self.there(box)
        found = self.scan.read(there, recorder)
        taken: tuple[Any, ...] = (slice(None), *_taken(self.grid, box, there))
        return np.ascontiguousarray(found[taken])


@dataclass(frozen=True)
class Extremes:
    """The least and the largest of voxels as they are interpolated, per channel: of all, or of each plane."""

    axis: int | None
    """That planes stand on; None: of all voxels."""
    least: tuple[tuple[float, ...], ...]
    most: tuple[tuple[float, ...], ...]

    def of(self, channel: int, planes: Sequence[int], ndim: int) -> tuple[Array, Array]:
        """Those of these planes of the scan, shaped to lie over (*box.shape); `planes` are ignored where they are of
        all."""
        at = list(planes) if self.axis is not None else [0]
        shape = [len(at) if a == self.axis else 1 for a in range(ndim)]
        least, most = (np.array(ends[channel], np.float32)[at].reshape(shape) for ends in (self.least, self.most))
        return least, most


@dataclass(frozen=True, eq=False)
class Interpolated(Regridded):
    """What a network is fed: voxels normalised where they were measured, then interpolated; float32.

    Background is 0 here, so that it stays so to the last bit, and becomes what it is once normalised by `fed`. What was
    not measured is normalised to 0, NaN and infinities become `nonfinite`, or spread as NaN where that is None.
    Splines overshoot: they are cut off at `extremes`; where these are not known and values are clipped, at the same
    bounds.

    Where outside of what is not 0 in any channel, holes filled, becomes 0, a voxel's value does not tell what becomes of
    it: so volumes of the network's own grid are seen through this, too.
    """

    scaling: Scaling
    """Of the scan's voxels, by figures of the scan's own grid."""
    background: float = 0.0
    """Raw value of voxels that become 0."""
    nonfinite: float | None = None
    extremes: Extremes | None = None
    holes: Holes | None = None
    """Of the scan, where they are filled: they are none of what becomes 0 outside."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def missing(self) -> Missing:
        """None is left here."""
        return ()

    @cached_property
    def validity(self) -> Volume | None:
        """The same."""
        return None

    @cached_property
    def gaps(self) -> Volume | None:
        """The same."""
        return None

    @property
    def fill_value(self) -> float:
        """0 where voxels that are not stored are background; else NaN, which is not 0."""
        return 0.0 if self.scan.fill_value == self.background else float("nan")

    @property
    def fed(self) -> Scaling:
        """What is left to do, per channel."""
        return fed(self.scaling, self.background)

    @cached_property
    def pivot(self) -> tuple[float, ...]:
        """What background is once it is normalised."""
        return tuple(-s for s in self.fed.shift)

    def has_data(self, box: Box) -> bool:
        """Of a hole, too, though nothing may be stored there: it does not become 0."""
        there = self.there(box)
        return self.scan.has_data(there) or bool(self.holes and self.holes.meets(there))

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        return self.made_of(self.scan.read(self.there(box), recorder), box, recorder)

    def made_of(self, voxels: Array, box: Box, recorder: Recorder = PLAIN) -> Array:
        """Those of `box` of what the scan has in `there(box)`, which may be changed."""
        there = self.there(box)
        with recorder.span(GATHER):
            normal = self._normalised(voxels, there)
            if all(axis.is_identity for axis in self.grid):
                return normal
            out = np.empty((len(voxels), *box.shape), np.float32)
            tables = [
                taps(axis, lo, hi, at) for axis, lo, hi, at in zip(self.grid, box.lo, box.hi, there.lo, strict=True)
            ]
            operations.interpolate(out, normal, tables)
            for c, channel in enumerate(out):
                if (bounds := self._limits(c, box)) is not None:
                    np.clip(channel, *bounds, out=channel)
        return out

    def are_plain(self, voxels: Array, there: Box) -> bool:
        """Whether all that the scan has in `there` was measured and is finite, so that each voxel's own value says what
        it is normalised to."""
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            return False
        return unmeasured(self.scan, there, voxels) is None

    @property
    def before(self) -> tuple[Scaling, tuple[float, ...]] | None:
        """How voxels are normalised before they are interpolated, and what is then taken off, per channel; None: they are
        not."""
        return self.scaling, self.pivot

    @property
    def bounds(self) -> tuple[Array, Array] | None:
        """What voxels are cut off at once they are interpolated, from below and above, (channels, *planes) each, float32:
        as many planes as there are along the axis that they differ along, and 1 along others. None: they are not."""
        found = [self._limits(c, Box.of_shape(self.shape)) for c in range(self.channels)]
        ends = [one for one in found if one is not None]
        if not ends:
            return None
        low, high = (np.stack([np.reshape(one[i], self._planes(one[i])) for one in ends]) for i in (0, 1))
        return low, high

    def _planes(self, ends: Array) -> tuple[int, ...]:
        return np.shape(ends) or (1,) * len(self.grid)

    def with_extremes(self, axis: int | None) -> Interpolated:
        """Cut off at the least and the largest voxel: of all, or of each plane across `axis`, along which voxels are
        the nearest ones. All of the scan is read, but where all of it is clipped and both bounds are met."""
        count = 1 if axis is None else self.scan.shape[axis]
        least = np.full((self.channels, count), np.inf, np.float32)
        most = -least
        for box in pieces(self.scan, Box.of_shape(self.scan.shape)):
            voxels = self.scan.read(box)
            normal = self._normalised(voxels, box)
            others = tuple(1 + a for a in range(box.ndim) if a != axis)
            at = slice(0, 1) if axis is None else slice(box.lo[axis], box.hi[axis])
            for ends, of in ((least, np.fmin), (most, np.fmax)):
                met = of.reduce(normal, axis=others)
                ends[:, at] = of(ends[:, at], met.reshape(len(ends), -1))
            if axis is None and self._are_bounds(least[:, 0], most[:, 0]):
                break
        unknown = ~(least <= most)
        least[unknown], most[unknown] = -np.inf, np.inf
        return replace(self, extremes=Extremes(axis, *(tuple(tuple(map(float, c)) for c in e) for e in (least, most))))

    def _are_bounds(self, least: Array, most: Array) -> bool:
        """Whether nothing can lie beyond these, by channel, as all is clipped."""
        bounds = [self._bounds(c) for c in range(len(least))]
        return all(b is not None and lo <= b[0] and hi >= b[1] for lo, hi, b in zip(least, most, bounds, strict=True))

    def _limits(self, channel: int, box: Box) -> tuple[Array, Array] | Array | None:
        """What splines may not overshoot in `box`; None where nothing does, or nothing is known."""
        if self.extremes is None:
            return self._bounds(channel)
        axis = self.extremes.axis
        planes = [] if axis is None else [self.grid[axis].first(k) for k in range(box.lo[axis], box.hi[axis])]
        return self.extremes.of(channel, planes, box.ndim)

    def _bounds(self, channel: int) -> Array | None:
        """The same by what voxels are clipped to."""
        if not self.scaling.clip or not any(axis.order == 3 and not axis.is_identity for axis in self.grid):
            return None
        ends = self.scaling.normalised(np.array(self.scaling.clip[channel], np.float32), channel)
        found: Array = np.sort(ends) - np.float32(self.pivot[channel])
        return found

    def not_finite(self, box: Box) -> Array:
        """Which voxels of the scan that `box` is made of are NaN or infinite, and were measured and not replaced."""
        there = self.there(box)
        voxels = self.scan.read(there)
        if self.nonfinite is not None:
            return np.zeros(voxels.shape, bool)
        absent = unmeasured(self.scan, there, voxels)
        found: Array = ~np.isfinite(voxels) if absent is None else ~np.isfinite(voxels) & ~absent
        return found

    def _normalised(self, voxels: Array, box: Box) -> Array:
        """Those that the scan has in `box`, normalised, less background: (channels, *box.shape) float32."""
        absent = unmeasured(self.scan, box, voxels)
        emptied = outside(voxels, self.holes, box) if self.scaling.filled else None
        bad = ~np.isfinite(voxels) if voxels.dtype.kind == "f" else None
        if bad is not None and absent is not None:
            bad &= ~absent
        if bad is not None and self.nonfinite is not None:
            voxels[bad] = self.nonfinite
        normal = np.empty(voxels.shape, np.float32)
        index = [np.arange(n) for n in voxels.shape[1:]]
        scale, shift = np.asarray(self.scaling.scale), np.asarray(self.scaling.shift)
        operations.gather(normal, voxels, index, scale, shift, 0.0, limits=self.scaling.limits)
        if emptied is not None:
            normal[np.array(self.scaling.filled)[:, *[np.newaxis] * emptied.ndim] & emptied] = 0
        if absent is not None:
            normal[absent] = 0
        if bad is not None and self.nonfinite is None:
            normal[bad] = np.nan
        if any(self.pivot):
            normal -= np.array(self.pivot, np.float32).reshape(-1, *(1,) * len(index))
        return normal


@dataclass(frozen=True, eq=False)
class RawInterpolated(Interpolated):
    """The same, interpolated as it was measured: normalising, and what it clips, comes afterwards."""

    @property
    def fill_value(self) -> float:
        """Of what is not stored, where that is background; else NaN, which is none."""
        return self.scan.fill_value if self.scan.fill_value == self.background else float("nan")

    @property
    def fed(self) -> Scaling:
        return self.scaling

    @property
    def before(self) -> None:
        return None

    def _bounds(self, channel: int) -> Array | None:
        return None

    def _normalised(self, voxels: Array, box: Box) -> Array:
        """The same as they are, where nothing was measured, what is normalised to 0."""
        absent = unmeasured(self.scan, box, voxels)
        raw = np.array(voxels, np.float32, order="C")
        if voxels.dtype.kind == "f":
            bad = ~np.isfinite(raw)
            raw[bad] = np.nan if self.nonfinite is None else self.nonfinite
        if absent is not None:
            for channel, where, shift in zip(raw, absent, self.scaling.shift, strict=True):
                channel[where] = shift
        return raw


def interpolated(
    scan: Volume,
    grid: tuple[AxisResampling, ...],
    scaling: Scaling,
    background: float,
    nonfinite: float | None,
    first: Literal["normalised", "interpolated"],
    *,
    extremes: Extremes | None = None,
    holes: Holes | None = None,
) -> Interpolated:
    """What windows are cut from. first: what is done before the other."""
    kind = Interpolated if first == "normalised" else RawInterpolated
    return kind(scan, grid, scaling, background, nonfinite, extremes, holes)


def fed(scaling: Scaling, background: float) -> Scaling:
    """What is left to do of `scaling` with voxels that were normalised less what `background` becomes."""
    raw = np.full((1,), background, np.float32)
    emptied = [background == 0 and filled for filled in scaling.filled or (False,) * len(scaling.shift)]
    shift = tuple(0.0 if gone else -float(scaling.normalised(raw, c)[0]) for c, gone in enumerate(emptied))
    return Scaling(shift, (1.0,) * len(shift))


class AnyMask(Protocol):
    """A mask on whatever grid; see `unet_engine.volumes.mask.Mask`."""

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array: ...
    def may_hold(self, box: Box) -> bool: ...
    def changed(self, box: Box, since: float) -> str | None: ...
    def token(self, box: Box) -> tuple[str, str] | None: ...
    def confirm(self) -> None: ...


@dataclass(frozen=True, eq=False)
class NearestMask:
    """A mask of the scan, on another grid: each voxel as the scan's nearest one."""

    mask: AnyMask
    grid: tuple[AxisResampling, ...]

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        there = reach(self.grid, box)
        return np.ascontiguousarray(self.mask.read(there, recorder)[_taken(self.grid, box, there)])

    def may_hold(self, box: Box) -> bool:
        return self.mask.may_hold(reach(self.grid, box))

    def changed(self, box: Box, since: float) -> str | None:
        return self.mask.changed(reach(self.grid, box), since)

    def token(self, box: Box) -> tuple[str, str] | None:
        return self.mask.token(reach(self.grid, box))

    def confirm(self) -> None:
        self.mask.confirm()


@dataclass(frozen=True, eq=False)
class NeededMask:
    """A mask of the scan, on the grid that the scan's is interpolated from: a voxel is inside where any voxel that is
    made of it is. What windows give next to the mask is part of what lies in it."""

    mask: AnyMask
    back: tuple[AxisResampling, ...]
    """From these voxels to the scan's."""

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        there = made_of(self.back, box)
        if there.is_empty:
            return np.zeros(box.shape, bool)
        found: Array = self.mask.read(there, recorder) != 0
        for a, (axis, lo, hi) in enumerate(zip(self.back, box.lo, box.hi, strict=True)):
            found = _any_of(found, a, [axis.made_of(k, k + 1) for k in range(lo, hi)], there.lo[a])
        return found

    def may_hold(self, box: Box) -> bool:
        there = made_of(self.back, box)
        return not there.is_empty and self.mask.may_hold(there)

    def changed(self, box: Box, since: float) -> str | None:
        there = made_of(self.back, box)
        return None if there.is_empty else self.mask.changed(there, since)

    def token(self, box: Box) -> tuple[str, str] | None:
        there = made_of(self.back, box)
        return None if there.is_empty else self.mask.token(there)

    def confirm(self) -> None:
        self.mask.confirm()


def _any_of(inside: Array, a: int, spans: Sequence[tuple[int, int]], origin: int) -> Array:
    """Along axis `a`, whether any voxel of each span is inside; spans of the scan, `inside` begins at `origin`."""
    ends = np.array(spans, np.intp) - origin
    # `reduceat` takes no end behind the last voxel, and an empty span as its first voxel
    padded = np.concatenate([inside, np.zeros_like(inside.take([0], a))], a)
    found: Array = np.logical_or.reduceat(padded, ends.ravel(), a).take(range(0, ends.size, 2), a)
    found &= (ends[:, 0] < ends[:, 1]).reshape(-1, *(1,) * (inside.ndim - 1 - a))
    return found


def made_of(back: Sequence[AxisResampling], box: Box) -> Box:
    """The voxels of the target that any of those of `box` is part of."""
    spans = [axis.made_of(lo, hi) for axis, lo, hi in zip(back, box.lo, box.hi, strict=True)]
    return Box(*map(tuple, zip(*spans, strict=True)))


def on_windows_grid(
    mask: AnyMask | None, image: tuple[AxisResampling, ...], back: tuple[AxisResampling, ...]
) -> AnyMask | None:
    """A mask of the scan as windows see it. image: to their grid, empty where they are cut from the scan itself. back:
    from theirs to the output's, empty where these are the same."""
    if mask is None or not image:
        return mask
    return NeededMask(mask, back) if back else NearestMask(mask, nearest(image))


def nearest(grid: Sequence[AxisResampling]) -> tuple[AxisResampling, ...]:
    """The same grids, each voxel the nearest."""
    return tuple(replace(axis, order=0) for axis in grid)


def _taken(grid: Sequence[AxisResampling], box: Box, there: Box) -> tuple[Array, ...]:
    return np.ix_(
        *(
            np.array([axis.first(x) for x in range(lo, hi)], np.intp) - at
            for axis, lo, hi, at in zip(grid, box.lo, box.hi, there.lo, strict=True)
        )
    )
