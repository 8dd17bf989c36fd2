"""Whether a volume lies as those that a network was trained on. What is not known is told, what differs is refused."""

from __future__ import annotations

from unet_engine.errors import InputError
from unet_engine.model.spec import ModelSpec
from unet_engine.volumes.base import Volume


def check_orientation(volume: Volume, spec: ModelSpec, notes: list[str], *, ignore: bool) -> None:
    """Compare where z, y and x of `volume` point with where `spec` says they have to.

    Raises `InputError` naming both where they differ, unless the user has it ignored: then it is a note. So it is where
    the volume does not say how it lies."""
    if spec.orientation is None:
        return
    trained = f"{spec.name} was trained on {spec.orientation}"
    found = volume.frame.orientation if volume.frame else None
    if found is None:
        notes.append(f"{volume.path} does not say where its z, y and x point; {trained}")
        return
    if found == spec.orientation:
        return
    said = f"z, y and x of {volume.path} point to {found}, {trained}"
    if not ignore:
        raise InputError(
            f"{said}; turn the volume (see docs/volumes.md), or use --ignore-spacing to run it as it lies all the same"
        )
    notes.append(f"{said}; ignored, as --ignore-spacing says")
