"""Pyramids of GeoZarr: the convention ``multiscales`` with a ``layout`` of arrays or groups, and the earlier one with a
set of tile matrices. Which levels there are, and what is said of where each lies."""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import zarr

from unet_engine.errors import InputError, first_line
from unet_engine.storage import stores
from unet_engine.units import brief
from unet_engine.volumes import georeference

_INVALID = (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError)
_LISTED = 24
_PIXEL = 0.28e-3
"""Metres of a pixel to which a scale denominator of a tile matrix refers."""
_DEGREE = 111_319.49079327358
"""Metres of a degree, by the same standard."""
_DEEPEST = 3
"""Groups above an array that its pyramid is looked for in."""


@dataclass(frozen=True)
class Level:
    """What a pyramid says of one of its levels, an array or a group of them."""

    name: str
    """Where it lies in the pyramid's group."""
    said: Mapping[str, Any]
    """Where its pixels lie, as `georeference.frame_of` takes it; empty where only their size relative to others is
    known."""
    source: str | None = None
    """The level that it was made of."""
    scale: tuple[float, ...] = ()
    """How many pixels of that one of its own spans, per axis."""
    translation: tuple[float, ...] = ()


def is_pyramid(group: zarr.Group) -> bool:
    said = group.attrs.get("multiscales")
    return isinstance(said, Mapping) and ("layout" in said or "tile_matrix_set" in said)


def levels_of(path: str, group: zarr.Group, image: str | None = None) -> list[tuple[str, zarr.Array]]:
    """The levels of the pyramid at `path`, the finest first: where each lies, and its array, in levels of several that
    which is called `image`. Raises `InputError` where there are none, or nothing says which array is meant."""
    try:
        names = [level.name for level in _levels(group)]
    except _INVALID as error:
        raise InputError(f"{path}: its multiscales make no sense ({first_line(error)}); name an array in it") from error
    found: list[tuple[str, zarr.Array]] = []
    variables: dict[str, None] = {}
    for name in names:
        with suppress(KeyError):
            node = group[name]
            if isinstance(node, zarr.Array):
                found.append((name, node))
                continue
            inside = _arrays(node)
            variables |= dict.fromkeys(inside)
            wanted = image if image is not None else next(iter(inside)) if len(inside) == 1 else None
            if wanted in inside:
                found.append((f"{name}/{wanted}", inside[str(wanted)]))
    if image is not None and not any(name.endswith(f"/{image}") for name, _ in found):
        raise InputError(f"--image {brief(image)}: {path} has {_listed(list(variables)) or 'none'}; give one of them")
    if image is None and len(variables) > 1:
        raise InputError(
            f"{path} holds {len(variables)} variables: {_listed(list(variables))}; name one, e.g. --image "
            f"{next(iter(variables))}, or a level whose variables are channels, e.g. {path.rstrip('/')}/{names[0]}"
        )
    if not found:
        raise InputError(f"{path}: none of the levels that its multiscales name is there; name an array in it")
    return sorted(found, key=lambda one: -prod(one[1].shape))


def groups_in(group: zarr.Group) -> dict[str, zarr.Group]:
    """The levels of a pyramid that are groups, by name; none where what it says makes no sense, or some are arrays."""
    try:
        found = {level.name: group[level.name] for level in _levels(group)}
    except _INVALID:
        return {}
    groups = {name: node for name, node in found.items() if isinstance(node, zarr.Group)}
    return groups if len(groups) == len(found) else {}


def _arrays(group: zarr.Group) -> dict[str, zarr.Array]:
    """Those of two axes or more, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every file in it that is none of zarr's own
        return {name: node for name, node in sorted(group.arrays()) if node.ndim > 1}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


# --- what is said of levels ---


def _levels(group: zarr.Group) -> list[Level]:
    """In the order in which they are named. Raises one of `_INVALID`."""
    said = dict(group.attrs["multiscales"])
    if "layout" in said:
        return [_of_layout(dict(entry)) for entry in said["layout"]]
    return _of_tiles(group, said)


def _of_layout(entry: Mapping[str, Any]) -> Level:
    name = posixpath.normpath(str(entry.get("asset") or entry["group"]).strip("/"))
    if name.startswith(".."):
        raise ValueError(f"{name} lies outside of it")
    relative = dict(entry.get("transform") or entry)
    source = entry.get("derived_from") or entry.get("from_group")
    return Level(
        name,
        {key: entry[key] for key in georeference.TRANSFORMS if key in entry},
        None if source is None else posixpath.normpath(str(source).strip("/")),
        tuple(map(float, relative.get("scale") or ())),
        tuple(map(float, relative.get("translation") or ())),
    )


def _of_tiles(group: zarr.Group, said: Mapping[str, Any]) -> list[Level]:
    """Levels are called like the tile matrices; where only the name of a known set is given, like numbers."""
    tiles, limits = said["tile_matrix_set"], dict(said.get("tile_matrix_limits") or {})
    if not isinstance(tiles, Mapping):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [Level(name, {}) for name, _ in group.members() if name.isdigit()]
    crs = tiles.get("supportedCRS") or tiles.get("crs")
    swapped = str((tiles.get("orderedAxes") or "x")[0]).lower()[:1] in ("n", "y") or str(
        (tiles.get("orderedAxes") or "x")[0]
    ).lower().startswith("lat")
    found = []
    for matrix in tiles.get("tileMatrices") or tiles["tileMatrix"]:
        name = str(matrix.get("id", matrix.get("identifier")))
        where = dict({"crs": crs} if crs else {})
        with suppress(*_INVALID):
            where |= _of_tile(matrix, dict(limits.get(name) or {}), swapped=swapped, degrees=_in_degrees(crs))
        found.append(Level(name, where))
    return found


def _in_degrees(crs: Any) -> bool:
    wkt, _ = georeference.crs_of([{"crs": crs}]) if crs else (None, ())
    return georeference.unit_of(wkt) == "degree"


def _of_tile(matrix: Mapping[str, Any], limit: Mapping[str, Any], *, swapped: bool, degrees: bool) -> dict[str, Any]:
    """The transform of the first pixel of the tiles that there are."""
    size = matrix.get("cellSize")
    if size is None:
        size = float(matrix["scaleDenominator"]) * _PIXEL / (_DEGREE if degrees else 1)
    size = float(size)
    x, y = map(float, matrix.get("pointOfOrigin") or matrix["topLeftCorner"])
    if swapped:
        x, y = y, x
    x += size * int(limit.get("minTileCol") or 0) * int(matrix["tileWidth"])
    y -= size * int(limit.get("minTileRow") or 0) * int(matrix["tileHeight"])
    return {"spatial:transform": [size, 0.0, x, 0.0, -size, y]}


# --- where a level lies ---


def said_above(path: str, array: zarr.Array) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Attributes that say the reference system of the `array` at `path`, and such as say where it lies, of the pyramid
    that it is a level of; none where it is of none. What makes no sense says nothing."""
    for above, inside in _above(path):
        try:
            group = stores.open_group(above, "r")
        except FileNotFoundError:
            continue
        if not is_pyramid(group):
            continue
        with suppress(*_INVALID):
            levels = {level.name: level for level in _levels(group)}
            own = next(
                (level for name, level in levels.items() if inside == name or inside.startswith(f"{name}/")), None
            )
            if own is not None:
                attributes = dict(group.attrs)
                return [own.said, attributes], [own.said, *_derived(own, levels, attributes, array)]
    return [], []


def _above(path: str) -> Iterator[tuple[str, str]]:
    scheme, mark, rest = path.rstrip("/").rpartition("://")
    if mark and "?" in rest:  # what follows is no path
        return
    parts = rest.split("/")
    for n in range(len(parts) - 1, max(0, len(parts) - 1 - _DEEPEST), -1):
        yield f"{scheme}{mark}{'/'.join(parts[:n]) or '/'}", "/".join(parts[n:])


def _derived(
    own: Level, levels: Mapping[str, Level], attributes: Mapping[str, Any], array: zarr.Array
) -> list[Mapping[str, Any]]:
    """What follows for a level from where another one lies: those that it was made of, else all of the pyramid."""
    scale, offset, level, seen = [1.0, 1.0], [0.0, 0.0], own, {own.name}
    while not (level is not own and level.said.get("spatial:transform")):
        if level.source is None or level.source not in levels or level.source in seen:
            break
        step = _last_two(level.scale, 1.0)
        moved = [
            0.0 if t in (0.0, (s - 1) / 2) else t for t, s in zip(_last_two(level.translation, 0.0), step, strict=True)
        ]
        offset = [s * o + t for s, o, t in zip(step, offset, moved, strict=True)]
        scale = [s * a for s, a in zip(step, scale, strict=True)]
        level = levels[level.source]
        seen.add(level.name)
    base = next(
        (said for said in (level.said, attributes) if any(key in said for key in georeference.TRANSFORMS)), None
    )
    if base is None or (level.source is None and level is own and level is not next(iter(levels.values()))):
        return _by_box(attributes, array)
    try:
        a, b, c, d, e, f = georeference.affine(base)
    except _INVALID:
        return _by_box(attributes, array)
    (sy, sx), (oy, ox) = scale, offset
    moved_to = [a * sx, b * sy, c + a * ox + b * oy, d * sx, e * sy, f + d * ox + e * oy]
    kept = {key: base[key] for key in ("spatial:registration",) if key in base}
    return [{"spatial:transform": moved_to, **kept}]


def _last_two(values: Sequence[float], other: float) -> list[float]:
    """Of y and x, which are the last ones."""
    found = list(values[-2:]) if len(values) >= 2 else [other, other]
    if not all(map(isfinite, found)):
        raise ValueError
    return found


def _by_box(attributes: Mapping[str, Any], array: zarr.Array) -> list[Mapping[str, Any]]:
    """All levels cover the box that the pyramid says; its upper edge comes first, as in every transform of a north-up
    map."""
    box = attributes.get("spatial:bbox") or attributes.get("proj:bbox")
    if not isinstance(box, Sequence) or len(box) != 4 or array.ndim < 2:
        return []
    left, bottom, right, top = map(float, box)
    height, width = array.shape[-2:]
    return [{"spatial:transform": [(right - left) / width, 0.0, left, 0.0, (bottom - top) / height, top]}]
