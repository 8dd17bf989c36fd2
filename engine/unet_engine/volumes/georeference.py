"""What CF, rioxarray and GeoZarr say of a map in attributes: its reference system, and where its pixels lie."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from typing import Any

from unet_engine import units
from unet_engine.units import brief, unit_name
from unet_engine.volumes.frame import Frame

Attributes = Mapping[str, Any]
_WKT = ("crs_wkt", "spatial_ref", "proj:wkt2", "wkt")
_OTHERWISE = ("proj:projjson", "proj:code", "proj:epsg", "epsg_code", "crs")
"""Attributes whose value PROJ knows: a code, PROJJSON or WKT."""
_DEGREES = re.compile("degrees?(_?(north|east|N|E))?")


def mapping_of(attributes: Attributes) -> str:
    """The name of the variable that says the projection: CF may list the coordinates that it is for behind a colon."""
    said = str(attributes.get("grid_mapping") or "spatial_ref")
    return said.partition(":")[0].split()[0] if said.strip(": ") else "spatial_ref"


def crs_of(sources: Sequence[Attributes]) -> tuple[str | None, tuple[str, ...]]:
    """The reference system as WKT, of the first of `sources` that says it (the variable of the projection, the array,
    its group); and what the user is told where one is said that is not understood."""
    for source in sources:
        for key in _WKT:
            if isinstance(source.get(key), str) and source[key]:
                return source[key], ()
    for source in sources:
        for key in _OTHERWISE:
            if source.get(key):
                return _known(source[key])
        if source.get("grid_mapping_name"):
            return _of_parameters(source)
    return None, ()


def _known(value: Any) -> tuple[str | None, tuple[str, ...]]:
    """WKT of a code, of PROJJSON, or of a number of EPSG's."""
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    text = f"EPSG:{text}" if text.isdigit() else text
    try:
        rasterio = importlib.import_module("rasterio")
        with rasterio.Env():  # without it GDAL writes what is wrong to stderr by itself
            return str(rasterio.crs.CRS.from_user_input(text).to_wkt()), ()
    except ImportError:
        why = "rasterio tells what that is: pip install 'unet-engine[geo]'"
    except Exception:
        why = "which is none that is known"
    return None, (f"its reference system is said to be {brief(text)}; {why}: left out",)


def _of_parameters(source: Attributes) -> tuple[str | None, tuple[str, ...]]:
    """WKT of the parameters of CF."""
    name = brief(source["grid_mapping_name"])
    try:
        pyproj = importlib.import_module("pyproj")
        return str(pyproj.CRS.from_cf(dict(source)).to_wkt()), ()
    except ImportError:
        why = "pyproj makes it of them, which comes with 'unet-engine[polygons]'"
    except Exception:
        why = "which make none"
    return None, (f"its reference system is said by parameters of CF ({name}); {why}: left out",)


def unit_along(name: str, said: Mapping[str, str]) -> tuple[str | None, dict[str, float], tuple[str, ...]]:
    """The unit that the coordinates of each axis of the array `name` name, by axis what lengths are multiplied by to be
    in it, and what the user is told where they have none in common: they are numbers then."""
    plain = {axis: "degree" if _DEGREES.fullmatch(unit.strip()) else unit for axis, unit in said.items()}
    unit, factors, notes = units.unit_along(plain)
    return unit, factors, tuple(f"{name}: {note}" for note in notes)


def unit_of(crs: str | None) -> str | None:
    """The unit of a reference system; None where it is not known."""
    with suppress(Exception):
        rasterio = importlib.import_module("rasterio")
        with rasterio.Env():
            found = rasterio.crs.CRS.from_wkt(crs) if crs else None
            if found:
                return "degree" if found.is_geographic else unit_name(str(found.linear_units))
    return None


TRANSFORMS = ("GeoTransform", "spatial:transform", "proj:transform")
"""Attributes that say an affine transform of x and y."""


def affine(source: Attributes) -> tuple[float, ...]:
    """The transform of `source`, which has one of `TRANSFORMS`, in the order of rasterio's: x by column and row, where
    it begins; y. Raises `ValueError` and `TypeError` for what is none."""
    key = next(key for key in TRANSFORMS if key in source)
    values = _six(source[key])
    # the draft of ``proj:transform`` says that its order is GDAL's, and all examples have rasterio's
    gdal = key == "GeoTransform" or (key == "proj:transform" and any(values[1:4:2]) and not any(values[2:5:2]))
    if gdal:
        c, a, b, f, d, e = values
        return a, b, c, d, e, f
    return tuple(values)


def frame_of(sources: Sequence[Attributes], crs: str | None) -> Frame | None:
    """Where the middles of pixels of a map lie by an affine transform of x and y, of the first of `sources` that says
    one: ``GeoTransform`` of GDAL, ``spatial:transform`` or ``proj:transform`` of GeoZarr."""
    for source in sources:
        with suppress(TypeError, ValueError, AttributeError, StopIteration):
            a, b, c, d, e, f = affine(source)
            at_nodes = "GeoTransform" not in source and source.get("spatial:registration") == "node"
            return _placed(a, b, c, d, e, f, crs=crs, half=0.0 if at_nodes else 0.5)
    return None


def _six(said: Any) -> list[float]:
    values = [float(v) for v in (said.replace(",", " ").split() if isinstance(said, str) else said)]
    if not all(map(isfinite, values)) or not 6 <= len(values) <= 9:
        raise ValueError
    return values[:6]


def _placed(a: float, b: float, c: float, d: float, e: float, f: float, *, crs: str | None, half: float) -> Frame:
    """half: how far the middle of the first pixel lies from where the transform begins, in pixels"""
    if a * e == b * d or ((a, b, c, d, e, f) == (1, 0, 0, 0, 1, 0) and not crs):
        raise ValueError  # pixels of no area, or what stands for nothing known
    return Frame.of([[a, b, c + (a + b) * half], [d, e, f + (d + e) * half]], "crs", crs)


def is_map(names: str) -> bool:
    """Whether y and x are the spatial axes of `names`."""
    return "".join(a for a in names if a in "zyx") == "yx"


def upright(names: str, scale: Sequence[float], translation: Sequence[float], crs: str | None) -> Frame | None:
    """The frame of a map whose pixels run along the axes of `crs`; None of what is no map."""
    if not crs or not is_map(names):
        return None
    y, x = names.index("y"), names.index("x")
    return Frame.of([[scale[x], 0.0, translation[x]], [0.0, scale[y], translation[y]]], "crs", crs)


def per_axis(frame: Frame, names: str) -> tuple[list[float], list[float]]:
    """Spacing and translation of a map's `frame` for each of the axes `names`."""
    of = {"y": 0, "x": 1}
    return (
        [frame.spacing[of[a]] if a in of else 1.0 for a in names],
        [frame.translation[of[a]] if a in of else 0.0 for a in names],
    )
