"""Bands that lie in arrays of their own, beside one another in a Zarr group, as xarray writes a dataset: seen as the
channels of one volume."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import zarr

from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.units import times
from unet_engine.volumes import georeference
from unet_engine.volumes.base import Array, Selection, StoredVolume
from unet_engine.volumes.resolution import own_names

_OF_IMAGES = {"ome", "multiscales", "plate", "well", "bioformats2raw.layout"}
"""Attributes of groups that say otherwise what is in them."""
_LISTED = 24


def bands_in(path: str, group: zarr.Group) -> tuple[list[str], tuple[str, ...]]:
    """The arrays of `group` that are bands of one volume, in the order of their names, in which B2 comes before B10;
    and what the user is told. None where the group is something else, or has no two that agree in axes, shape, type
    and projection.

    Of several kinds of arrays, as masks beside bands, the bands are those of which there are most. Raises `InputError`
    where of two kinds there are as many.
    """
    if _OF_IMAGES & {*group.attrs}:
        return [], ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every file in it that is none of zarr's own
        arrays = {name: array for name, array in sorted(group.arrays(), key=_natural) if array.ndim > 1}
    named = {name: array for name, array in arrays.items() if name not in _coordinates(group, arrays)}
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for name, array in named.items():
        axes = own_names(array)
        if axes and {"y", "x"} <= {*axes} and "c" not in axes:
            mapping = georeference.mapping_of(array.attrs)
            kinds.setdefault((axes, array.shape, np.dtype(array.dtype).str, mapping), []).append(name)
    most = max(kinds.values(), key=len, default=[])
    if len(most) < 2:
        return [], ()
    if sum(len(names) == len(most) for names in kinds.values()) > 1:
        raise InputError(f"{path} holds arrays of {len(kinds)} kinds: {_shown(named)}; name one, e.g. {path}/{most[0]}")
    told = [f"{path}: its arrays {_list(most)} are taken as channels in this order; --input-channels takes others"]
    if left := [name for name in named if name not in most]:
        told.append(f"{path}: {_shown({name: named[name] for name in left})} are no bands like these, and left out")
    return most, tuple(told)


def _natural(one: tuple[str, Any]) -> list[tuple[int, int, str]]:
    """Numbers in names count as such."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", one[0])]


def _coordinates(group: zarr.Group, arrays: Mapping[str, zarr.Array]) -> set[str]:
    """What others name as their coordinates or bounds, as CF has it, and xarray for all of a group."""
    all_of_it = (group, *arrays.values())
    said = (one.attrs.get(key) for one in all_of_it for key in ("coordinates", "bounds", "grid_mapping"))
    return {name for text in said if isinstance(text, str) for name in text.split()}


def _shown(arrays: Mapping[str, zarr.Array]) -> str:
    return _list([f"{name} ({times(array.shape)}, {array.dtype})" for name, array in arrays.items()])


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def joined(path: str, names: Sequence[str], bands: Sequence[StoredVolume], told: Sequence[str]) -> BandsVolume:
    """`bands`, called `names`, as the channels of a volume called `path`. Raises `InputError` where they do not lie in
    the same place."""
    first = bands[0]
    for name, band in zip(names, bands, strict=True):
        if not _is_near(_place(band), _place(first)) or band.unit != first.unit or band.axes != first.axes:
            raise InputError(
                f"{path}: {name} does not lie where {names[0]} does; name one of them, e.g. {path}/{names[0]}"
            )
    notes = dict.fromkeys(note.replace(band.path, path) for band in bands for note in band.notes)
    nodata = dict.fromkeys(value for band in bands for value in band.nodata)
    if any({*map(repr, band.nodata)} != {*map(repr, nodata)} for band in bands):
        notes[f"{path}: its bands name other values for what was not measured: in all of them it is each of these"] = (
            None
        )
    chunks = max((band.stored_chunks for band in bands), key=prod)
    return BandsVolume(
        path=path,
        axes=f"c{first.axes}",
        stored_shape=(len(bands), *first.stored_shape),
        stored_chunks=(1, *chunks),
        stored_dtype=np.result_type(*(band.stored_dtype for band in bands)),
        stored_spacing=first.stored_spacing and [1.0, *first.stored_spacing],
        stored_translation=first.stored_translation and [0.0, *first.stored_translation],
        unit=first.unit,
        frame=first.frame,
        fill_value=first.fill_value,
        channel_names=tuple(names),
        nodata=tuple(nodata),
        notes=(*told, *notes),
        bands=tuple(bands),
    )


def _place(band: StoredVolume) -> list[float]:
    frame = band.frame
    of_frame = [*frame.origin, *(v for row in frame.matrix for v in row)] if frame else []
    return [*(band.stored_spacing or ()), *(band.stored_translation or ()), *of_frame]


def _is_near(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=1e-9, atol=1e-9))


@dataclass(frozen=True, eq=False, kw_only=True)
class BandsVolume(StoredVolume):
    """Read by the volumes that the bands are; those that nobody chose are not read."""

    bands: tuple[StoredVolume, ...]

    @cached_property
    def _read(self) -> tuple[StoredVolume, ...]:
        """Those that are, in their order, at the time point that is."""
        numbers = range(len(self.bands)) if self.chosen is None else self.chosen
        return tuple(replace(self.bands[number], time=self.time) for number in numbers)

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        found = np.empty((len(self._read), *box.shape), self.dtype)
        for voxels, band in zip(found, self._read, strict=True):
            voxels[...] = band.read(box, recorder)[0]
        return found

    def stored(self, selection: Selection) -> Array:
        numbers = range(*selection[0].indices(len(self.bands)))
        return np.stack([self.bands[n].stored(selection[1:]) for n in numbers]).astype(self.stored_dtype)

    def has_data(self, box: Box) -> bool:
        return any(band.fill_value != self.fill_value or band.has_data(box) for band in self._read)

    def changed(self, box: Box, since: float) -> str | None:
        return next((found for band in self._read if (found := band.changed(box, since))), None)

    def token(self, box: Box) -> tuple[str, str] | None:
        found = [one for band in self._read if (one := band.token(box))]
        return (found[0][0], " ".join(tag for _, tag in found)) if found else None

    def confirm(self) -> None:
        for band in self._read:
            band.confirm()

    @property
    def drawback(self) -> str | None:
        return next((band.drawback for band in self._read if band.drawback), None)

    @property
    def units(self) -> tuple[int, ...] | None:
        return self._read[0].units

    def keep(self, most: int, reads: Fetching | None) -> None:
        for band in self._read:
            band.keep(most // len(self._read), reads if band.units == self.units else None)

    def fetch(self, box: Box) -> None:
        for band in self._read:
            band.fetch(box)

    def hold(self, most: int) -> None:
        for band in self._read:
            band.hold(most // len(self._read))

    @property
    def held_bytes(self) -> int:
        return sum(band.held_bytes for band in self._read)
