"""Values that mean 'nothing was measured here': what a volume's attributes say of them, and where they lie. Pure."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from math import isfinite, isnan
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Missing = tuple[tuple[float, ...], ...]
"""Such values, of each channel; empty where no channel has any."""
KEYS = (
    "_FillValue",
    "missing_value",
    "nodata",
    "nodatavals",
    "GDAL_NODATA",
    "no_data",
    "nodata_value",
    "nodata_values",
)
"""Attributes that say it, in any case: CF and xarray, GDAL and rasterio, and what others call it. The fill value of the
array itself is none of them: it is 0 nearly everywhere, and 0 is a voxel like others."""
FAR = 4.0
"""A value that marks what was not measured lies so many times the range of all others away from them."""
OFTEN, VARIED = 1e-3, 16
"""It is so large a part of the voxels, and the others have so many values: in masks and labels nothing is far."""
LOOKED_AT = 2**18
"""Voxels that are looked at; more say nothing more."""


def said(attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> tuple[float, ...]:
    """The values that the attributes of an array of `dtype` name, and that it can hold; none where they name none."""
    found: list[float] = []
    named = [value for key in KEYS for name, value in attributes.items() if name.lower() == key.lower()]
    for value in named:
        for one in [v for part in _several(value) for v in _several(part)]:
            number = _number(one)
            if number is not None and in_type(number, dtype) is not None and not _is_in(number, found):
                found.append(number)
    return tuple(found)


def said_of_each(attributes: Mapping[str, Any], dtype: np.dtype[Any], channels: int) -> Missing:
    """Values of each of `channels`, where a list of as many says them one by one, as rasterio's ``nodatavals`` does (null
    for a band without one) and what we write; empty where all have the same."""
    lists = [
        value
        for key in _OF_EACH
        for name, value in attributes.items()
        if name.lower() == key and isinstance(value, list | tuple) and len(value) == channels > 1
    ]
    if not lists:
        return ()
    others = {name: value for name, value in attributes.items() if not any(value is one for one in lists)}
    for_all = said(others, dtype)
    each = [said({_OF_EACH[0]: [v for one in lists for v in _several(one[c])]}, dtype) for c in range(channels)]
    found = tuple(tuple(_once((*for_all, *own))) for own in each)
    return () if same(found) is not None else found


_OF_EACH = ("nodatavals", "nodata_values")
"""Of the attributes those that may say it channel by channel."""


def as_attribute(values: Missing) -> list[Any]:
    """`values` as ``nodatavals``, which `said` and `said_of_each` read: a list for all channels, or one for each."""
    found = same(values)
    if found is not None and (len(values) == 1 or len(found) != len(values) or len(found) == 1):
        return list(found)
    if all(len(own) <= 1 for own in values):
        return [own[0] if own else None for own in values]
    return [list(own) for own in values]


def same(values: Missing) -> tuple[float, ...] | None:
    """Those of all channels; None where channels have others."""
    first = values[0] if values else ()
    return first if all({*map(repr, own)} == {*map(repr, first)} for own in values) else None


def facts(values: Missing) -> dict[str, Any]:
    """As people are shown them, and read again by whoever goes on from an output."""
    if not values:
        return {}
    found = {"nodata": [_text(value) for value in union(values)]}
    return found if same(values) is not None else {**found, "nodata_of": [[_text(v) for v in own] for own in values]}


def _text(value: float) -> str:
    """The shortest that is that number."""
    short = f"{value:g}"
    return short if isnan(value) or float(short) == value else repr(value)


def union(values: Missing) -> tuple[float, ...]:
    """All that any channel has."""
    return tuple(_once([value for own in values for value in own]))


def _once(values: Sequence[float]) -> list[float]:
    found: list[float] = []
    for value in values:
        if not _is_in(value, found):
            found.append(value)
    return found


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def in_type(value: float, dtype: np.dtype[Any]) -> np.generic | None:
    """`value` as a voxel of `dtype`; None where no voxel can be it."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast: np.generic = np.float64(value).astype(dtype)
        return None if np.isinf(cast) and not np.isinf(value) else cast
    if dtype.kind not in "ui" or not isfinite(value) or value != int(value):
        return None
    if not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        return None
    whole: np.generic = dtype.type(int(value))
    return whole


def where(voxels: Array, values: Sequence[float]) -> npt.NDArray[np.bool_]:
    """Which of `voxels`, of any shape, are one of `values`."""
    found = np.zeros(voxels.shape, bool)
    for value in values:
        if isnan(value):
            found |= np.isnan(voxels) if voxels.dtype.kind == "f" else False
        elif (cast := in_type(value, voxels.dtype)) is not None:
            found |= voxels == cast
    return found


def where_of_each(voxels: Array, values: Missing) -> npt.NDArray[np.bool_]:
    """Which of `voxels`, (channels, …), are one of the values of their channel; all False where there are none."""
    if (found := same(values)) is not None:
        return where(voxels, found)
    return np.stack([where(channel, own) for channel, own in zip(voxels, values, strict=True)])


def suspected(voxels: Array) -> float | None:
    """The least or largest of `voxels`, of any shape, where it looks like a mark and not like something measured; None
    where neither does. 0 is none."""
    some = voxels.ravel()[:: -(-voxels.size // LOOKED_AT) or 1]
    finite = some[np.isfinite(some)] if some.dtype.kind == "f" else some
    values, counts = np.unique(finite, return_counts=True)
    if values.size < VARIED + 1:
        return None
    ends = values[[0, 1, -2, -1]].astype(np.float64)
    for mark, nearest, furthest in ((0, 1, -1), (-1, -2, 0)):
        gap, span = abs(ends[nearest] - ends[mark]), abs(ends[furthest] - ends[nearest])
        if ends[mark] != 0 and counts[mark] >= OFTEN * finite.size and gap > FAR * span:
            return float(ends[mark])
    return None


def _is_in(value: float, values: Sequence[float]) -> bool:
    return any(v == value or (isnan(v) and isnan(value)) for v in values)


def _number(value: Any) -> float | None:
    """Numbers, also as text; and as xarray writes floats to Zarr v3: eight bytes in base64."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        pass
    try:
        raw = base64.b64decode(str(value), validate=True)
        return float(struct.unpack("<d", raw)[0]) if len(raw) == 8 else None
    except (binascii.Error, ValueError):
        return None
