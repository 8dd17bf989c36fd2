"""How a volume has to be turned so that it lies as those that a network was trained on."""

from __future__ import annotations

from unet_engine.model.spec import ModelSpec
from unet_engine.volumes.base import Volume
from unet_engine.volumes.turn import Turn
from unet_engine.volumes.turned import Turned

OBLIQUE = 1.0
"""Degrees from which on people are told that voxels do not lie along the axes that they are taken for."""
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def lying(volume: Volume, spec: ModelSpec, notes: list[str], *, ignore: bool) -> Volume:
    """`volume` with z, y and x pointing where `spec` says that they have to: itself, or seen turned, which is told. So
    is where it does not say how it lies. ignore: the user has it taken as it lies, which is told where it matters."""
    if spec.orientation is None:
        return volume
    trained = f"{spec.name} was trained on {spec.orientation}"
    found = volume.frame.orientation if volume.frame else None
    if found is None:
        notes.append(f"{volume.path} does not say where its z, y and x point; {trained}")
        return volume
    if volume.frame and (tilt := volume.frame.tilt) > OBLIQUE and not ignore:
        notes.append(f"{volume.path} lies obliquely, {tilt:.0f} degrees from {found}, which it is taken for")
    if found == spec.orientation:
        return volume
    said = f"z, y and x of {volume.path} point to {found}, {trained}"
    if ignore:
        notes.append(f"{said}; ignored, as --ignore-spacing says")
        return volume
    notes.append(f"{said}: windows are cut turned, and the result lies as the volume does")
    return Turned(volume, _turn(found, spec.orientation, volume.shape))


def _turn(found: str, wanted: str, shape: tuple[int, ...]) -> Turn:
    """By which axes that point as `found` says come to point as `wanted`."""
    order = tuple(next(i for i, name in enumerate(found) if name in (w, _OPPOSITE[w])) for w in wanted)
    backwards = tuple(found[i] != w for i, w in zip(order, wanted, strict=True))
    return Turn(order, backwards, shape)
