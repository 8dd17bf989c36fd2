"""GeoTIFF laid out as a COG (tiles, overviews), by GDAL: CRS, place on the map, nodata; of labels a colour for each
class and its name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import OutputError
from unet_engine.output.colours import colour_of
from unet_engine.plan.box import Box
from unet_engine.postprocess.content import Content
from unet_engine.postprocess.writers.base import (
    account_in,
    account_text,
    check_axes,
    check_type,
    library,
    plain_type,
)
from unet_engine.volumes.account import KEY
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.nodata import same, union

_TILE = 512
_CACHE_BYTES = 2**26
_TAG = KEY.upper()
_NOWHERE = [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]
"""The place that GDAL takes for none."""


class GeoTiffWriter:
    name = "a GeoTIFF"
    endings = (".tif", ".tiff")
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        library(path, self.name, "rasterio", "geo")

    def check(self, path: str, content: Content) -> None:
        self.require(path, content.frame)
        check_axes(path, content, self.name, "cyx")
        check_type(path, content, self.name, ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])

        if same(content.missing) is None:
            raise OutputError(
                f"{path}: {self.name} has one value of nodata for all bands, and channels of {content.origin} have others; "
                "write .zarr or .h5, or some channels alone with --input-channels"
            )

    def losses(self, content: Content) -> list[str]:
        others = [f"{value:g}" for value in union(content.missing)[1:]]
        found = [f"a GeoTIFF has one value of nodata: {', '.join(others)} is left out"] if others else []
        if content.frame and content.frame.affine == _NOWHERE:
            found.append("a GeoTIFF does not say that pixels of size 1 begin at 0, which means nowhere in it")
        if content.gaps is None:
            return found
        return [*found, "a GeoTIFF has one mask for all bands: what is left out of some alone is written as it is"]

    def write(self, place: Path, content: Content) -> None:
        """A COG cannot be written in place: GDAL makes one of a plain GeoTIFF, with overviews."""
        import rasterio
        from rasterio import shutil

        plain = place.with_name("plain.tif")
        packed = {"COMPRESS": "DEFLATE", "BIGTIFF": "IF_SAFER"}
        with rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, GDAL_TIFF_INTERNAL_MASK=True):
            _write(rasterio, plain, content, packed)
            shutil.copy(
                plain,
                place,
                driver="COG",
                BLOCKSIZE=_TILE,
                RESAMPLING="NEAREST" if content.labels or content.dtype.kind not in "f" else "AVERAGE",
                **packed,
            )
        plain.unlink()

    def account(self, path: str) -> Mapping[str, Any] | None:
        import rasterio

        with rasterio.Env(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing says where it lies
            with rasterio.open(path) as data:
                return account_in(data.tags().get(_TAG))


def _write(rasterio: Any, place: Path, content: Content, packed: Mapping[str, Any]) -> None:
    assert content.frame is not None
    bands = content.count("c")
    frame = content.frame
    (a, b, x), (d, e, y) = frame.affine
    with rasterio.open(
        place,
        "w",
        driver="GTiff",
        width=content.count("x"),
        height=content.count("y"),
        count=bands,
        dtype=plain_type(content.dtype).name,
        crs=frame.crs,
        transform=rasterio.Affine(a, b, x - (a + b) / 2, d, e, y - (d + e) / 2),
        nodata=content.missing[0][0] if content.missing else None,
        tiled=True,
        blockxsize=_TILE,
        blockysize=_TILE,
        INTERLEAVE="PIXEL",
        PHOTOMETRIC="MINISBLACK",
        ALPHA="NO",
        SPARSE_OK=True,
        **packed,
    ) as data:
        _describe(rasterio, data, content)
        pieces = [_TILE if axis in "yx" else n for axis, n in zip(content.axes, content.shape, strict=True)]
        for cell in content.aligned(pieces):
            rows, columns = (slice(s.start, s.stop) for s in cell[-2:])
            voxels = np.asarray(content.read(cell), plain_type(content.dtype))
            shape = (bands, rows.stop - rows.start, columns.stop - columns.start)
            window = rasterio.windows.Window.from_slices(rows, columns)
            data.write(voxels.reshape(shape), window=window)
            if content.measured is not None:
                box = Box((rows.start, columns.start), (rows.stop, columns.stop))
                data.write_mask(content.measured.read(box)[0] != 0, window=window)


def _describe(rasterio: Any, data: Any, content: Content) -> None:
    data.update_tags(**{_TAG: account_text(content)})
    kinds = rasterio.enums.ColorInterp.__members__
    if any(name and name not in kinds for name in content.channel_names):  # else bands were not called anything
        data.descriptions = content.channel_names
    if content.labels and content.classes and content.dtype in (np.uint8, np.uint16) and content.count("c") == 1:
        data.write_colormap(1, {i: (*colour_of(i, content.colours), 255) for i in range(len(content.classes))})
        data.update_tags(1, **{f"class_{i}": name for i, name in enumerate(content.classes)})
    else:
        other = rasterio.enums.ColorInterp
        data.colorinterp = [other.gray] + [other.undefined] * (data.count - 1)
