"""OME-Zarr groups (0.4 to 0.6): which array is the full resolution, what its axes are, where it lies in space."""

from __future__ import annotations

import os
import posixpath
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import zarr

from unet_engine.errors import InputError, first_line, of_store
from unet_engine.paths import absolute, is_local
from unet_engine.storage import stores
from unet_engine.storage.codecs import missing_codec
from unet_engine.units import brief, micrometers, unit_name
from unet_engine.volumes import account, geozarr
from unet_engine.volumes.cf import only_volume
from unet_engine.volumes.collection import images, listed
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.resolution import Resolution, unlike
from unet_engine.volumes.transformations import axes_of, of_level, placed

_INVALID = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)
"""What reading metadata that are not as they should be may raise."""
_LEVELS_OF_URLS = 4
"""How far above an array its multiscales are looked for behind a URL, where every look is a request."""


def full_resolution(path: str, group: zarr.Group) -> Resolution:
    """That of the first image in the multiscales of `group`. Raises `InputError` where there is no valid one."""
    if geozarr.is_pyramid(group):
        return Resolution(geozarr.levels_of(path, group)[0][1])
    try:
        scales = _multiscales(group)
        if not scales:
            found = images(path, group)
            if len(found) == 1:
                return full_resolution(
                    f"{path.rstrip('/')}/{found[0]}", zarr.open_group(group.store_path / found[0], mode="r")
                )
            if found:
                raise InputError(
                    f"{path} holds {len(found)} images: {listed(found)}; name one, e.g. --image {found[0]}"
                )
            if name := only_volume(group):
                return Resolution(zarr.open_array(group.store_path / name, mode="r"))
            inside = ", ".join(_children(group)) or "none"
            raise InputError(
                f"{path} is a Zarr group without OME multiscales; name one of the arrays in it ({inside}), "
                f"e.g. {path}/NAME"
            )
        where = str(scales[0]["datasets"][0]["path"])
    except _INVALID as error:
        raise InputError(_invalid(path, error)) from error
    try:
        stores.check_metadata(group.store_path / where)
        array = zarr.open_array(group.store_path / where, mode="r")
    except Exception as error:
        if missing := missing_codec(error):
            raise InputError(f"{path}: its full resolution {brief(where)} cannot be read: {missing}") from error
        raise InputError(
            f"{path}: its full resolution {brief(where)} cannot be opened: {first_line(error)}; "
            f"restore it, or name another array, e.g. {path}/1"
        ) from error
    try:
        return _of_group(_described(array, scales[0], scales[0]["datasets"][0]), group)
    except _INVALID as error:
        raise InputError(_invalid(path, error)) from error


def named_resolution(path: str, array: zarr.Array) -> Resolution | None:
    """What the multiscales of a group above the `array` at `path` say of it; None where none names it.

    The nearest group that names it counts. Where its multiscales are not valid, there is nothing but a note.
    """
    notes: list[str] = []
    for above, inside in _above(path):
        try:
            group = stores.open_group(above, "r")
        except (FileNotFoundError, PermissionError):
            continue
        except Exception as error:
            if (lost := of_store(error)) and not lost.refused:  # what it says must not depend on the network
                raise InputError(f"{above} cannot be read: {lost.of(above)}; {lost.advice}") from error
            if is_local(path):  # there is a file, and it is not what it should be
                notes.append(f"{above} cannot be read ({first_line(error)}): it may say voxel size and axes of {path}")
            continue
        try:
            for image in _multiscales(group) or ():
                for level in image["datasets"]:
                    if posixpath.normpath(str(level["path"]).strip("/")) == inside:
                        found = _of_group(_described(array, image, level), group)
                        return found if level is image["datasets"][0] else _as_level(path, found, image, group)
        except _INVALID as error:
            notes.append(
                f"the OME multiscales of {above} are not valid ({first_line(error)}): "
                f"voxel size and axes of {path} are not taken from them"
            )
    return Resolution(array, notes=tuple(notes)) if notes else None


def _of_group(found: Resolution, group: zarr.Group) -> Resolution:
    """`found` with what else the group says: names of channels, and the frame that this engine wrote, which says more
    than scale and translation can. One that these contradict is of another level, or was left behind."""
    called, axes = _channels(group), found.axes or ()
    if "c" in axes and len(called) == found.array.shape[axes.index("c")]:  # else they are those of another level
        found = replace(found, channel_names=called)
    try:
        frame = Frame.from_facts(dict(group.attrs)[account.KEY]["frame"])
    except _INVALID:
        return found
    names = "".join(found.axes or ())
    if found.scale is None or [a for a in "zyx" if a in names] != [*"zyx"[3 - len(frame.matrix) :]]:
        return found
    ours = "zyx"[3 - len(frame.matrix) :]
    ratios = [found.scale[names.index(a)] / size for a, size in zip(ours, frame.spacing, strict=True)]
    if any(abs(ratio - 1) > 1e-6 for ratio in ratios):  # a coarser level covers the same, see `output.multiscales`
        if min(ratios) < 1 - 1e-6:
            return found
        frame = frame.resampled(ratios)
    moved = found.translation or [0.0] * len(names)
    for axis, size, start in zip("zyx"[3 - len(frame.matrix) :], frame.spacing, frame.translation, strict=True):
        at, near = names.index(axis), 1e-6 * abs(size)
        elsewhere = frame.is_along and abs(moved[at] - start) > max(near, 1e-9 * abs(start))
        if abs(found.scale[at] - size) > near or elsewhere:
            return found
    return replace(found, frame=frame)


def _as_level(path: str, found: Resolution, image: Mapping[str, Any], group: zarr.Group) -> Resolution:
    """`found` with what is told where it is unlike the full resolution."""
    try:
        full = zarr.open_array(group.store_path / str(image["datasets"][0]["path"]), mode="r")
    except Exception:  # it is not what is read
        return found
    at = found.axes.index("c") if found.axes and "c" in found.axes else None
    here, other = ((str(a.dtype), 1 if at is None else a.shape[at]) for a in (found.array, full))
    return replace(found, notes=(*found.notes, *unlike(path, here, other)))


def _above(path: str) -> Iterator[tuple[str, str]]:
    """The folders above `path`, nearest first, and what `path` is called in each."""
    if is_local(path):
        given = absolute(path)
        for spelling in dict.fromkeys((given, os.path.realpath(given))):  # a link may lead into a group
            yield from _cut("/", spelling.strip("/").split("/"))
        return
    start, _, rest = path.partition("://")
    if "?" in rest or "::" in rest:  # what follows is no path
        return
    parts = rest.rstrip("/").split("/")
    yield from list(_cut(f"{start}://{parts[0]}/", parts[1:]))[:_LEVELS_OF_URLS]


def _cut(root: str, parts: list[str]) -> Iterator[tuple[str, str]]:
    for n in range(len(parts) - 1, 0 if root == "/" else -1, -1):
        yield root + "/".join(parts[:n]), "/".join(parts[n:])


def _multiscales(group: zarr.Group) -> Sequence[Mapping[str, Any]] | None:
    attributes = dict(group.attrs)
    scales = dict(attributes.get("ome", attributes)).get("multiscales")
    return None if geozarr.is_pyramid(group) else scales


def _channels(group: zarr.Group) -> tuple[str, ...]:
    """What viewers are told that channels are called; nothing where that makes no sense."""
    attributes = dict(group.attrs)
    try:
        said = dict(attributes.get("ome", attributes))["omero"]["channels"]
        return tuple(str(channel.get("label", "")) for channel in said)
    except _INVALID:
        return ()


def _described(array: zarr.Array, image: Mapping[str, Any], level: Mapping[str, Any]) -> Resolution:
    """What the multiscales `image` say of `array`, which is their dataset `level`. Raises one of `_INVALID`."""
    declared = axes_of(image)
    axes = tuple(str(a["name"] if isinstance(a, dict) else a).lower() for a in declared) or None
    if axes and len(axes) != array.ndim:
        raise ValueError(f"{len(axes)} axes for an array with {array.ndim}")
    units = {str(a["name"]).lower(): _unit(a.get("unit")) for a in declared if isinstance(a, dict)}
    found = placed(of_level(image, level), axes or ())
    axes = found.axes or axes
    if any(values is not None and len(values) != array.ndim for values in (found.scale, found.translation)):
        raise ValueError(f"scale or translation do not fit the {array.ndim} axes of {level['path']!r}")
    spatial = {a: u for a, u in units.items() if a in ("z", "y", "x")}
    different = dict.fromkeys(spatial.values())
    moved = image.get("coordinateSystems") and level.get("coordinateTransformations")
    if found.scale is None and moved and all(spatial.values()):  # to a place in a unit: a voxel is one of it
        found = replace(found, scale=[1.0] * array.ndim)
    plain = Resolution(array, axes, found.scale, found.translation, frame=found.frame)
    if len(different) < 2:
        return replace(plain, unit=next(iter(different), None))
    if found.frame or any(micrometers(1, u) is None for u in different):
        said = ", ".join(f"{a} in {u or 'no unit'}" for a, u in spatial.items())
        return replace(plain, notes=(f"axes of different units ({said}): left out",))
    factors = [(micrometers(1, spatial.get(a, "micrometer")) or 1.0) * 1e3 for a in axes or ()]
    return replace(
        plain, scale=_times(found.scale, factors), translation=_times(found.translation, factors), unit="nanometer"
    )


def _unit(said: Any) -> str | None:
    return unit_name(str(said)) or None if said else None


def _times(values: list[float] | None, factors: Sequence[float]) -> list[float] | None:
    return values and [v * f for v, f in zip(values, factors, strict=True)]


def _invalid(path: str, error: Exception) -> str:
    return f"{path}: its OME multiscales are not valid ({first_line(error)}); name the array itself, e.g. {path}/0"


def _children(group: zarr.Group) -> list[str]:
    """Names of what lies in `group`; zarr warns of every file in it that is none of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(name for name, _ in group.members())
