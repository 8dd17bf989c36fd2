"""OME-Zarr groups (0.4 and 0.5): which array is the full resolution, what its axes are, where it lies in space."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zarr

from unet_engine.errors import InputError, first_line


@dataclass(frozen=True)
class Resolution:
    """One array of a group, and what the group says of it: per axis as they are stored."""

    array: zarr.Array
    axes: str | None = None
    scale: list[float] | None = None
    translation: list[float] | None = None
    unit: str | None = None


def full_resolution(path: str, group: zarr.Group) -> Resolution:
    """That of the first image in the multiscales of `group`. Raises `InputError` where there is no valid one."""
    attributes = dict(group.attrs)
    scales = dict(attributes.get("ome", attributes)).get("multiscales")
    if not scales:
        inside = ", ".join(_children(group)) or "none"
        raise InputError(
            f"{path} is a Zarr group without OME multiscales; name one of the arrays in it ({inside}), e.g. {path}/NAME"
        )
    try:
        level = scales[0]["datasets"][0]
        declared = scales[0].get("axes") or []
        names = "".join(a["name"] if isinstance(a, dict) else a for a in declared).lower() or None
        units = [a.get("unit") for a in declared if isinstance(a, dict) and a.get("type") == "space"]
        scale, translation = _placed(
            [*level.get("coordinateTransformations", []), *scales[0].get("coordinateTransformations", [])]
        )
        where = str(level["path"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path}: its OME multiscales are not valid ({first_line(error)}); name the array itself, e.g. {path}/0"
        ) from error
    try:
        array = zarr.open_array(group.store_path / where, mode="r")
    except Exception as error:
        raise InputError(
            f"{path}: its full resolution {where!r} cannot be opened: {first_line(error)}; "
            f"restore it, or name another array, e.g. {path}/1"
        ) from error
    if any(values is not None and len(values) != array.ndim for values in (scale, translation)):
        raise InputError(
            f"{path}: scale or translation do not fit the {array.ndim} axes of {where!r}; "
            f"name the array itself: {path}/{where}"
        )
    return Resolution(array, names, scale, translation, units[-1] if units else None)


def _placed(moves: Sequence[Mapping[str, Any]]) -> tuple[list[float] | None, list[float] | None]:
    """Scale and translation that `moves`, done one after the other, come to. A resolution's own come before those of
    all resolutions."""
    scale: list[float] | None = None
    translation: list[float] | None = None
    for move in moves:
        kind = move["type"]
        values = [float(v) for v in move[kind]] if kind in ("scale", "translation") else []
        if kind == "scale":
            scale = [s * v for s, v in zip(scale or [1.0] * len(values), values, strict=True)]
            translation = translation and [t * v for t, v in zip(translation, values, strict=True)]
        elif kind == "translation":
            translation = [t + v for t, v in zip(translation or [0.0] * len(values), values, strict=True)]
    return scale, translation


def _children(group: zarr.Group) -> list[str]:
    """Names of what lies in `group`; zarr warns of every file in it that is none of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(name for name, _ in group.members())
