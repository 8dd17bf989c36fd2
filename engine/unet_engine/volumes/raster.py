"""GeoTIFF and COG, VRT and JPEG 2000 through rasterio (GDAL): read by window, on a disk or behind a URL; nodata, masks
and where it lies on the map."""

from __future__ import annotations

import atexit
import struct
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from unet_engine.errors import InputError
from unet_engine.paths import check_file, chosen, inside, is_local, said
from unet_engine.plan.box import Box
from unet_engine.storage.remote_raster import RemoteRaster
from unet_engine.units import brief, unit_name
from unet_engine.volumes import georeference, nodata, vrt
from unet_engine.volumes.account import KEY
from unet_engine.volumes.axes import checked_axes
from unet_engine.volumes.base import Array, Format, Selection, Volume
from unet_engine.volumes.files import FileVolume, Part, check_pieces, grouped, has_ending, opening, package
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.linear import Linear

MASK = "mask"
"""``scene.tif:mask`` is the mask of a scene: its alpha band, its mask band, or where it has nodata."""
_ENDINGS = (".vrt", ".jp2", ".j2k")
_TIFF = (".tif", ".tiff", ".gtiff")
ENDINGS = (*_TIFF, *_ENDINGS[1:])
"""Of what lies in one file."""
_GEO_TAGS = {33550, 33922, 34264, 34735, 42112, 42113, 50844}
"""Tags of GeoTIFF and GDAL; the last is of rational polynomials."""
_WORLD = (".tfw", ".tifw", ".tiffw", ".wld")
"""Endings of world files, which say in six numbers where the raster beside them lies."""
_DRIVERS = {".vrt": "VRT", ".jp2": "JP2OpenJPEG", ".j2k": "JP2OpenJPEG"}
"""By ending; what is called otherwise is a TIFF. Named, so that no other of GDAL's many readers is tried on a file."""
_CACHE_BYTES = 2**26


class RasterFormat:
    def recognises(self, path: str) -> bool:
        file = inside(path)[0]
        if not is_local(file):  # others are read by `unet_engine.volumes.fetched`, and VRTs are refused
            return file.partition("?")[0].lower().endswith(".vrt")
        if has_ending(file, *_ENDINGS):
            return True
        return has_ending(file, *_TIFF) and (MASK in said(path) or _is_geotiff(file) or _has_world_file(file))

    def located(self, path: str, image: str | None, level: int | None) -> str:
        """The overview of this level, 0 being the full resolution. Raises `InputError` for an image of one."""
        if image is not None:
            raise InputError(f"--image {brief(image)}: {path} has one image alone; leave --image out")
        return chosen(path, level=level or None)

    def open(self, path: str, axes: str | None) -> Volume:
        file = inside(path)[0]
        if not is_local(file):
            raise InputError(
                f"{file} is a VRT, and what one behind a URL leads to cannot be looked at before it is read; download it "
                "with its sources, or give one of the rasters that it names"
            )
        rasterio = package(path, "a raster with a place on the map", "rasterio", "geo")
        vrt.check_beside(file)
        notes = vrt.checked(file) if file.lower().endswith(".vrt") else ()
        return self._opened(path, _Handles(rasterio, file, _level(path)), (Part.of(file),), axes, notes)

    def takes(self, source: RemoteRaster) -> bool:
        """Whether what `source` opens is a raster with a place on the map. Raises `InputError`."""
        name = source.name.lower()
        found = name.endswith(_ENDINGS) or (name.endswith(_TIFF) and is_geotiff(source.open(source.name)))
        source.check()
        return found

    def in_place(self, path: str, source: RemoteRaster, axes: str | None, opened_by: Format) -> Volume:
        """The raster that `source` reads by parts, as a volume that other processes open by `opened_by`."""
        rasterio = package(path, "a raster with a place on the map", "rasterio", "geo")
        found = self._opened(path, _Handles(rasterio, source.name, _level(path), source), (), axes, ())
        return replace(found, opened_by=opened_by)

    def _opened(
        self, path: str, handles: _Handles, part: tuple[Part, ...], axes: str | None, notes: tuple[str, ...]
    ) -> FileVolume:
        with opening(path, "raster"), handles.one() as data:
            parts = (*part, *_others(inside(path)[0], data))
            if MASK in said(path):
                return _mask(path, data, handles, parts, axes)
            found = _bands(path, handles.rasterio, data, handles, parts, axes)
            return replace(found, notes=(*notes, *found.notes))


def _is_geotiff(file: str) -> bool:
    try:
        check_file(file)
        with Path(file).open("rb") as opened:
            return is_geotiff(opened)
    except OSError:
        return False


def _has_world_file(file: str) -> bool:
    return any(Path(file).with_suffix(cased).is_file() for one in _WORLD for cased in (one, one.upper()))


def is_geotiff(opened: Any) -> bool:
    """Whether the first directory of a TIFF, opened for reading, has a tag of GeoTIFF or GDAL."""
    try:
        head = opened.read(16)
        order = {b"II": "<", b"MM": ">"}[head[:2]]
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        start = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
        opened.seek(start)
        count = struct.unpack(order + ("Q" if big else "H"), opened.read(8 if big else 2))[0]
        size = 20 if big else 12
        entries = opened.read(min(count, 4096) * size)
    except (OSError, KeyError, struct.error, OverflowError, ValueError):
        return False
    tags = {struct.unpack_from(order + "H", entries, i)[0] for i in range(0, len(entries) - size + 1, size)}
    return bool(tags & _GEO_TAGS)


class _Handles:
    """Datasets of GDAL, each of which one thread at a time may use."""

    def __init__(self, rasterio: Any, file: str, level: int, source: RemoteRaster | None = None) -> None:
        """level: 0 is the full resolution, 1 the first overview"""
        self.rasterio, self._file, self._level, self.source = rasterio, file, level, source
        self._driver = _DRIVERS.get(file.partition("?")[0].lower()[-4:], "GTiff")
        self._lock, self._free = threading.Lock(), list[Any]()
        if source:  # GDAL calls back into Python, and must not do so once that ends
            _OPEN.add(self)

    @contextmanager
    def one(self) -> Iterator[Any]:
        # without an Env GDAL writes what is wrong to stderr by itself
        with self.rasterio.Env(GDAL_CACHEMAX=_CACHE_BYTES, GDAL_VRT_ENABLE_PYTHON="NO"):
            with self._lock:
                handle = self._free.pop() if self._free else None
            try:
                handle = handle or self._opened()
                yield handle
                self._check()
            except Exception as error:
                if handle:
                    handle.close()  # what failed once it may leave out the next time, as if nothing were there
                self._check()
                if isinstance(error, self.rasterio.errors.RasterioIOError):
                    raise _said_by_gdal(error) from error
                raise
            with self._lock:
                self._free.append(handle)

    def _check(self) -> None:
        """Raise what the store said: GDAL tells of it in words of its own, or leaves out what it could not read."""
        if self.source:
            self.source.check()

    def _opened(self) -> Any:
        by: dict[str, Any] = {"opener": self.source.open} if self.source else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing says where it lies
            if self._level:
                with self.rasterio.open(self._file, driver=self._driver, **by) as whole:
                    _check_level(self._file, self._level, whole)
                by["overview_level"] = self._level - 1
            return self.rasterio.open(self._file, driver=self._driver, **by)

    def close(self) -> None:
        with self._lock:
            while self._free:
                self._free.pop().close()


_OPEN: WeakSet[_Handles] = WeakSet()


@atexit.register
def _close_all() -> None:
    for handles in list(_OPEN):
        handles.close()


def _level(path: str) -> int:
    """Which one `path` names. Raises `InputError` where that is no number."""
    text = said(path).get("level", "0")
    if not (text.isascii() and text.isdigit()):
        raise InputError(
            f"{path} names the level {brief(text)}, which is no number; count overviews from 0, e.g. --level 1"
        )
    return int(text[:9])


def _check_level(file: str, level: int, data: Any) -> None:
    if not 0 < level <= len(found := _overviews(data)):
        raise InputError(f"--level {level}: {file} has {len(found)} overviews{_shown(found)}; count from 0")


def _overviews(data: Any) -> list[int]:
    """By how much each is smaller, of those that all bands have."""
    return min((list(data.overviews(band)) for band in data.indexes), key=len)


def _shown(factors: Sequence[int]) -> str:
    return f" (1/{', 1/'.join(map(str, factors))})" if factors else ""


def _others(file: str, data: Any) -> tuple[Part, ...]:
    """The files beside `file` that GDAL reads for it: of a VRT its sources, overviews, masks."""
    return tuple(Part.of(name) for name in data.files if is_local(name) and name != file and Path(name).is_file())


def _bands(
    path: str, rasterio: Any, data: Any, handles: _Handles, parts: tuple[Part, ...], axes: str | None
) -> RasterVolume:
    alpha = [b for b, kind in zip(data.indexes, data.colorinterp, strict=True) if kind.name == "alpha"]
    bands = tuple(b for b in data.indexes if b not in alpha)
    if not bands:
        raise InputError(f"{path} holds no band but alpha; give another --in")
    kinds = {data.dtypes[b - 1] for b in bands}
    if len(kinds) > 1:
        raise InputError(f"{path} has bands of several types ({', '.join(sorted(kinds))}); make them one type first")
    dtype = np.dtype(kinds.pop())
    shape = (len(bands), data.height, data.width) if len(bands) > 1 else (data.height, data.width)
    names = checked_axes(path, shape, dtype, axes or ("cyx" if len(bands) > 1 else "yx"))
    rows, columns = data.block_shapes[bands[0] - 1]
    check_pieces(path, shape, (1, rows, columns)[-len(shape) :], dtype.itemsize)
    frame, unit = _placed(data)
    linear = tuple(_linear(data, band, dtype) for band in bands)
    missing = tuple(_nodata(data, band, dtype, one) for band, one in zip(bands, linear, strict=True))
    same = nodata.same(missing)
    found = RasterVolume(
        path=path,
        axes=names,
        stored_shape=shape,
        stored_chunks=grouped(names, shape, (len(bands), rows, columns)[-len(shape) :], dtype.itemsize),
        stored_dtype=np.result_type(*(one.dtype for one in linear)),
        unit=unit,
        nodata=same or (),
        nodata_of=missing if same is None else (),
        linear=linear,
        channel_names=tuple(data.descriptions[b - 1] or data.colorinterp[b - 1].name for b in bands),
        masked_by=_mask(f"{path}:{MASK}", data, handles, (), None)
        if _is_masked(rasterio, data, bands, alpha)
        else None,
        notes=_notes(rasterio, path, data, bands, alpha),
        opened_by=RasterFormat(),
        files=parts,
        overviews=() if "level" in said(path) else tuple(f"1/{factor}" for factor in _overviews(data)),
        handles=handles,
        bands=bands,
    )
    return _with_frame(found, frame)


def _mask(path: str, data: Any, handles: _Handles, parts: tuple[Part, ...], axes: str | None) -> MaskVolume:
    shape, dtype = (data.height, data.width), np.dtype("u1")
    names = checked_axes(path, shape, dtype, axes or "yx")
    check_pieces(path, shape, data.block_shapes[0], 1)
    return MaskVolume(
        path=path,
        axes=names,
        stored_shape=shape,
        stored_chunks=grouped(names, shape, data.block_shapes[0], 1),
        stored_dtype=dtype,
        opened_by=RasterFormat(),
        files=parts,
        handles=handles,
    )


def _with_frame(volume: RasterVolume, frame: Frame | None) -> RasterVolume:
    if frame is None or not georeference.is_map(volume.axes):
        return volume
    spacing, translation = georeference.per_axis(frame, volume.axes)
    return replace(volume, frame=frame, stored_spacing=spacing, stored_translation=translation)


def _linear(data: Any, band: int, dtype: np.dtype[Any]) -> Linear:
    """What numbers of a band stand for. A factor of 0, or what is no number, says nothing."""
    slope, intercept = float(data.scales[band - 1]), float(data.offsets[band - 1])
    if not slope or not isfinite(slope) or not isfinite(intercept):
        slope, intercept = 1.0, 0.0
    return Linear.of(dtype, slope, intercept)


def _nodata(data: Any, band: int, dtype: np.dtype[Any], linear: Linear) -> tuple[float, ...]:
    """Of a band, as voxels are read."""
    value = data.nodatavals[band - 1]
    found = () if value is None else nodata.said({"nodata": value}, dtype)
    return found if linear.is_identity else tuple(float(linear(np.asarray(v, dtype)).item()) for v in found)


def _is_masked(rasterio: Any, data: Any, bands: Iterable[int], alpha: list[int]) -> bool:
    """Whether values do not say what was measured: alpha does, or a mask for all bands."""
    flags = rasterio.enums.MaskFlags
    return bool(alpha) or any(flags.per_dataset in data.mask_flag_enums[b - 1] for b in bands)


def _notes(rasterio: Any, path: str, data: Any, bands: Iterable[int], alpha: list[int]) -> tuple[str, ...]:
    found = []
    if alpha:
        found.append(
            f"{path}: band {alpha[0]} is alpha and no channel; where it is 0, nothing was measured (--nodata none: all was)"
        )
    elif any(rasterio.enums.MaskFlags.per_dataset in data.mask_flag_enums[b - 1] for b in bands):
        found.append(f"{path}: what its mask leaves out was not measured; --nodata none takes all pixels as they are")
    if not all(_linear(data, b, np.dtype(data.dtypes[b - 1])).is_identity for b in bands):
        found.append(f"{path} names scale and offset of its bands, and voxels are what they make of stored numbers")
    if any(data.colorinterp[b - 1].name == "palette" for b in bands):
        found.append(
            f"{path} holds labels that unet-engine wrote: its values number classes, its palette has their colours"
            if KEY.upper() in data.tags()
            else f"{path} has a palette, so that its values number classes or colours: voxels are taken as they are stored"
        )
    if data.transform.is_identity and (data.gcps[0] or data.rpcs):
        how = "control points" if data.gcps[0] else "rational polynomials (RPC)"
        found.append(f"{path} says by {how} where it lies, and those are left out; gdalwarp lays it on a map")
    elif data.transform.is_identity and data.crs:
        found.append(f"{path} names a reference system and not where in it it lies: taken to lie nowhere")
    return tuple(found)


def _placed(data: Any) -> tuple[Frame | None, str | None]:
    """Where the middles of pixels lie on the map, and in what unit; None where nothing says it."""
    a, b, c, d, e, f = tuple(data.transform)[:6]
    turned = [[a, b, c + (a + b) / 2], [d, e, f + (d + e) / 2]]
    if (
        data.transform.is_identity  # is what GDAL gives where nothing says it, and what it does not write
        or not all(isfinite(v) for row in turned for v in row)
        or a * e == b * d
    ):
        return None, None
    unit = None
    if data.crs:
        unit = "degree" if data.crs.is_geographic else unit_name(str(data.crs.linear_units))
    return Frame.of(turned, "crs", data.crs.to_wkt() if data.crs else None), unit


def _said_by_gdal(error: Exception) -> Exception:
    """The error of GDAL's own, which rasterio keeps behind one of its that says nothing."""
    cause = error.__cause__
    return cause if isinstance(cause, Exception) and "See previous exception" in str(error) else error


def _window(selection: Selection, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Rows and columns of `selection`, as rasterio wants them."""
    return tuple(part.indices(n)[:2] for part, n in zip(selection, shape, strict=True))[-2:]


@dataclass(frozen=True, eq=False, kw_only=True)
class RasterVolume(FileVolume):
    handles: _Handles
    bands: tuple[int, ...]
    linear: tuple[Linear, ...]
    """What the numbers of each band stand for."""
    masked_by: MaskVolume | None

    @property
    def own_mask(self) -> str | None:
        """The path that names what says where something was measured; None where values alone do."""
        return f"{self.path}:{MASK}" if self.masked_by else None

    @property
    def validity(self) -> Volume | None:
        return None if self.whole else self.masked_by

    def token(self, box: Box) -> tuple[str, str] | None:
        tag = self.handles.source.tag() if self.handles.source else None
        return (self.path, tag) if tag else None

    def stored(self, selection: Selection) -> Array:
        bands = self.bands[selection[0]] if len(selection) == 3 else self.bands
        with self.handles.one() as data:
            found: Array = data.read(list(bands), window=_window(selection, self.stored_shape))
        linear = self.linear[selection[0]] if len(selection) == 3 else self.linear
        if not all(one.is_identity for one in linear):
            found = np.stack([one(band).astype(self.stored_dtype) for one, band in zip(linear, found, strict=True)])
        return found if len(selection) == 3 else found[0]

    def facts(self) -> dict[str, Any]:
        crs = self.frame.crs if self.frame else None
        with self.handles.one() as data:
            shown = data.crs.to_string() if crs else None
        return {
            **super().facts(),
            **({"crs": shown if len(shown) < 200 else f"{shown[:200]}…"} if shown else {}),
            **({"mask": self.own_mask} if self.own_mask else {}),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskVolume(FileVolume):
    """255 where something was measured, else 0."""

    handles: _Handles

    def stored(self, selection: Selection) -> Array:
        """GDAL takes alpha for a mask beside one band or three alone: else the band is read itself."""
        window = _window(selection, self.stored_shape)
        with self.handles.one() as data:
            kinds = zip(data.indexes, data.colorinterp, strict=True)
            alpha = next((band for band, kind in kinds if kind.name == "alpha"), None)
            if alpha and all(flag.name == "all_valid" for band in data.mask_flag_enums for flag in band):
                opaque = data.read(alpha, window=window) != 0
                return np.where(opaque, np.uint8(255), np.uint8(0))
            found: Array = data.dataset_mask(window=window)
        return found
