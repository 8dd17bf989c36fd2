"""Zarr arrays (v2 and v3), alone or as the full resolution of an OME-Zarr group, on a local disk or behind a URL: how
they are opened. How they are read is in `unet_engine.volumes.zarr_volume`."""

from __future__ import annotations

import warnings
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
import zarr
from zarr.errors import UnstableSpecificationWarning
from zarr.storage import StorePath

from unet_engine.endings import made_readable, unread_in
from unet_engine.errors import InputError, UnetEngineError, first_line, of_store
from unet_engine.paths import check_file, is_local
from unet_engine.storage import archives, blosc, stores
from unet_engine.storage.absences import Absences
from unet_engine.storage.codecs import fast_codecs, is_native, missing_codec, own_codecs
from unet_engine.storage.kept import Kept
from unet_engine.storage.lengths import Lengths, longest_stored
from unet_engine.volumes import alpha, cf, geozarr, nodata
from unet_engine.volumes.axes import check_sizes, checked_axes, supposed
from unet_engine.volumes.bands import bands_in, joined, levels_of_bands
from unet_engine.volumes.base import Volume
from unet_engine.volumes.linear import Linear
from unet_engine.volumes.ome import full_resolution, named_resolution
from unet_engine.volumes.resolution import Resolution, own_names
from unet_engine.volumes.witness import Witness
from unet_engine.volumes.zarr_volume import ZarrVolume, with_own_codecs


class ZarrFormat:
    """Takes every folder and every URL: whatever else is wrong with one is told as it is opened."""

    def recognises(self, path: str) -> bool:
        return not is_local(path) or Path(path).is_dir() or archives.cut(path) is not None

    def open(self, path: str, axes: str | None) -> Volume:
        node = _opened(path)
        if isinstance(node, zarr.Group) and geozarr.is_pyramid(node) and (levels := levels_of_bands(path, node)):
            return self.open(f"{path.rstrip('/')}/{levels[0][0]}", axes)
        try:
            names, told = bands_in(path, node) if isinstance(node, zarr.Group) else ([], ())
            if names:
                each = [self._volume(f"{path.rstrip('/')}/{name}", node[name], _of_band(path, axes)) for name in names]
                return joined(path, names, each, told)
            return self._volume(path, node, axes)
        except UnetEngineError:
            raise
        except Exception as error:  # metadata of the right form may still say anything
            raise InputError(f"{path}: its metadata make no sense: {first_line(error)}; correct them") from error

    def _volume(self, path: str, node: zarr.Array | zarr.Group, axes: str | None) -> ZarrVolume:
        found = _described(path, node)
        array, dtype = found.array, np.dtype(found.array.dtype)
        check_sizes(path, array.shape, array.chunks)
        said = axes or found.axes or own_names(array)
        names = checked_axes(path, array.shape, dtype, said)
        place = (
            path if isinstance(node, zarr.Array) else f"{path.rstrip('/')}/{array.path[len(node.path) :].strip('/')}"
        )
        found = cf.located(found, place, names).completed(path, names)
        linear = Linear.said(dtype, dict(array.attrs))
        channels = array.shape[names.index("c")] if "c" in names else 1
        seen = alpha.named(found.channel_names, dict(array.attrs), channels)
        marks = {**array.attrs, **cf.fill_value(found)}
        of_alpha, doubts = alpha.settled(path, seen, channels)
        return ZarrVolume(
            path=path,
            axes=names,
            supposed=supposed(said, names),
            stored_shape=array.shape,
            stored_chunks=array.chunks,
            stored_dtype=linear.dtype,
            stored_spacing=found.scale,
            stored_translation=found.translation,
            unit=found.unit,
            channel_names=found.channel_names,
            frame=found.frame,
            notes=(*found.notes, *_packed(path, linear), *doubts),
            alpha=of_alpha,
            timing=None if found.axes else cf.timing(array, place, names),
            fill_value=linear.values([float(array.fill_value or 0)])[0],
            nodata=linear.values(nodata.said(marks, dtype)),
            nodata_of=tuple(map(linear.values, nodata.said_of_each(marks, dtype, channels))),
            array=_with_codecs(path, _noticing(path, array)),
            witness=_witness(path, array),
            linear=linear,
        )


def _of_band(path: str, axes: str | None) -> str | None:
    """The axes of each band, where those of all, which have their channels first, are said to be `axes`."""
    if axes and not axes.startswith("c"):
        raise InputError(
            f"{path} holds bands in arrays of their own, which are channels; give --axes that begin with c, as cyx"
        )
    return axes[1:] if axes else None


def _opened(path: str) -> zarr.Array | zarr.Group:
    try:
        with own_codecs():
            # of types whose encoding may change: they are no numbers, and refused later
            warnings.simplefilter("ignore", UnstableSpecificationWarning)
            return stores.open_node(path)
    except UnetEngineError:
        raise
    except FileNotFoundError as error:
        if is_local(path) and (file := unread_in(path)):
            raise InputError(
                f"{path} holds no volume that is read here, but files such as {file}; {made_readable(file)}"
            ) from error
        raise InputError(
            f"{path} holds no Zarr array or group (no zarr.json, .zarray or .zgroup); "
            f"give the path of one, e.g. {path}/NAME"
        ) from error
    except Exception as error:
        if missing := missing_codec(error):
            raise InputError(f"{path} cannot be read: {missing}") from error
        if lost := of_store(error):
            raise InputError(f"{path} cannot be read: {lost.of(path)}; {lost.advice}") from error
        raise InputError(
            f"{path} is not a readable Zarr array or group: {first_line(error)}; restore it, or give another --in"
        ) from error


def _described(path: str, node: zarr.Array | zarr.Group) -> Resolution:
    if isinstance(node, zarr.Group):
        return full_resolution(path, node)
    return named_resolution(path, node) or Resolution(node)


def _packed(path: str, linear: Linear) -> tuple[str, ...]:
    """A note where voxels are other numbers than those that are stored."""
    if linear.is_identity:
        return ()
    unsigned = f" taken as {linear.unsigned}" if linear.unsigned else ""
    computed = f"{linear.slope:g} · stored{unsigned} + {linear.intercept:g}"
    return (f"{path} is packed, as its attributes say (scale_factor, add_offset, _Unsigned): voxels are {computed}",)


def _with_codecs(path: str, array: zarr.Array) -> zarr.Array:
    """`array` opened again with the native codec pipeline, where that can read it; otherwise with zarr's own codecs."""
    metadata = array.metadata
    laid_out_otherwise = metadata.zarr_format == 2 and (
        metadata.order == "F" or not np.dtype(array.dtype).isnative or metadata.fill_value is None
    )
    if is_local(path) and not laid_out_otherwise and not _has_longer_chunks(array):
        with fast_codecs(path):
            fast = zarr.open_array(array.store_path, mode="r")
        if is_native(fast):
            return fast
    return with_own_codecs(array.store_path)


def _has_longer_chunks(array: zarr.Array) -> bool:
    """Whether bytes follow the Blosc data of the first chunk that is found stored. Only some are looked for: should
    others be longer, `ZarrVolume.stored` reads them all the same."""
    if not blosc.is_blosc(array):
        return False
    grid = tuple(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    for number in np.linspace(0, prod(grid) - 1, min(prod(grid), _LOOKED_FOR), dtype=np.int64):
        key = array.metadata.encode_chunk_key(tuple(map(int, np.unravel_index(number, grid))))
        file = stores.file_of(array.store_path / key)
        with suppress(OSError, ValueError):
            if file:
                check_file(file)
                with file.open("rb") as opened:
                    return file.stat().st_size > blosc.length(opened.read(16))
    return False


_LOOKED_FOR = 64
"""Chunks of which one that is stored may be found."""


def _noticing(path: str, array: zarr.Array) -> zarr.Array:
    """`array` through a store that notices what is not there, and asks for no more than a chunk can have. On a local
    disk the native codecs do without a store."""
    if is_local(path):
        return array
    place = array.store_path
    with own_codecs():
        store = Absences(Kept(Lengths(place.store, longest_stored(array))))
        return zarr.open_array(StorePath(store, place.path), mode="r")


def _witness(path: str, array: zarr.Array) -> Witness:
    try:
        return Witness.of(path, array.store_path, array.metadata.zarr_format)
    except Exception as error:
        if lost := of_store(error):
            raise InputError(f"{path} cannot be read: {lost.of(path)}; {lost.advice}") from error
        raise InputError(f"{path} cannot be read: {first_line(error)}; restore it, or give another --in") from error
