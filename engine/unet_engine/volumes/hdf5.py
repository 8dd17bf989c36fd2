"""HDF5 and NetCDF 4: a dataset of a file, as ``scan.h5:/volumes/raw``; the only volume of a file needs no name."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.paths import inside
from unet_engine.storage.unpacking import DEFLATED, inflates_beyond, longest, too_much_at_least
from unet_engine.units import brief, shared_unit, times
from unet_engine.volumes import account, alpha, axistags, georeference, hdf5_heap, imaris, imaris_volume, nodata
from unet_engine.volumes.axes import checked_axes, supposed
from unet_engine.volumes.axis_names import letter
from unet_engine.volumes.base import Array, Selection, Timing, Volume
from unet_engine.volumes.files import (
    FileVolume,
    Part,
    check_pieces,
    grouped,
    has_ending,
    opening,
    package,
    plain_chunks,
)
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.linear import Linear
from unet_engine.volumes.timing import even, unit_of_time

ENDINGS = (".h5", ".hdf5", ".hdf", ".he5", ".h5ad", ".nc", ".nc4", ".cdf", ".ims")
_MOST_LISTED = 12
_MOST_LINKS = 16
_MOST_COORDINATES = 2**24
_HARMLESS = 2**29
"""Bytes that a chunk may unpack to in vain."""


class Hdf5Format:
    def recognises(self, path: str) -> bool:
        return has_ending(inside(path)[0], *ENDINGS)

    def located(self, path: str, image: str | None, level: int | None) -> str:
        file, name = inside(path)
        h5py = package(path, "an HDF5 file", "h5py", "hdf5")
        if image is not None:
            raise InputError(f"--image {brief(image)}: {path} has datasets; name one behind a colon, e.g. {file}:/data")
        Part.of(file)
        with opening(file, "HDF5 file"), h5py.File(file, "r") as opened:
            find = partial(_followed, opened, h5py=h5py, most=_MOST_LINKS)
            if name is None and imaris_volume.is_imaris(find):
                return imaris_volume.located(path, find, level)
        if not level:
            return path
        raise InputError(
            f"--level {level}: {path} is no pyramid; leave --level out, or name a dataset, e.g. {file}:/data"
        )

    def open(self, path: str, axes: str | None) -> Volume:
        file, name = inside(path)
        part = Part.of(file)
        if not _is_hdf5(file):
            raise InputError(
                f"{file} is no HDF5 file (NetCDF 3 and HDF 4 are other formats); nccopy -k nc4 makes one of NetCDF 3"
            )
        h5py = package(path, "an HDF5 file", "h5py", "hdf5")
        with opening(file, "HDF5 file"):
            opened = h5py.File(file, "r")
            find = partial(_followed, opened, h5py=h5py, most=_MOST_LINKS)
            level = imaris_volume.level_of(name) if imaris_volume.is_imaris(find) else None
            if level is not None:
                return imaris_volume.volume_of(
                    path,
                    find,
                    level,
                    axes,
                    partial(_described, path, part, h5py),
                    partial(_all_at, opened, h5py=h5py),
                )
            data = _named(file, opened, name, h5py) if name else _only(file, opened, h5py)
            return _volume(path, part, data, axes, h5py)


def _is_hdf5(file: str) -> bool:
    """By its signature, which may lie behind a block of the user's own of 512 bytes or a power of two times that."""
    with Path(file).open("rb") as opened:
        for offset in (0, 512, 1024, 2048, 4096):
            opened.seek(offset)
            if opened.read(8) == b"\x89HDF\r\n\x1a\n":
                return True
    return False


def _volumes(opened: Any, h5py: Any) -> list[Any]:
    """The datasets that may be volumes: numbers along two axes or more."""
    found: list[Any] = []

    def look(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and len(item.shape or ()) >= 2 and item.dtype.kind in "buif":
            found.append(item)

    opened.visititems(look)
    return found


def _listed(found: list[Any]) -> str:
    more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
    return ", ".join(f"{d.name} ({times(d.shape)} {d.dtype})" for d in found[:_MOST_LISTED]) + more


def _only(file: str, opened: Any, h5py: Any) -> Any:
    found = _volumes(opened, h5py)
    if not found:
        raise InputError(f"{file} holds no volume: no dataset of numbers along two axes or more; give another --in")
    if len(found) > 1:
        raise InputError(f"{file} holds several volumes: {_listed(found)}; name one, e.g. --in {file}:{found[0].name}")
    return found[0]


def _named(file: str, opened: Any, name: str, h5py: Any) -> Any:
    item = _followed(opened, name, h5py, _MOST_LINKS)
    if not isinstance(item, h5py.Dataset):
        there = _volumes(opened, h5py)
        what = "a group" if item is not None else "not in it"
        raise InputError(f"{file}: {name} is {what}; name one of {_listed(there) or 'none, it holds no volume'}")
    return item


def _followed(opened: Any, name: str, h5py: Any, most: int) -> Any:
    """What lies at `name`, over no more than so many links; None where nothing does. A link on any part of the way may
    lead to another file, which is not what the user named and may be a pipe: it is not opened."""
    item = opened["/"]
    for step in filter(None, name.split("/")):
        link = item.get(step, getlink=True) if isinstance(item, h5py.Group) else None
        if isinstance(link, h5py.SoftLink) and most > 0:
            place = link.path if link.path.startswith("/") else f"{item.name}/{link.path}"
            item = _followed(opened, place, h5py, most - 1)
        else:
            item = item[step] if isinstance(link, h5py.HardLink) else None
        if item is None:
            return None
    return item


def _described(path: str, part: Part, h5py: Any, data: Any) -> Hdf5Volume:
    return _volume(path, part, data, None, h5py)


def _volume(path: str, part: Part, data: Any, axes: str | None, h5py: Any) -> Hdf5Volume:
    attributes = _all(data)
    if data.is_virtual or data.external:
        raise InputError(f"{path} refers to data in other files; copy it into one, e.g. with h5repack")
    shape, dtype = tuple(data.shape or ()), np.dtype(data.dtype)
    in_image = imaris.size_of(_all(data.parent), shape)
    shape = in_image or shape
    named = axes or _axes(data, attributes)
    names = checked_axes(path, shape, dtype, named)
    pieces = data.chunks or plain_chunks(names, shape)
    check_pieces(path, shape, pieces, dtype.itemsize)
    if data.id.get_offset() is not None:
        part.check_length(data.id.get_offset() + data.nbytes)
    linear = Linear.said(dtype, attributes)
    channels = shape[names.index("c")] if "c" in names else 1
    spacing, translation, unit, notes, frame = _on_map(path, data, names, attributes, h5py)
    if in_image and (found := imaris.placed(_all_at(data.file, "/DataSetInfo/Image", h5py), in_image)):
        spacing, translation, unit = found
    said = account.read(_account(data), shape, names)
    seen = alpha.named(said.channel_names if said else (), attributes, channels)
    of_alpha, doubts = alpha.settled(path, seen, channels)
    if said:
        frame = said.frame
        spacing, translation = said.along(names, said.spacing, 1.0), said.along(names, said.translation, 0.0)
        unit, notes = said.unit, ()
    return Hdf5Volume(
        path=path,
        axes=names,
        supposed=supposed(named, names),
        stored_shape=shape,
        stored_chunks=grouped(names, shape, pieces, dtype.itemsize),
        stored_dtype=linear.dtype,
        stored_spacing=spacing,
        stored_translation=translation,
        unit=unit,
        frame=frame,
        channel_names=said.channel_names if said else (),
        nodata=linear.values(nodata.said(attributes, dtype)),
        nodata_of=said.nodata_of
        if said
        else tuple(map(linear.values, nodata.said_of_each(attributes, dtype, channels))),
        notes=(*notes, *doubts),
        alpha=of_alpha,
        timing=_timing(data, names, attributes) if "t" in names else None,
        opened_by=Hdf5Format(),
        files=(part,),
        data=data,
        linear=linear,
    )


def _account(data: Any) -> str | None:
    """What this engine wrote beside a dataset."""
    with suppress(Exception):
        text = data.file[account.KEY]
        return str(text.asstr()[()]) if hdf5_heap.is_sound_text(text) else None
    return None


def _all(item: Any) -> dict[str, Any]:
    """The attributes of a dataset or group."""
    return {key: _plain(item, key) for key in item.attrs}


def _all_at(file: Any, name: str, h5py: Any) -> dict[str, Any]:
    """The same of what lies at `name`; none where nothing does."""
    item = _followed(file, name, h5py, _MOST_LINKS)
    return {} if item is None else _all(item)


def _plain(item: Any, key: str) -> Any:
    """An attribute of a dataset or group as plain values; None where h5py cannot read it."""
    try:
        if not hdf5_heap.is_sound(item, key):
            return None
        value = item.attrs[key]
    except Exception:
        return None
    if isinstance(value, np.ndarray):
        value = value.tolist()
        return value[0] if isinstance(value, list) and len(value) == 1 else value
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _axes(data: Any, attributes: Mapping[str, Any]) -> list[str] | None:
    """What the file calls the axes of a dataset: labels and scales of HDF5 and NetCDF, or ilastik's axistags."""
    if tags := axistags.tags_of(attributes):
        return [tag.axis for tag in tags]
    scales, labels = (_scale(data, i) for i in range(len(data.shape))), attributes.get("DIMENSION_LABELS")
    labels = [labels] if isinstance(labels, str | bytes) else labels
    if not isinstance(labels, list) or len(labels) != len(data.shape):
        labels = [""] * len(data.shape)
    names = [
        _text(label) if s is None else str(s.name.rpartition("/")[2]) for s, label in zip(scales, labels, strict=True)
    ]
    return [letter(name) for name in names] if all(names) else None


def _scale(data: Any, index: int) -> Any:
    """The coordinates of an axis; None where it has none. By the attributes themselves: where these are of another
    kind than HDF5's own library writes, it ends the process."""
    with suppress(Exception):
        if not hdf5_heap.is_sound(data, "DIMENSION_LIST"):
            return None
        found = data.file[data.attrs["DIMENSION_LIST"][index][0]]
        return found if isinstance(found, type(data)) and found.name else None
    return None


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


_Place = tuple[list[float] | None, list[float] | None, str | None, tuple[str, ...]]


def _on_map(path: str, data: Any, names: str, attributes: Mapping[str, Any], h5py: Any) -> tuple[*_Place, Frame | None]:
    """The same, and where pixels of a map lie: by coordinates, else by the transform that the projection names."""
    spacing, translation, unit, notes = _placed(data, names, attributes)
    beside = _all_at(data.file, f"{data.parent.name}/{georeference.mapping_of(attributes)}", h5py)
    sources = [beside, attributes, _all(data.parent)]
    crs, doubts = georeference.crs_of(sources)
    notes = (*notes, *(f"{path}: {doubt}" for doubt in doubts))
    if spacing and translation:
        return (
            spacing,
            translation,
            unit or georeference.unit_of(crs),
            notes,
            georeference.upright(names, spacing, translation, crs),
        )
    frame = georeference.frame_of(sources, crs) if not spacing and georeference.is_map(names) else None
    if frame:
        return *georeference.per_axis(frame, names), georeference.unit_of(crs), notes, frame
    return spacing, translation, unit, notes, None


def _placed(data: Any, names: str, attributes: Mapping[str, Any]) -> _Place:
    """Spacing, translation, unit and notes: of ``element_size_um`` (z, y, x), ``resolution`` and ``offset`` (as in
    Zarr), or of the coordinates that a NetCDF file has for each axis."""
    spatial = [a for a in "zyx" if a in names]
    size = attributes.get("element_size_um")
    if size is None and isinstance(attributes.get("resolution"), list | str):
        size, units = attributes["resolution"], attributes.get("units")
        spatial = [a for a in names if a in "zyx"]
    else:
        units = "micrometer"
    if size is None:
        return axistags.placed(attributes, names) or _coordinates(data, names)
    try:
        said = size.replace(",", " ").split() if isinstance(size, str) else size if isinstance(size, list) else [size]
        values = [float(v) for v in said][-len(spatial) :]
        if len(values) != len(spatial):
            raise ValueError(f"{len(values)} of {len(spatial)} numbers")
        of = dict(zip(spatial, values, strict=True))
        if not all(isfinite(v) and v > 0 for v in values):
            raise ValueError("no distances")
        unit, times_so_much = shared_unit(_units(units, names, spatial))
    except (TypeError, ValueError) as error:
        why = f"its voxel size {brief(size)} is not understood ({error}): left out"
        return None, None, None, (f"{data.name}: {why}",)
    offset = attributes.get("offset")
    moved = None
    if isinstance(offset, list) and len(offset) == len(spatial) and all(isinstance(v, int | float) for v in offset):
        there = dict(zip(spatial, offset, strict=True))
        moved = [float(there.get(a, 0.0)) * times_so_much.get(a, 1.0) for a in names]
    return [of.get(a, 1.0) * times_so_much.get(a, 1.0) for a in names], moved, unit, ()


def _units(units: object, names: str, spatial: Sequence[str]) -> dict[str, str]:
    """By spatial axis: `units` are one for all, or one for each of `names` or of `spatial`."""
    listed = units if isinstance(units, list) else [units]
    said = list(map(_text, listed))
    if len(said) == len(names):
        return {axis: unit for axis, unit in zip(names, said, strict=True) if axis in "zyx"}
    return dict(zip(spatial, said if len(said) == len(spatial) else said[:1] * len(spatial), strict=True))


def _coordinates(data: Any, names: str) -> _Place:
    """Of the coordinates of each spatial axis, where they are evenly spaced."""
    spacing, translation, units = [1.0] * len(names), [0.0] * len(names), dict[str, str]()
    for index, axis in enumerate(names):
        if axis not in "zyx":
            continue
        scale = _scale(data, index)
        if data.shape[index] > _MOST_COORDINATES:
            return None, None, None, (f"{data.name}: it is too long for its coordinates along {axis}: left out",)
        if scale is None or scale.shape != (data.shape[index],) or scale.shape[0] < 2 or scale.dtype.kind not in "iuf":
            return None, None, None, ()
        values = _numbers(scale)
        steps = np.diff(values)
        if not np.isfinite(values).all() or abs(steps - steps.mean()).max() > 1e-3 * abs(steps.mean()) or not steps[0]:
            return None, None, None, (f"{data.name}: its coordinates along {axis} are not evenly spaced: left out",)
        spacing[index], translation[index] = float((values[-1] - values[0]) / (len(values) - 1)), float(values[0])
        units[axis] = str(_plain(scale, "units")) if "units" in scale.attrs else ""
    unit, factors, notes = georeference.unit_along(data.name, units)
    return (
        [s * factors.get(a, 1.0) for s, a in zip(spacing, names, strict=True)],
        [t * factors.get(a, 1.0) for t, a in zip(translation, names, strict=True)],
        unit,
        notes,
    )


def _timing(data: Any, names: str, attributes: Mapping[str, Any]) -> Timing | None:
    """Of the coordinates along its axis of time, whose unit may go on as in "days since 2000-01-01"."""
    index = names.index("t")
    if said := axistags.timing(attributes):
        return said
    scale = _scale(data, index)
    if (
        scale is None
        or scale.shape != (data.shape[index],)
        or scale.dtype.kind not in "iuf"
        or scale.shape[0] > _MOST_COORDINATES
    ):
        return None
    unit = _text(_plain(scale, "units")) if "units" in scale.attrs else ""
    return even(_numbers(scale).tolist(), unit_of_time(unit.partition(" since ")[0]))


def _numbers(scale: Any) -> Array:
    """What coordinates stand for."""
    factor, more = (float(_plain(scale, key) or v) for key, v in (("scale_factor", 1.0), ("add_offset", 0.0)))
    found: Array = scale[:].astype(np.float64) * factor + more
    return found


@dataclass(frozen=True, eq=False, kw_only=True)
class Hdf5Volume(FileVolume):
    data: Any
    linear: Linear

    def stored(self, selection: Selection) -> Array:
        self._check_deflated(selection)
        try:
            return self.linear(np.asarray(self.data[selection]))
        except OSError as error:
            if "required filter" in str(error) and "hdf5plugin" not in str(error):
                raise OSError(
                    f"{error}: pip install hdf5plugin, and import it in sitecustomize, or repack it"
                ) from error
            raise

    def _check_deflated(self, selection: Selection) -> None:
        """Raise `ValueError` where a chunk in `selection` inflates to far more than a chunk is: HDF5 takes memory for
        all of it. What is too short to do so is not looked at."""
        chunks, stored = self.data.chunks, self.data.id
        if self.data.compression != "gzip" or not hasattr(stored, "get_chunk_info_by_coord"):
            return
        spans = [range(*part.indices(n)) for part, n in zip(selection, self.stored_shape, strict=True)]
        of = prod(chunks) * self.data.dtype.itemsize
        for corner in product(*(range(s.start // c * c, s.stop, c) for s, c in zip(spans, chunks, strict=True))):
            about = stored.get_chunk_info_by_coord(corner)
            if about.byte_offset is None or about.size * DEFLATED <= max(_HARMLESS, longest(of)):
                continue
            packed = stored.read_direct_chunk(corner)[1]
            if inflates_beyond([packed], zlib.MAX_WBITS, longest(of)):
                raise too_much_at_least(longest(of), of)
