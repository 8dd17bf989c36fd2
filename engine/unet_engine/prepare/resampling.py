"""Whether a volume is brought to the spacing of a network, and how: shapes and orders, as nnU-Net decides them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from weakref import WeakKeyDictionary

from unet_engine.errors import InputError, SettingsError
from unet_engine.model.normalization import Normalization
from unet_engine.model.spec import ModelSpec, Resampling
from unet_engine.plan.box import Box
from unet_engine.plan.resampling import AxisResampling, Order
from unet_engine.prepare.spacing import in_units_of
from unet_engine.units import times
from unet_engine.volumes.axes import LARGEST
from unet_engine.volumes.base import Volume
from unet_engine.volumes.holes import holes_of
from unet_engine.volumes.normalize import Scaling
from unet_engine.volumes.resampled import interpolated
from unet_engine.volumes.samples import scaling_of

ANISOTROPIC = 3.0
"""Ratio of the longest side of a voxel to the shortest, above which the axis of the longest is resampled apart."""

SAME = 1e-3
"""Spacings no further apart are taken for the same where voxels are aligned by the first, as MONAI does."""

_MEASURED: WeakKeyDictionary[Volume, dict[tuple[tuple[AxisResampling, ...], Normalization], Scaling]] = (
    WeakKeyDictionary()
)
"""What was measured of all interpolated voxels of volumes that are still open."""


@dataclass(frozen=True)
class Grids:
    """From the scan's voxels to the network's, and back."""

    image: tuple[AxisResampling, ...]
    back: tuple[AxisResampling, ...]
    apart: int | None = None
    """The axis along which the image is resampled apart, if one is."""

    def nearest_to(self, inside: Box) -> Box:
        """The scan's voxels whose nearest one of the network's grid is `inside`."""
        spans = [replace(a, order=0).made_of(lo, hi) for a, lo, hi in zip(self.back, inside.lo, inside.hi, strict=True)]
        return Box(*map(tuple, zip(*spans, strict=True)))

    def made_of(self, inside: Box) -> Box:
        """The scan's voxels in which any of those `inside` counts, where outputs come back by lines; else the same."""
        nearest = self.nearest_to(inside)
        ends = zip(self.back, inside.lo, inside.hi, nearest.lo, nearest.hi, strict=True)
        spans = [_weighed(a, lo, hi) if a.order == 1 else (first, last) for a, lo, hi, first, last in ends]
        return Box(*map(tuple, zip(*spans, strict=True)))

    def part(self, inside: Box, scan: Box) -> tuple[Box, Grids]:
        """Of the network's grid `inside` alone: the box of the scan with all that it is made of, and with `scan`; and
        the grids between the two."""
        reach = [a.reach(lo, hi) for a, lo, hi in zip(self.image, inside.lo, inside.hi, strict=True)]
        box = Box(
            tuple(min(lo, first) for lo, (first, _) in zip(scan.lo, reach, strict=True)),
            tuple(max(hi, last) for hi, (_, last) in zip(scan.hi, reach, strict=True)),
        )
        here, there = (tuple(zip(of.lo, of.hi, strict=True)) for of in (box, inside))
        image = tuple(a.part(s, t) for a, s, t in zip(self.image, here, there, strict=True))
        back = tuple(a.part(s, t) for a, s, t in zip(self.back, there, here, strict=True))
        return box, Grids(image, back, self.apart)


def grids(volume: Volume, spec: ModelSpec, notes: list[str], *, ignore: bool) -> Grids | None:
    """How `volume` comes to the spacing of `spec`; None where nothing is to be done, or spacings cannot be compared,
    which `check_spacing` tells. ignore: the user has spacings ignored.

    Raises `InputError` where its grid would be larger than any volume is."""
    how, own = spec.resampling, in_units_of(volume, spec)
    if how is None or own is None or ignore:
        return None
    planes = len(volume.shape) - len(spec.axes)
    wanted = (*own[:planes], *(s or o for s, o in zip(spec.spacing or (), own[planes:], strict=True)))
    steps = _steps(how, own, wanted)
    shape = tuple(
        (n if step == 1 else _length(n, a / b, from_first=bool(step))) if n < LARGEST * b / a else LARGEST + 1
        for a, b, n, step in zip(own, wanted, volume.shape, steps, strict=True)
    )
    if max(shape) > LARGEST:
        raise InputError(
            f"{volume.path} of {times(volume.shape)} voxels has more than any volume has at the spacing of {spec.name}; "
            "correct its metadata, or use --ignore-spacing"
        )
    if shape == volume.shape and set(steps) <= {0.0, 1.0}:
        return None
    apart = _apart(how, own, wanted)
    orders = _orders(how.image, how.image_apart, apart, len(own))
    image = tuple(AxisResampling(n, m, o, s) for n, m, o, s in zip(volume.shape, shape, orders, steps, strict=True))
    orders = _orders(how.output, how.output_apart, _apart(how, wanted, own), len(own))
    back = tuple(axis.reversed(order) for axis, order in zip(image, orders, strict=True))
    notes.append(
        f"{volume.path} is brought from {times(volume.shape)} voxels to {times(shape)}, the spacing of {spec.name}"
    )
    return Grids(image, back, apart)


def _steps(how: Resampling, own: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """Per axis, see `AxisResampling.step`; 1 where the spacing is kept."""
    if how.aligned == "ends":
        return [0.0] * len(own)
    return [1.0 if abs(a - b) <= SAME else b / a for a, b in zip(own, wanted, strict=True)]


def _length(size: int, factor: float, *, from_first: bool) -> int:
    """Voxels that `size` voxels become, `factor` of them for one; from_first: between the middles of the outermost."""
    return round((size - 1) * factor + 1.0) if from_first else max(1, round(factor * size))


def seen(scan: Volume, found: Grids | None, spec: ModelSpec, nonfinite: float | None = None) -> Volume:
    """What windows are cut from. Raises `DataError` as reading and `scaling` do, and `SettingsError` where holes cannot
    be filled."""
    grid = image_of(scan, found, spec.normalization)
    if not grid:
        return scan
    how = spec.resampling
    first = how.first if how and found else "normalised"
    scale, fills = scaling_seen(scan, found, spec), spec.normalization.fills
    volume = interpolated(scan, grid, scale, spec.background, nonfinite, first, holes=holes_of(scan) if fills else None)
    return volume.with_extremes(found.apart) if found and how and how.cut and _overshoots(found) else volume


def image_of(scan: Volume, found: Grids | None, normalization: Normalization) -> tuple[AxisResampling, ...]:
    """From the scan's voxels to those that windows are cut from; empty where these are the scan's as they are stored,
    and not so where it takes more than a voxel's value to normalise it."""
    if found is not None:
        return found.image
    return tuple(AxisResampling(n, n, 0) for n in scan.shape) if normalization.fills else ()


def _overshoots(found: Grids) -> bool:
    """Whether a spline does that can be cut off, as planes are the nearest ones where they are cut off one by one."""
    nearest = found.apart is None or found.image[found.apart].taps == 1
    return nearest and any(axis.order == 3 and not axis.is_identity for axis in found.image)


def _weighed(axis: AxisResampling, lo: int, hi: int) -> tuple[int, int]:
    """The interval of the target in which any of the voxels [lo, hi) of the source counts for more than nothing, by lines
    between them."""
    first, last = axis.made_of(lo, hi)
    while first < last and axis.position(first) <= lo - 1:
        first += 1
    return first, last


def as_interpolated(scan: Volume, found: Grids, spec: ModelSpec) -> Volume:
    """All voxels of the network's grid, not normalised."""
    plain = Scaling((0.0,) * scan.channels, (1.0,) * scan.channels)
    return interpolated(scan, found.image, plain, spec.background, None, "interpolated")


def scaling_seen(scan: Volume, found: Grids | None, spec: ModelSpec) -> Scaling:
    """How voxels are normalised. What is measured of the whole volume is measured of interpolated voxels where these
    are what is normalised, as their source does it; but for volumes with voxels that were not measured. Raises
    `DataError` as reading and `scaling` do, and `SettingsError` where holes cannot be filled."""
    normalization, how = spec.normalization, spec.resampling
    if normalization.fills and found and how and how.first == "interpolated":
        raise SettingsError(
            f"--normalize {normalization}: {spec.name} normalises what was interpolated, and holes are filled of what was "
            "measured; use foreground in place of foreground=filled, or --ignore-spacing"
        )
    if found is None or how is None or how.first != "interpolated" or not normalization.of_all:
        return scaling_of(scan, normalization)
    if scan.missing or scan.validity is not None or scan.gaps is not None:
        return scaling_of(scan, normalization)
    known = _MEASURED.setdefault(scan, {})
    if (found.image, normalization) not in known:
        known[found.image, normalization] = scaling_of(as_interpolated(scan, found, spec), normalization)
    return known[found.image, normalization]


def _orders(order: Order, apart: Order, axis: int | None, ndim: int) -> tuple[Order, ...]:
    """Per axis. axis: the one that is resampled `apart`."""
    return tuple(apart if a == axis else order for a in range(ndim))


def _apart(how: Resampling, current: Sequence[float], new: Sequence[float]) -> int | None:
    """The axis that is resampled apart. nnU-Net's rule: the spacing that is there decides, if it is anisotropic, else
    the one that it becomes; and one axis alone, never two."""
    if len(current) < 3 or how.apart == "never":
        return None
    decides = current if how.apart == "always" or _is_anisotropic(current) or not _is_anisotropic(new) else new
    longest = [a for a, s in enumerate(decides) if s == max(decides)]
    if len(longest) == 1 and (how.apart == "always" or _is_anisotropic(decides)):
        return longest[0]
    return None


def _is_anisotropic(spacing: Sequence[float]) -> bool:
    return max(spacing) / min(spacing) > ANISOTROPIC


def on_windows_grid(roi: Box, grid: Sequence[AxisResampling]) -> Box:
    """The voxels of the network's grid whose middles lie in `roi`, voxels of the scan. Raises `SettingsError` where
    none does."""
    spans = []
    for axis, lo, hi in zip(grid, roi.lo, roi.hi, strict=True):
        inside = [_below(axis, end - 0.5) for end in (lo, hi)]
        spans.append((inside[0], inside[1]))
    found = Box(*map(tuple, zip(*spans, strict=True)))
    if not prod(found.shape):
        raise SettingsError(f"--roi {roi}: no voxel of the network's grid lies in it; take a larger one")
    return found


def _below(axis: AxisResampling, x: float) -> int:
    """Voxels of the target whose middles lie below `x` of the source; behind its end, all of them: where first voxels
    are aligned, the last one may lie beyond."""
    if x >= axis.source - 0.5:
        return axis.target
    k = min(max(0, int((x + 0.5) * axis.target / axis.source)), axis.target)
    while k > 0 and axis.position(k - 1) >= x:
        k -= 1
    while k < axis.target and axis.position(k) < x:
        k += 1
    return k
