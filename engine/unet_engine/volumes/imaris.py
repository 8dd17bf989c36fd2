"""Imaris (``.ims``): HDF5 whose datasets are filled up to whole chunks, and which says beside them how large an image is
and where its edges lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

from unet_engine.units import unit_name


def text(value: object) -> str:
    """An attribute as Imaris writes text: an array of single characters."""
    parts = value if isinstance(value, list) else [value]
    return "".join(part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in parts)


def size_of(beside: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Of a dataset along z, y, x: how much of it is image, by the attributes of its channel; None for none of Imaris'.
    Raises `ValueError` where that makes no sense."""
    said = [beside.get(f"ImageSize{axis}") for axis in "ZYX"]
    if len(shape) != 3 or None in said:
        return None
    size = tuple(int(text(value)) for value in said)
    if not all(0 < n <= m for n, m in zip(size, shape, strict=True)):
        raise ValueError(f"its image is {size} voxels, and {shape} are stored")
    return size


def read(one: Any, data: Any, selection: Any) -> Any:
    """What a dataset `data` holds in `selection`, read as the volume `one` of another dataset like it is."""
    return replace(one, data=data).stored(selection)


def placed(image: Mapping[str, Any], size: tuple[int, ...]) -> tuple[list[float], list[float], str] | None:
    """Spacing, where the first voxel lies, and unit, by the attributes of ``DataSetInfo/Image``, which say where the
    edges of the image are; None where they make no sense."""
    try:
        low, high = ([float(text(image[f"Ext{end}{axis}"])) for axis in (2, 1, 0)] for end in ("Min", "Max"))
    except (KeyError, ValueError):
        return None
    spacing = [(hi - lo) / n for lo, hi, n in zip(low, high, size, strict=True)]
    if not all(map(isfinite, [*low, *spacing])) or min(spacing) <= 0:
        return None
    unit = unit_name(text(image.get("Unit", "um"))) or "micrometer"
    return spacing, [lo + step / 2 for lo, step in zip(low, spacing, strict=True)], unit
