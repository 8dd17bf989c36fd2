"""Zarr as xarray and rioxarray write it: arrays beside their coordinates, and a variable that says the map
projection."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
import zarr

from unet_engine.errors import InputError, of_store
from unet_engine.storage import stores
from unet_engine.units import unit_name
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.resolution import Resolution

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
        return _placed(found, group, dimensions, names)
    except Exception as error:
        if lost := of_store(error):
            raise InputError(f"the coordinates of {path} cannot be read: {lost.of(path)}; {lost.advice}") from error
        return found  # whatever lies beside it is none of these


def _dimensions(array: zarr.Array) -> Sequence[str] | None:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return names if isinstance(names, list | tuple) and all(isinstance(n, str) and n for n in names) else None


def _placed(found: Resolution, group: zarr.Group, dimensions: Sequence[str], names: str) -> Resolution:
    scale, translation, units = [1.0] * len(names), [0.0] * len(names), set[str]()
    for i, (axis, dimension) in enumerate(zip(names, dimensions, strict=True)):
        if axis not in "zyx":
            continue
        coordinate = group[dimension]
        if not isinstance(coordinate, zarr.Array) or coordinate.shape != (found.array.shape[i],):
            return found
        steps = _steps(coordinate)
        if steps is None:
            return found
        translation[i], scale[i] = steps
        units.add(str(coordinate.attrs.get("units", "")))
    crs = _crs(found.array, group)
    unit = unit_name(units.pop()) if len(units) == 1 else ""
    return replace(
        found,
        scale=scale,
        translation=translation,
        unit=found.unit or unit or None,
        frame=_frame(names, scale, translation, crs) if crs else None,
    )


def _steps(coordinate: zarr.Array) -> tuple[float, float] | None:
    """Where the first voxel lies and how far the next; None where they are not evenly spaced numbers."""
    if not 1 < coordinate.shape[0] <= _MOST or np.dtype(coordinate.dtype).kind not in "iuf":
        return None
    values = np.asarray(coordinate[:]).astype(np.float64)
    steps = np.diff(values)
    mean = float((values[-1] - values[0]) / len(steps))
    if not isfinite(mean) or not mean or np.abs(steps - mean).max() > _EVEN * abs(mean):
        return None
    return float(values[0]), mean


def _crs(array: zarr.Array, group: zarr.Group) -> str | None:
    """As WKT, of the variable that the array names, or that is called so usually."""
    name = str(array.attrs.get("grid_mapping", "spatial_ref"))
    try:
        said: Any = dict(group[name].attrs)
    except KeyError:
        return None
    wkt = said.get("crs_wkt") or said.get("spatial_ref")
    return wkt if isinstance(wkt, str) and wkt else None


def _frame(names: str, scale: Sequence[float], translation: Sequence[float], crs: str) -> Frame | None:
    if "".join(a for a in names if a in "zyx") != "yx":
        return None
    y, x = names.index("y"), names.index("x")
    return Frame.of([[scale[x], 0.0, translation[x]], [0.0, scale[y], translation[y]]], "crs", crs)
