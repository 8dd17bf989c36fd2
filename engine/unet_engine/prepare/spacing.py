"""Whether voxels are as large as those a network was trained on. What is not known is told, what differs is refused."""

from __future__ import annotations

from collections.abc import Sequence

from unet_engine.errors import InputError
from unet_engine.model.spec import ModelSpec
from unet_engine.units import micrometers, unit_name
from unet_engine.volumes.base import Volume

TOLERANCE = 1.2
"""Factor by which a network bears voxels that are larger or smaller than in its training; augmentation goes further."""


def check_spacing(volume: Volume, spec: ModelSpec, notes: list[str], *, ignore: bool) -> None:
    """Compare the voxels of `volume` with those that `spec` says the network was trained on, along each of its axes.

    Raises `InputError` naming both where they differ by more than `TOLERANCE`, unless the user has it ignored: then it
    is a note. So it is where they cannot be compared, as one of the two does not say how large its voxels are.
    """
    if not spec.spacing:
        return
    trained = _shown(spec.axes, spec.spacing, spec.spacing_unit)
    if not volume.spacing:
        notes.append(f"{volume.path} does not say how large its voxels are; {spec.name} was trained on {trained}")
        return
    # the spatial axes are z, y, x, and a network has the last of them
    own = volume.spacing[-len(spec.axes) :]
    found = _shown(spec.axes, own, volume.unit)
    ratios = _ratios(own, volume.unit, spec)
    if ratios is None:
        notes.append(
            f"voxels of {volume.path} are {found}, {spec.name} was trained on {trained}: "
            "these units cannot be compared, so nothing tells whether they are alike"
        )
        return
    apart = [
        f"{ratio:.3g} times as large along {axis}"
        for axis, ratio in zip(spec.axes, ratios, strict=True)
        if not 1 / TOLERANCE <= ratio <= TOLERANCE
    ]
    if not apart:
        return
    said = f"voxels of {volume.path} are {found}, {spec.name} was trained on {trained}: {', '.join(apart)}"
    if not ignore:
        raise InputError(
            f"{said}; resample the volume, or take the level of it that fits, or use --ignore-spacing to run all the "
            "same"
        )
    notes.append(f"{said}; ignored, as --ignore-spacing says")


def in_units_of(volume: Volume, spec: ModelSpec) -> tuple[float, ...] | None:
    """The spacing of `volume`, along all its axes, in the unit of the spacing of `spec`; None where there is none, or
    no common unit."""
    if not spec.spacing or not volume.spacing:
        return None
    factor = _factor(volume.unit, spec)
    return None if factor is None else tuple(abs(s * factor) for s in volume.spacing)


def _ratios(own: Sequence[float], unit: str | None, spec: ModelSpec) -> list[float] | None:
    """Per axis the length of the volume's voxels over that of training's; None where they have no common unit."""
    assert spec.spacing
    factor = _factor(unit, spec)
    return (
        None if factor is None else [abs(s * factor / t) if t else 1.0 for s, t in zip(own, spec.spacing, strict=True)]
    )


def _factor(unit: str | None, spec: ModelSpec) -> float | None:
    """What lengths in `unit` are multiplied by to be in the unit of the spacing of `spec`."""
    if not any(spec.spacing or ()):  # 0 says that any is right, or that the file does not know it
        return None
    if unit and unit_name(unit) == unit_name(spec.spacing_unit):
        return 1.0
    a, b = micrometers(1.0, unit), micrometers(1.0, spec.spacing_unit)
    return a / b if a and b else None


def _shown(axes: str, spacing: Sequence[float], unit: str | None) -> str:
    """``z 40, y 4, x 4 nanometer``."""
    lengths = ", ".join(f"{a} {s:g}" if s else f"{a} any" for a, s in zip(axes, spacing, strict=True))
    return f"{lengths} {unit_name(unit) if unit else 'in no unit'}"
