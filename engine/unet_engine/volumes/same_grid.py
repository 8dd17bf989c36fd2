"""Whether stored volumes are on the same voxels, and what type holds the numbers of all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.units import micrometers, times
from unet_engine.volumes.base import Array, StoredVolume
from unet_engine.volumes.reference_systems import same_system

_OFF = 0.02
"""Voxels that one grid may lie beside another over all of it: headers round."""


def promoted(called: Sequence[str], volumes: Sequence[StoredVolume]) -> np.dtype[Any]:
    """The type that holds the numbers of all. Raises `InputError` where none does."""
    found = np.result_type(*(volume.dtype for volume in volumes))
    for name, volume in zip(called, volumes, strict=True):
        if found.kind == "f" and volume.dtype.kind in "iu":
            bits = 8 * volume.dtype.itemsize - (volume.dtype.kind == "i")
            if bits > np.finfo(found).nmant + 1:
                others = ", ".join(sorted({str(v.dtype) for v in volumes} - {str(volume.dtype)}))
                raise InputError(
                    f"{name} holds {volume.dtype} and what is beside it {others}: no type holds the numbers of both; "
                    "convert one, e.g. with unet-engine convert"
                )
    return found


def differs(volume: StoredVolume, other: StoredVolume) -> str:
    """Why the voxels of both are not the same ones, ending before the name of `other`; empty where they are, as far as
    both say it."""
    mine, theirs = volume.axes.replace("c", ""), other.axes.replace("c", "")
    if mine != theirs:
        return f"has the axes {mine}, unlike the {theirs} of"
    if volume.shape != other.shape:
        return f"is {times(volume.shape)}, unlike the {times(other.shape)} of"
    if volume.timepoints != other.timepoints:
        return f"has {volume.timepoints} time points, unlike the {other.timepoints} of"
    return _lies_apart(volume, other)


def _lies_apart(volume: StoredVolume, other: StoredVolume) -> str:
    """The same, of where voxels lie."""
    units = micrometers(1.0, volume.unit), micrometers(1.0, other.unit)
    known = units[0] is not None and units[1] is not None
    place, their_place = _place(volume, units[0] if known else 1.0), _place(other, units[1] if known else 1.0)
    if place is None or their_place is None:
        return ""
    (matrix, origin, world), (their_matrix, their_origin, their_world) = place, their_place
    if world and their_world and not same_system(world, their_world):
        if same_system(world, their_world) is None:
            return (
                "words its coordinate system otherwise, which rasterio or pyproj would compare (neither is here), than"
            )
        return "is in another coordinate system than"
    sizes, their_sizes = (np.linalg.norm(m, axis=0) for m in (matrix, their_matrix))
    room = _OFF * np.minimum(sizes, their_sizes)
    if (np.abs(sizes - their_sizes) * np.maximum(np.array(volume.shape) - 1, 1) > room).any():
        return f"has voxels of {_sizes(volume)}, unlike the {_sizes(other)} of"
    if _says_sizes_alone(volume, other) or _says_sizes_alone(other, volume):
        return ""
    ends = [np.array(end) for end in product(*((0, n - 1) for n in volume.shape))]
    apart = max(float(np.abs(matrix @ e + origin - their_matrix @ e - their_origin).max()) for e in ends)
    return "does not lie where it says of itself that it lies, beside" if apart > room.min() else ""


def _says_sizes_alone(volume: StoredVolume, other: StoredVolume) -> bool:
    """Whether `volume` says how large voxels are and nothing of where they lie, beside one that says both."""
    return not volume.frame and not any(volume.translation) and bool(other.frame)


def _sizes(volume: StoredVolume) -> str:
    found = volume.frame.sizes if volume.frame else volume.spacing or ()
    return f"{'×'.join(f'{abs(size):.6g}' for size in found)} {volume.unit or ''}".rstrip()


def _place(volume: StoredVolume, unit: float | None) -> tuple[Array, Array, str] | None:
    """A row of numbers for each axis of the world, where the first voxel lies, and what that world is; in micrometres,
    of which `unit` are one of the volume's."""
    unit = unit or 1.0
    if volume.frame:
        frame = volume.frame.seen_in("LPS")
        return np.array(frame.matrix) * unit, np.array(frame.origin) * unit, frame.crs or frame.space.replace("crs", "")
    if volume.spacing is None:
        return None
    return np.diag(volume.spacing)[::-1] * unit, np.array(volume.translation[::-1]) * unit, ""
