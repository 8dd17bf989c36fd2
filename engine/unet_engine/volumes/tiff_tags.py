"""What a TIFF says of the size of its voxels, in the words of OME, ImageJ, Zeiss or TIFF itself."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np

from unet_engine.units import micrometers, shared_unit, unit_name
from unet_engine.volumes import alpha, nodata
from unet_engine.volumes.base import Timing
from unet_engine.volumes.frame import covered
from unet_engine.volumes.timing import stepped, unit_of_time

_SCREEN = (72, 75, 90, 96, 100, 120, 144, 150, 180, 200, 240, 300, 350, 360, 400, 600, 1200, 2400)
"""Pixels per inch that say how a picture is to be shown or printed, and nothing of what is in it."""


@dataclass(frozen=True)
class Placed:
    """Per axis as stored; None where it is not known."""

    spacing: list[float] | None = None
    translation: list[float] | None = None
    unit: str | None = None
    notes: tuple[str, ...] = ()

    def coarser(self, full: Sequence[int], shape: Sequence[int]) -> Placed:
        """Of a level of this `shape`, whose voxels cover those of the `full` one."""
        if self.spacing is None:
            return self
        factors = [covered(n, m) for n, m in zip(full, shape, strict=True)]
        start = self.translation or [0.0] * len(factors)
        spacing = [s * f for s, f in zip(self.spacing, factors, strict=True)]
        shifted = [t + (f - 1) / 2 * s for t, s, f in zip(start, self.spacing, factors, strict=True)]
        return replace(self, spacing=spacing, translation=shifted)


def placed(series: Any, names: str) -> Placed:
    """Where the voxels of a series of tifffile's lie; `names` are its axes. Metadata that make no sense say nothing."""
    for read in (_ome, _imagej, _lsm, _resolution):
        try:
            found = read(series)
        except Exception as error:
            return Placed(notes=(f"the TIFF's metadata are not understood ({error}): its voxel size is left out",))
        if found is None:
            continue
        sizes, unit = found
        spatial = [a for a in names if a in "zyx"]
        if all(sizes.get(a) for a in spatial):
            return Placed([sizes.get(a) or 1.0 for a in names], None, unit)
        known = [a for a in spatial if sizes.get(a)]
        return Placed(notes=_partly(known, spatial) if known else ())
    return Placed()


def _partly(known: Sequence[str], spatial: Sequence[str]) -> tuple[str, ...]:
    missing = " and ".join(a for a in spatial if a not in known)
    return (f"the TIFF says how large its voxels are along {' and '.join(known)}, not along {missing}: left out",)


def _number(value: object) -> float | None:
    number = float(str(value))
    return number if isfinite(number) and number > 0 else None


_Found = tuple[dict[str, float | None], str | None] | None


def _ome(series: Any) -> _Found:
    of_image = _ome_image(series)
    if of_image is None:
        return None
    pixels = next(e for e in of_image.iter() if e.tag.rpartition("}")[2] == "Pixels")
    units = {a: unit_name(pixels.get(f"PhysicalSize{a.upper()}Unit", "µm")) for a in "zyx"}
    sizes = {a: pixels.get(f"PhysicalSize{a.upper()}") for a in "zyx"}
    known = {a: _number(s) for a, s in sizes.items() if s is not None}
    if len({units[a] for a in known}) < 2:
        return {**known}, next((units[a] for a in known), None)
    shared_unit({a: units[a] for a in known})  # raises where there is none
    return {a: micrometers(s, units[a]) if s else None for a, s in known.items()}, "micrometer"


def _ome_image(series: Any) -> Any:
    """What OME says of the image that a series is; None where nothing."""
    text = series.parent.ome_metadata if series.parent.is_ome else None
    if not text or series.kind != "ome":
        return None
    images = [e for e in xml.fromstring(text).iter() if e.tag.rpartition("}")[2] == "Image"]
    if len(images) == len(series.parent.series):
        return images[series.parent.series.index(series)]
    called = [e for e in images if e.get("Name") == series.name]  # those without planes are no series
    return called[0] if len(called) == 1 else None


def timing_of(series: Any) -> Timing | None:
    """When its time points were taken; None where nothing says it, or that makes no sense."""
    with suppress(Exception):
        if (of_image := _ome_image(series)) is not None:
            pixels = next(e for e in of_image.iter() if e.tag.rpartition("}")[2] == "Pixels")
            said = pixels.get("TimeIncrement")
            return (
                None if said is None else stepped(float(said), 0.0, unit_of_time(pixels.get("TimeIncrementUnit", "s")))
            )
        if series.kind == "imagej":
            said = dict(series.parent.imagej_metadata or {})
            return stepped(float(said.get("finterval", 0)), 0.0, unit_of_time(str(said.get("tunit", "sec"))))
        if series.kind == "lsm":
            return stepped(float(series.parent.lsm_metadata["TimeIntervall"]), 0.0, "second")
    return None


def _imagej(series: Any) -> _Found:
    if series.kind != "imagej":
        return None
    said = dict(series.parent.imagej_metadata or {})
    unit = unit_name(str(said.get("unit", "")).replace("\\u00B5", "µ").replace("\\u00b5", "µ"))
    if unit in ("", "pixel"):
        return {}, None
    x, y = series.keyframe.resolution
    return {"x": 1 / x if x else None, "y": 1 / y if y else None, "z": _number(said.get("spacing", 1))}, unit


def _lsm(series: Any) -> _Found:
    if series.kind != "lsm":
        return None
    said = series.parent.lsm_metadata
    return {a: (_number(said[f"VoxelSize{a.upper()}"] * 1e6)) for a in "zyx"}, "micrometer"


def _resolution(series: Any) -> _Found:
    page = series.keyframe
    inches = {2: 25400.0, 3: 10000.0}.get(int(page.resolutionunit))
    x, y = page.resolution
    if not inches or 282 not in page.tags or 283 not in page.tags or min(x, y) <= 0:
        return None
    if (page.resolutionunit == 2 and round(x) in _SCREEN) or min(x, y) <= 1:
        return None
    return {"x": inches / x, "y": inches / y}, "micrometer"


_ALPHA = (1, 2)
"""ExtraSamples of TIFF: associated alpha, and not associated."""


def alphas(series: Any, names: str) -> tuple[int, ...]:
    """Which channels of a series are alpha, by its ExtraSamples, or by what OME calls them; `names` are its axes."""
    page, at = series.keyframe, names.find("c")
    if at < 0:
        return ()
    if series.axes[at] == "S":
        extra = [int(kind) for kind in page.extrasamples]
        return tuple(page.samplesperpixel - len(extra) + i for i, kind in enumerate(extra) if kind in _ALPHA)
    return alpha.named(channels_of(series, names), {}, series.shape[at])


def channels_of(series: Any, names: str) -> tuple[str, ...]:
    """What OME calls the channels of a series, whose axes are `names`; empty where it does not call each by a name."""
    at = names.find("c")
    if at < 0 or series.axes[at] != "C":
        return ()
    found = tuple(_ome_channels(series))
    return found if len(found) == series.shape[at] and all(found) else ()


def _ome_channels(series: Any) -> list[str]:
    """What OME calls the channels of a series; nothing where that makes no sense."""
    try:
        image = _ome_image(series)
    except Exception:
        return []
    found = () if image is None else image.iter()
    return [str(e.get("Name", "")) for e in found if e.tag.rpartition("}")[2] == "Channel"]


def nodata_of(page: Any, dtype: np.dtype[Any]) -> tuple[float, ...]:
    """The value that GDAL's tag names for pixels that were not measured."""
    tag = page.tags.get(42113)
    return nodata.said({"GDAL_NODATA": str(tag.value).strip("\0 ")}, dtype) if tag else ()
