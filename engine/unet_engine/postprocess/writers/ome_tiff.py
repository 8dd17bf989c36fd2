"""OME-TIFF, in tiles packed with deflate, a page for each plane. BigTIFF where it is larger than 4 GiB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.postprocess.content import Content, Spool
from unet_engine.postprocess.writers.base import account_in, account_text, check_type, library, lost_mask, plain_type
from unet_engine.units import micrometers
from unet_engine.volumes.account import TIFF_TAG
from unet_engine.volumes.base import Array
from unet_engine.volumes.frame import Frame

_TILE = 256
_UNITS = {"micrometer": "µm", "nanometer": "nm", "millimeter": "mm", "centimeter": "cm", "meter": "m", "angstrom": "Å"}
_SMALL = 2**31
"""Bytes of voxels that a TIFF of 32 bits holds for certain, whatever packing makes of them."""


class OmeTiffWriter:
    name = "an OME-TIFF"
    endings = (".ome.tif", ".ome.tiff")
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        library(path, self.name, "tifffile", "tiff")
        library(path, self.name, "imagecodecs", "tiff")

    def check(self, path: str, content: Content) -> None:
        self.require(path, content.frame)
        check_type(path, content, self.name, ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])

    def losses(self, content: Content) -> list[str]:
        found = lost_mask(content, "OME-TIFF")
        if content.frame and (content.frame.crs or not content.frame.is_along):
            found.append("other tools find no orientation and no CRS in an OME-TIFF, only the size of voxels")
        if content.unit and micrometers(1.0, content.unit) is None:
            found.append(f"OME-TIFF has no unit {content.unit}: the size of voxels is left out for other tools")
        return found

    def write(self, place: Path, content: Content) -> None:
        import tifffile

        dtype = plain_type(content.dtype)
        spool = content.spooled(place.with_name("raw"), content.axes, dtype)
        *pages, rows, columns = content.shape
        metadata = {"axes": content.axes.upper(), **_sizes(content), **_steps(content)}
        if "c" in content.axes and content.channel_names:
            metadata["Channel"] = {"Name": list(content.channel_names)}
        with tifffile.TiffWriter(
            place, bigtiff=prod(content.shape) * dtype.itemsize > _SMALL, ome=True, byteorder="<"
        ) as file:
            file.write(
                _tiles(spool, pages, rows, columns),
                shape=content.shape,
                dtype=dtype,
                tile=(_TILE, _TILE),
                compression="zlib",
                photometric="minisblack",
                metadata=metadata,
                extratags=[(TIFF_TAG, 2, None, account_text(content), True)],
            )
        spool.file.unlink()

    def account(self, path: str) -> Mapping[str, Any] | None:
        import tifffile

        with tifffile.TiffFile(path) as file:
            return account_in(str(file.pages[0].tags[TIFF_TAG].value))


def _tiles(spool: Spool, pages: list[int], rows: int, columns: int) -> Iterator[Array]:
    """Page by page, row by row of tiles; whole tiles, also at the edges."""
    for index in product(*map(range, pages)):
        at = [range(i, i + 1) for i in index]
        for y in range(0, rows, _TILE):
            band = spool.read(*at, range(y, min(y + _TILE, rows)), range(columns)).reshape(-1, columns)
            for x in range(0, columns, _TILE):
                tile = np.zeros((_TILE, _TILE), spool.dtype)
                part = band[:, x : x + _TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                yield tile


def _sizes(content: Content) -> dict[str, Any]:
    if content.spacing is None:
        return {}
    place, unit = content.in_unit(_UNITS)
    if content.unit and unit is None:
        return {}
    sizes = dict(zip(content.spatial, place.sizes, strict=True))
    return {f"PhysicalSize{a.upper()}": sizes[a] for a in content.spatial} | (
        {f"PhysicalSize{a.upper()}Unit": unit for a in content.spatial} if unit else {}
    )


def _steps(content: Content) -> dict[str, Any]:
    """OME-TIFF has a place for the time between planes; when the first was taken is left to our own text."""
    time = content.timing and content.timing.in_seconds()
    return {"TimeIncrement": time.step, "TimeIncrementUnit": "s"} if time and time.unit == "second" else {}
