"""Slices of DICOM put in order by where they lie. What is no regular stack is refused, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import degrees
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import InputError
from unet_engine.units import times
from unet_engine.volumes.frame import Frame

Vector = npt.NDArray[np.float64]
_SAME = 1e-3
"""Directions and distances (mm) that differ by less are the same: files round."""
_UNEVEN = 0.02
"""Part of the distance between slices that one may differ from the others."""
_TILTED = 0.01
"""Shift of slices over their distance that is still none: half a degree."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice, as its file describes it: in mm, in patient space (LPS)."""

    file: str
    frame: int | None
    """Of a file of several, counted from 0."""
    kind: tuple[Any, ...]
    """Rows, columns, samples, bits, sign: what must be the same of all."""
    position: tuple[float, ...] | None
    """Of the middle of the first pixel."""
    orientation: tuple[float, ...] | None
    """Where a row runs, and where a column runs."""
    pixel: tuple[float, ...] | None
    """Distance of rows, and of columns."""
    slope: float
    intercept: float
    time: int = 0
    """The time point that it is of, as its file numbers these; 0 where it says nothing of time."""
    taken: float | None = None
    """Seconds at which it was taken, from any beginning that is that of all slices; None where it is not said."""

    @property
    def name(self) -> str:
        return self.file if self.frame is None else f"{self.file}, frame {self.frame + 1},"


@dataclass(frozen=True)
class Series:
    slices: tuple[Slice, ...]
    """Of one time point after the other, each from one end to the other."""
    frame: Frame | None
    notes: tuple[str, ...] = ()
    times: int = 1
    """How many time points there are, of as many slices each."""


def ordered(path: str, slices: Sequence[Slice]) -> Series:
    """The slices of each time point from one end to the other, in the direction of the cross product of row and column.
    Raises `InputError` naming slices of another kind or orientation, at one place, missing, or shifted, and time points
    that do not lie in one place."""
    by_time: dict[int, list[Slice]] = {}
    for one in slices:
        by_time.setdefault(one.time, []).append(one)
    # slices in places of their own that are numbered in time are one volume, scanned one after the other
    if len(by_time) == 1 or len({one.position for one in slices}) == len(slices):
        return _in_place(path, slices)
    found = {time: _in_place(path, of_time) for time, of_time in sorted(by_time.items())}
    (number, first), *others = found.items()
    for time, other in others:
        if len(other.slices) != len(first.slices) or any(
            not _alike(a.position, b.position)
            or not _alike(a.orientation, b.orientation)
            or not _alike(a.pixel, b.pixel)
            for a, b in zip(other.slices, first.slices, strict=True)
        ):
            raise InputError(
                f"{path}: its time point {time} has {len(other.slices)} slices that do not lie where the "
                f"{len(first.slices)} of time point {number} lie; complete the series, or take out that time point"
            )
    all_slices = tuple(one for other in found.values() for one in other.slices)
    return Series(all_slices, first.frame, first.notes, len(found))


def _in_place(path: str, slices: Sequence[Slice]) -> Series:
    """`ordered` of one time point."""
    first = slices[0]
    for one in slices:
        if one.kind != first.kind:
            raise InputError(
                f"{path}: {one.name} is {_shown(one.kind)} and {first.name} {_shown(first.kind)}; take out what is of "
                "another kind"
            )
        if not _alike(one.orientation, first.orientation) or not _alike(one.pixel, first.pixel):
            raise InputError(
                f"{path}: {one.name} has another orientation or pixel size than {first.name}; take out what is no "
                "slice of the stack, e.g. a scout"
            )
    if len(slices) == 1:
        return Series((first,), None)
    if first.orientation is None or any(one.position is None for one in slices):
        return _unplaced(path, slices)
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    if abs(np.linalg.norm(normal) - 1) > 0.01:
        raise InputError(f"{path}: its rows and columns are not at right angles to one another; correct the files")
    found = sorted(slices, key=lambda one: float(np.dot(normal, one.position or ())))
    places = np.array([one.position for one in found], np.float64)
    _check_even(path, found, places @ normal)
    step = (places[-1] - places[0]) / (len(found) - 1)
    _check_upright(path, places, normal)
    if first.pixel is None:
        return Series(tuple(found), None, (f"{path} does not say how large its pixels are",))
    affine = np.stack([row * first.pixel[1], column * first.pixel[0], step, places[0]], axis=1)
    return Series(tuple(found), Frame.of(affine.tolist(), "LPS"))


def _unplaced(path: str, slices: Sequence[Slice]) -> Series:
    """Frames of one file lie as they come; of several files nothing tells the order."""
    if len({one.file for one in slices}) == 1:
        return Series(tuple(slices), None, (f"{path} does not say where its frames lie: they are taken as they come",))
    missing = next(one for one in slices if one.position is None or one.orientation is None)
    raise InputError(
        f"{path}: {missing.name} does not say where it lies (no position or orientation), so nothing tells the order "
        "of the slices; take it out, or convert them by hand"
    )


def _check_even(path: str, slices: Sequence[Slice], along: Vector) -> None:
    steps = np.diff(along)
    usual = float(np.median(steps))
    for i, step in enumerate(steps):
        a, b = slices[i].name, slices[i + 1].name
        if step < _SAME:
            raise InputError(f"{path}: {a} and {b} lie at one place ({along[i]:g} mm); take out one of them")
        if abs(step - usual) > max(_UNEVEN * usual, _SAME):
            what = f"about {round(step / usual) - 1} slices are missing" if step > 1.5 * usual else "unevenly spaced"
            raise InputError(
                f"{path}: a gap between {a} and {b}: {step:g} mm where others are {usual:g} mm apart ({what}); "
                "complete the series, or resample it"
            )


def _check_upright(path: str, places: npt.NDArray[np.float64], normal: Vector) -> None:
    steps = np.diff(places, axis=0)
    along = steps @ normal
    shifts = np.linalg.norm(steps - along[:, np.newaxis] * normal, axis=1)
    worst = float((shifts / along).max())
    if worst > _TILTED:
        raise InputError(
            f"{path}: each slice is shifted against the last, by a gantry tilt of {degrees(np.arctan(worst)):.1f}°: "
            "its voxels are no boxes; correct the tilt first, e.g. with dcm2niix"
        )


def _alike(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.allclose(a, b, rtol=1e-4, atol=_SAME))


def _shown(kind: tuple[Any, ...]) -> str:
    rows, columns, samples, bits, signed = kind
    return f"{times([rows or 0, columns or 0, samples or 1])} of {bits} bits{', signed' if signed else ''}"
