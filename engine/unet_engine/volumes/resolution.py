"""What is said of a Zarr array: `Resolution`, and what the array's own attributes come to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import zarr

from unet_engine.errors import InputError
from unet_engine.units import unit_name
from unet_engine.volumes.axis_names import letter
from unet_engine.volumes.frame import Frame


def unlike(path: str, here: tuple[str, int], full: tuple[str, int]) -> tuple[str, ...]:
    """What the user is told of the level at `path` whose type and number of channels are not those of the full
    resolution, of which models know the values and the order of channels."""
    (kind, count), (other, others) = here, full
    found = []
    if kind != other:
        found.append(f"{path} is a level of {kind} of a pyramid of {other}: its values are read as they are stored")
    if count != others:
        found.append(
            f"{path} is a level whose channels number {count}, of a pyramid of {others}: which these are is not said"
        )
    return tuple(found)


@dataclass(frozen=True)
class Resolution:
    """An array, and what it or the group around it says of it: per axis as they are stored."""

    array: zarr.Array
    axes: tuple[str, ...] | None = None
    """Names in lower case, of any length; None where nobody names them."""
    scale: list[float] | None = None
    translation: list[float] | None = None
    unit: str | None = None
    notes: tuple[str, ...] = ()
    """What was said but could not be understood, or is unusual, as the user is told."""
    channel_names: tuple[str, ...] = ()
    frame: Frame | None = None

    def completed(self, path: str, names: str) -> Resolution:
        """The same with what the array's own attributes say, where nothing else says it. `names`: of its axes.

        `resolution` or `voxel_size`, `offset` and `units` are those of CREMI, funlib and daisy: world units, for all
        axes or the spatial ones. Raises `InputError` where a scale is no distance.
        """
        found = self if self.scale else self._with_attributes(path, names)
        notes = list(found.notes)
        for axis, s, t in zip(
            names, found.scale or (1.0,) * len(names), found.translation or (0.0,) * len(names), strict=True
        ):
            if axis in "zyx" and (s == 0 or not isfinite(s) or not isfinite(t)):
                raise InputError(
                    f"{path}: its metadata give the scale {s:g} and the translation {t:g} along {axis}, "
                    "which is no place in space; correct them"
                )
            if axis in "zyx" and s < 0:
                notes.append(
                    f"{path} runs backwards along {axis} (scale {s:g}): voxels are taken as they are stored, "
                    "and the output keeps the sign"
                )
        return replace(found, notes=tuple(notes))

    def _with_attributes(self, path: str, names: str) -> Resolution:
        attributes = dict(self.array.attrs)
        key = next((k for k in ("resolution", "voxel_size") if attributes.get(k) is not None), None)
        try:
            scale = _per_axis(attributes, key, names, 1.0)
            # an offset alone may be anything, e.g. the summand of packed integers
            translation = _per_axis(attributes, "offset", names, 0.0) if key else None
            unit = _unit(attributes.get("units"))
        except (TypeError, ValueError, OverflowError) as error:
            said = f"{path}: its attributes resolution, offset and units are not understood ({error}): left out"
            return replace(self, notes=(*self.notes, said))
        if scale is None:
            return self
        return replace(self, scale=scale, translation=self.translation or translation, unit=self.unit or unit)


def own_names(array: zarr.Array) -> tuple[str, ...] | None:
    """Names that `array` has for its axes, as letters where it is known which, else in lower case; None where it has
    none, or such as xarray makes up."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if not isinstance(names, list | tuple) or all(not n or re.fullmatch(r"dim_\d+", str(n)) for n in names):
        return None
    return tuple(letter(str(n or "")) for n in names)


def _per_axis(attributes: Mapping[str, Any], key: str | None, names: str, other: float) -> list[float] | None:
    """The numbers under `key` for each of `names`; `other` where they are for the spatial axes alone."""
    values = attributes.get(key) if key else None
    if values is None:
        return None
    if not isinstance(values, list | tuple):
        raise TypeError(f"{key} is {values!r}")
    numbers = [float(v) for v in values]
    if len(numbers) == len(names):
        return numbers
    spatial = [a for a in names if a in "zyx"]
    if len(numbers) != len(spatial):
        raise ValueError(f"{key} has {len(numbers)} entries for the axes {names}")
    of = dict(zip(spatial, numbers, strict=True))
    return [of.get(a, other) for a in names]


def _unit(units: Any) -> str | None:
    """The one unit of `units`, a name or one per axis; those of no spatial axis may be empty."""
    given = dict.fromkeys(str(u) for u in ([units] if isinstance(units, str) else units or ()) if u)
    named = dict.fromkeys(unit_name(u) for u in given)
    if len(named) > 1:
        raise ValueError(f"units are {', '.join(given)}")
    return next(iter(named), None)
