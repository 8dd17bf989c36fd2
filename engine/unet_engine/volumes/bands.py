"""Bands that lie in arrays of their own, beside one another in a Zarr group, as xarray writes a dataset: seen as the
channels of one volume."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import zarr

from unet_engine.errors import InputError
from unet_engine.units import times
from unet_engine.volumes import georeference, geozarr
from unet_engine.volumes.base import StoredVolume
from unet_engine.volumes.joined import JoinedVolume, join
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


def levels_of_bands(path: str, group: zarr.Group) -> list[tuple[str, zarr.Array]]:
    """Of a pyramid each of whose levels holds the same bands: the levels, the finest first, each with one of its bands;
    none of another."""
    found, bands = [], set[tuple[str, ...]]()
    for name, node in geozarr.groups_in(group).items():
        try:
            names, _ = bands_in(path, node)
        except InputError:  # nothing says which of its arrays are bands
            return []
        if not names:
            return []
        bands.add(tuple(names))
        found.append((name, node[names[0]]))
    return sorted(found, key=lambda one: -prod(one[1].shape)) if len(bands) == 1 else []


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


def joined(path: str, names: Sequence[str], bands: Sequence[StoredVolume], told: Sequence[str]) -> JoinedVolume:
    """`bands`, called `names`, as the channels of a volume called `path`; what is true of several is told once. Raises
    `InputError` where they do not lie in the same place."""
    said = [replace(band, notes=tuple(note.replace(band.path, path) for note in band.notes)) for band in bands]
    return join(path, [f"{path}: {name}" for name in names], names, said, told)
