"""Zarr as xarray and rioxarray write it: arrays beside their coordinates, and a variable that says the map
projection."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
import zarr

from unet_engine.errors import InputError, of_store
from unet_engine.storage import stores
from unet_engine.volumes import georeference, geozarr
from unet_engine.volumes.base import Array, Timing
from unet_engine.volumes.resolution import Resolution
from unet_engine.volumes.timing import even, unit_of_time

_MOST = 2**22
"""Coordinates along an axis that are read."""
_EVEN = 1e-3


def only_volume(group: zarr.Group) -> str | None:
    """The name of the only array in `group` that has two axes or more and is called like a variable of xarray's; None
    where there are several, or none says what its axes are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every file in it that is none of zarr's own
        found = [name for name, node in group.arrays() if node.ndim > 1 and _dimensions(node)]
    return found[0] if len(found) == 1 else None


def located(found: Resolution, path: str, names: str) -> Resolution:
    """`found`, an array called `path`, with spacing, translation and frame of the coordinates beside it, where these
    are evenly spaced; as it is where there are none. `names`: of its axes. What makes no sense says nothing."""
    dimensions = _dimensions(found.array)
    if found.scale or not dimensions:
        return found
    try:
        group = stores.open_group(path.rstrip("/").rpartition("/")[0], "r")
        return _placed(found, path, group, dimensions, names)
    except Exception as error:
        if lost := of_store(error):
            raise InputError(f"the coordinates of {path} cannot be read: {lost.of(path)}; {lost.advice}") from error
        return found  # whatever lies beside it is none of these


def fill_value(found: Resolution) -> dict[str, Any]:
    """The attribute ``_FillValue`` that xarray keeps as the fill value of an array of Zarr v2. A 0 there is what other
    writers leave as well, and is meant on a map alone."""
    array = found.array
    fill = array.fill_value if array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in array.attrs else None
    if fill is None or np.dtype(array.dtype).kind not in "iuf" or not (fill or (found.frame and found.frame.crs)):
        return {}
    return {"_FillValue": np.asarray(fill).item()}


def _dimensions(array: zarr.Array) -> Sequence[str] | None:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return names if isinstance(names, list | tuple) and all(isinstance(n, str) and n for n in names) else None


def _placed(found: Resolution, path: str, group: zarr.Group, dimensions: Sequence[str], names: str) -> Resolution:
    sources: list[Mapping[str, Any]] = [
        _attributes(group, georeference.mapping_of(found.array.attrs)),
        dict(found.array.attrs),
    ]
    if not geozarr.is_pyramid(group):  # which says where its finest level lies
        sources.append(dict(group.attrs))
    of_crs, of_place = geozarr.said_above(path, found.array)
    crs, notes = georeference.crs_of([*sources, *of_crs])
    sources += of_place
    found = replace(found, notes=(*found.notes, *(f"{path}: {note}" for note in notes)))
    placed = _by_coordinates(found, group, dimensions, names, crs)
    if placed is None and georeference.is_map(names) and (frame := georeference.frame_of(sources, crs)):
        scale, translation = georeference.per_axis(frame, names)
        unit = found.unit or georeference.unit_of(crs)
        placed = replace(found, scale=scale, translation=translation, unit=unit, frame=frame)
    return placed or found


def _attributes(group: zarr.Group, name: str) -> dict[str, Any]:
    """Of what is called `name` in `group`; none where nothing is."""
    try:
        return dict(group[name].attrs)
    except KeyError:
        return {}


def _by_coordinates(
    found: Resolution, group: zarr.Group, dimensions: Sequence[str], names: str, crs: str | None
) -> Resolution | None:
    scale, translation, units = [1.0] * len(names), [0.0] * len(names), dict[str, str]()
    for i, (axis, dimension) in enumerate(zip(names, dimensions, strict=True)):
        if axis not in "zyx":
            continue
        coordinate = group.get(dimension)
        if not isinstance(coordinate, zarr.Array) or coordinate.shape != (found.array.shape[i],):
            return None
        steps = _steps(coordinate)
        if steps is None:
            return None
        translation[i], scale[i] = steps
        units[axis] = str(coordinate.attrs.get("units", ""))
    unit, factors, notes = georeference.unit_along(found.array.path, units)
    scale = [s * factors.get(a, 1.0) for s, a in zip(scale, names, strict=True)]
    translation = [t * factors.get(a, 1.0) for t, a in zip(translation, names, strict=True)]
    return replace(
        found,
        scale=scale,
        translation=translation,
        unit=found.unit or unit or (None if notes else georeference.unit_of(crs)),
        notes=(*found.notes, *notes),
        frame=georeference.upright(names, scale, translation, crs),
    )


def timing(array: zarr.Array, path: str, names: str) -> Timing | None:
    """Of the time points of the array at `path`, by the coordinates beside it, whose unit may go on as in "days since
    2000-01-01"; None where nothing says it, or they are not evenly spaced. `names`: of its axes."""
    dimensions = _dimensions(array)
    if "t" not in names or not dimensions:
        return None
    with suppress(Exception):  # whatever lies beside it is none of these
        group = stores.open_group(path.rstrip("/").rpartition("/")[0], "r")
        coordinate = group.get(dimensions[names.index("t")])
        if isinstance(coordinate, zarr.Array) and coordinate.shape == (array.shape[names.index("t")],):
            values = _numbers(coordinate)
            unit = str(coordinate.attrs.get("units", "")).partition(" since ")[0]
            return None if values is None else even(values.tolist(), unit_of_time(unit))
    return None


def _numbers(coordinate: zarr.Array) -> Array | None:
    """What coordinates stand for; None where they are no numbers, or too many."""
    if not 1 < coordinate.shape[0] <= _MOST or np.dtype(coordinate.dtype).kind not in "iuf":
        return None
    said: dict[str, Any] = dict(coordinate.attrs)
    scale, offset = float(said.get("scale_factor", 1.0)), float(said.get("add_offset", 0.0))
    return np.asarray(coordinate[:]).astype(np.float64) * scale + offset


def _steps(coordinate: zarr.Array) -> tuple[float, float] | None:
    """Where the first voxel lies and how far the next; None where they are not evenly spaced numbers."""
    values = _numbers(coordinate)
    if values is None:
        return None
    steps = np.diff(values)
    mean = float((values[-1] - values[0]) / len(steps))
    if not isfinite(mean) or not mean or np.abs(steps - mean).max() > _EVEN * abs(mean):
        return None
    return float(values[0]), mean
