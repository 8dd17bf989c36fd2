"""Whether two texts say the same coordinate reference system of a map: WKT of any dialect, codes, PROJ's strings."""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from functools import lru_cache
from typing import Any

_NAMES = re.compile(r"[:\[{=]|^[0-9]+$")
"""What a text has that names a system, and no direction or unit has."""
_SURE = 70
"""Per cent of confidence from which on PROJ and GDAL call a system by its number in EPSG's list."""


@lru_cache(maxsize=64)
def same_system(one: str, other: str) -> bool | None:
    """Whether maps in both have the same x and y. Names and dialects do not count, nor do the order in which a system
    lists its axes (x and y of a file are said apart), heights that go with it, and how to get to other systems
    (TOWGS84). None where the texts differ and nothing that is installed can compare them."""
    if one.split() == other.split():
        return True
    if not (_NAMES.search(one) and _NAMES.search(other)):
        return False
    answers = [compare(one, other) for compare in (_by_pyproj, _by_rasterio)]
    return any(answers) if any(answer is not None for answer in answers) else None


def _by_pyproj(one: str, other: str) -> bool | None:
    """None without pyproj, or for what it does not understand."""
    with suppress(Exception):
        pyproj = importlib.import_module("pyproj")
        a, b = (_flat(pyproj.CRS.from_user_input(text)) for text in (one, other))
        return bool(a.equals(b, ignore_axis_order=True)) or _is_known_as(a.to_epsg(_SURE), b.to_epsg(_SURE))
    return None


def _flat(crs: Any) -> Any:
    """Of a system of heights and places that of the places alone, without the way to another one."""
    while crs.is_bound or crs.is_compound:
        crs = crs.source_crs if crs.is_bound else crs.sub_crs_list[0]
    return crs.to_2d()


def _by_rasterio(one: str, other: str) -> bool | None:
    """The same."""
    with suppress(Exception):
        rasterio = importlib.import_module("rasterio")
        with rasterio.Env():
            a, b = map(rasterio.crs.CRS.from_user_input, (one, other))
            return bool(a == b) or _is_known_as(a.to_epsg(_SURE), b.to_epsg(_SURE))
    return None


def _is_known_as(one: int | None, other: int | None) -> bool:
    return one is not None and one == other
