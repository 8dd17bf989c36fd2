"""Zarr groups of several images: plates and wells, what bioformats2raw writes, levels of a pyramid. Which are there,
and which is meant."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import isclose
from pathlib import Path
from typing import Any

import zarr

from unet_engine.errors import InputError, first_line, of_store
from unet_engine.paths import absolute, is_local
from unet_engine.storage import stores
from unet_engine.units import brief, times
from unet_engine.volumes import geozarr
from unet_engine.volumes.bands import levels_of_bands
from unet_engine.volumes.base import StoredVolume, Timing, Volume
from unet_engine.volumes.lens import Lens
from unet_engine.volumes.transformations import axes_of, of_level, placed

_LISTED = 24


def located(path: str, image: str | None, level: int | None) -> str:
    """The path of what is meant in the group at `path`: its image called, or numbered from 0, `image`, and of that the
    array of `level`, 0 being the full resolution. Raises `InputError` listing what there is."""
    group = _pyramid(path)
    if group is not None:
        return _of_pyramid(path, group, image, level or 0)
    if image is not None:
        path = f"{path.rstrip('/')}/{_named(path, images(path, _group(path, '--image')), image)}"
    if level is None:
        return path
    if is_local(path) and Path(path, f"s{level}", "attributes.json").is_file():  # of N5
        return f"{path.rstrip('/')}/s{level}"
    group = _group(path, "--level")
    found = images(path, group)
    if not multiscales(group) and len(found) == 1:
        path = f"{path.rstrip('/')}/{found[0]}"
        group = _group(path, "--level")
    try:
        levels = [str(one["path"]) for one in multiscales(group)[0]["datasets"]]
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"--level {level}: {path} is no pyramid, it has no OME multiscales; leave --level out"
        ) from error
    if not 0 <= level < len(levels):
        raise InputError(
            f"--level {level}: {path} has {len(levels)} levels ({', '.join(levels[:_LISTED])}); count from 0"
        )
    return f"{path.rstrip('/')}/{levels[level]}"


def _pyramid(path: str) -> zarr.Group | None:
    """The group at `path`, where it is a pyramid of GeoZarr."""
    try:
        node = stores.open_node(path)
    except Exception:  # whatever it is, others tell
        return None
    return node if isinstance(node, zarr.Group) and geozarr.is_pyramid(node) else None


def _of_pyramid(path: str, group: zarr.Group, image: str | None, level: int) -> str:
    found = levels_of_bands(path, group) if image is None else []
    found = found or geozarr.levels_of(path, group, image)
    if not 0 <= level < len(found):
        raise InputError(
            f"--level {level}: {path} has {len(found)} levels ({listed([n for n, _ in found])}); count from 0"
        )
    return f"{path.rstrip('/')}/{found[level][0]}"


def shapes_in(path: str) -> list[str]:
    """How many pixels the levels of the pyramid at `path` have, the finest first; none where it is no Zarr group of
    several."""
    try:
        group = stores.open_group(path, "r")
        if geozarr.is_pyramid(group):
            arrays = [array for _, array in levels_of_bands(path, group) or geozarr.levels_of(path, group)]
        else:
            levels = multiscales(group)[0]["datasets"]
            arrays = [zarr.open_array(group.store_path / str(one["path"]), mode="r") for one in levels]
    except Exception:  # whatever it is, it has no levels that could be shown
        return []
    return [times(array.shape) for array in arrays] if len(arrays) > 1 else []


def _group(path: str, option: str) -> zarr.Group:
    try:
        node = stores.open_node(path)
    except Exception as error:
        raise InputError(f"{option}: {path} is no Zarr group: {first_line(error)}; leave {option} out") from error
    if not isinstance(node, zarr.Group):
        raise InputError(f"{option}: {path} is an array; give the group that holds it, or leave {option} out")
    return node


def _named(path: str, found: list[str], image: str) -> str:
    if image.strip("/") in found:
        return image.strip("/")
    if image.isascii() and image.isdigit() and int(image[:9]) < len(found):
        return found[int(image)]
    if not found:
        raise InputError(f"--image {brief(image)}: {path} has one image alone; leave --image out")
    if image == "all":
        raise InputError(
            f"--image all: {path} has {len(found)} images, and this is done of one; name it, e.g. --image {found[0]}, "
            "from 0 by number; unet-engine run takes all of them"
        )
    raise InputError(f"--image {brief(image)}: {path} has {listed(found)}; give one of them")


def listed(found: list[str]) -> str:
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(found[:_LISTED]) + more


def images_of(path: str) -> list[str]:
    """The images in the Zarr group at `path`; none where it is one itself, or an array. Raises `InputError`."""
    try:
        node = stores.open_node(path)
    except Exception as error:
        raise InputError(f"--image all: {path} is no Zarr: {first_line(error)}; leave --image out") from error
    return images(path, node) if isinstance(node, zarr.Group) and not geozarr.is_pyramid(node) else []


def images(path: str, group: zarr.Group) -> list[str]:
    """The images in a plate, a well, or what bioformats2raw wrote, by their paths in `group`; none where it is none of
    these. Raises `InputError` where what it says makes no sense."""
    said = _ome(group)
    try:
        if "plate" in said:
            wells = [str(well["path"]) for well in said["plate"]["wells"]]
            return [f"{well}/{image}" for well in wells for image in _fields(group, well)]
        if "well" in said:
            return [str(image["path"]) for image in said["well"]["images"]]
        if "bioformats2raw.layout" in said:
            return _series(group)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: what it says of its images makes no sense ({first_line(error)}); give the path of one of them"
        ) from error
    return []


def _fields(plate: zarr.Group, well: str) -> list[str]:
    try:
        group = zarr.open_group(plate.store_path / well, mode="r")
    except Exception as error:
        _check_store(f"well {well}", error)
        return []  # a plate names wells that were not imaged
    return [str(image["path"]) for image in _ome(group).get("well", {}).get("images", [])]


def _series(group: zarr.Group) -> list[str]:
    """As the group OME lists them, else all that are numbered."""
    try:
        named = _ome(zarr.open_group(group.store_path / "OME", mode="r")).get("series")
    except Exception as error:
        _check_store("OME/series", error)
        named = None
    if isinstance(named, list):
        return [str(name) for name in named]
    found: list[str] = []
    while stores.holds(group.store_path / f"{len(found)}/.zgroup") or stores.holds(
        group.store_path / f"{len(found)}/zarr.json"
    ):
        found.append(str(len(found)))
    return found


def _check_store(what: str, error: Exception) -> None:
    """Raise `InputError` where `error` says nothing of `what`, but that its store did not answer."""
    if lost := of_store(error):
        raise InputError(f"{what} cannot be read: {lost.of(what)}; {lost.advice}") from error


def levels_in(path: str) -> list[dict[str, tuple[int, float]]]:
    """Of the first image of the group at `path`: of each level how many voxels it has along each axis, by its name, and
    how far they are apart, 0 where nothing says it. Raises `InputError` where it is none, or makes no sense."""
    try:
        group = stores.open_group(path, "r")
        image = multiscales(group)[0]
        names = [str(a["name"] if isinstance(a, dict) else a).lower() for a in axes_of(image)]
        found = []
        for one in image["datasets"]:
            shape = zarr.open_array(group.store_path / str(one["path"]), mode="r").shape
            level = placed(of_level(image, one), names)
            pairs = zip(shape, level.scale or [0.0] * len(names), strict=True)
            found.append(dict(zip(level.axes or names, pairs, strict=True)))
    except Exception as error:
        raise InputError(f"{path}: its OME multiscales make no sense ({first_line(error)}); correct them") from error
    return found


def time_of(path: str) -> tuple[float, float, str | None]:
    """How far time points are apart in the image of which the volume at `path` is, when the first one is, and in which
    unit; 1 and 0 where nothing says it."""
    try:
        image = multiscales(stores.open_group(image_of(path) or path, "r"))[0]
        axes = [a if isinstance(a, dict) else {"name": a} for a in axes_of(image)]
        names = [str(a["name"]).lower() for a in axes]
        found, at = placed(of_level(image, image["datasets"][0]), names), names.index("t")
        start = found.translation[at] if found.translation else 0.0
        return (found.scale[at] if found.scale else 1.0), start, axes[at].get("unit")
    except Exception:  # whatever it is, it says nothing of time
        return 1.0, 0.0, None


def timing_of(volume: Volume, beside: Mapping[str, Any]) -> Timing | None:
    """None where nothing says it. beside: what we wrote beside the volume, which knows the unit where a format has no
    place for one; what the file says in its own place goes first where another tool changed that."""
    found = Timing(*time_of(volume.path))
    if found != Timing(1.0):
        return found
    while isinstance(volume, Lens):
        volume = volume.scan
    own, ours = volume.timing if isinstance(volume, StoredVolume) else None, _said(beside)
    return ours if own is None or (ours and _is_same(own, ours)) else own


def _said(beside: Mapping[str, Any]) -> Timing | None:
    try:
        step, start, unit = beside["time"]
        return Timing(float(step), float(start), unit and str(unit))
    except (KeyError, TypeError, ValueError):
        return None


def _is_same(own: Timing, ours: Timing) -> bool:
    if own.unit:
        own, ours = own.in_seconds(), ours.in_seconds()
    return isclose(own.step, ours.step, rel_tol=1e-5) and own.unit in (None, ours.unit)


def version_of(path: str) -> str:
    """Of OME-Zarr, as the image at `path` says it."""
    group = stores.open_group(path, "r")
    said = _ome(group)
    version = said.get("version") or multiscales(group)[0].get("version")
    return str(version or ("0.4" if group.metadata.zarr_format == 2 else "0.5"))


def image_of(path: str) -> str | None:
    """The group whose first image the volume at `path` is, or is a level of; None where there is none."""
    try:
        node = stores.open_node(path)
        if isinstance(node, zarr.Group):
            if multiscales(node):
                return path.rstrip("/")
            found = images(path, node)
            return image_of(f"{path.rstrip('/')}/{found[0]}") if len(found) == 1 else None
        above = absolute(path).rstrip("/").split("/")
        for n in range(len(above) - 1, max(0, len(above) - 4), -1):
            folder, inside = "/".join(above[:n]) or "/", "/".join(above[n:])
            with suppress(Exception):  # most folders are none
                levels = multiscales(stores.open_group(folder, "r"))[0]["datasets"]
                if inside in [str(level["path"]) for level in levels]:
                    return folder
    except Exception:  # whatever it is, it is no image
        return None
    return None


def multiscales(group: zarr.Group) -> Any:
    return None if geozarr.is_pyramid(group) else _ome(group).get("multiscales")


def _ome(group: zarr.Group) -> Mapping[str, Any]:
    attributes = dict(group.attrs)
    inner = attributes.get("ome")
    return dict(inner) if isinstance(inner, dict) else attributes
