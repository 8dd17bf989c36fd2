"""Where voxels lie, as the transformations of OME-Zarr 0.4 to 0.6 say it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

from unet_engine.volumes.frame import Frame


@dataclass(frozen=True)
class Placed:
    """Per axis; None where nothing says it."""

    scale: list[float] | None = None
    translation: list[float] | None = None
    frame: Frame | None = None
    """Where the spatial axes are turned or sheared."""
    axes: tuple[str, ...] | None = None
    """What the axes of the array are called, where they are not those of the coordinate system in their order."""


def axes_of(image: Mapping[str, Any]) -> list[Any]:
    """The axes of a multiscale image: its own, or of the coordinate system that its levels are placed in."""
    if image.get("axes"):
        return list(image["axes"])
    systems = {system.get("name"): system["axes"] for system in image.get("coordinateSystems") or ()}
    if not systems:
        return []
    moves = image["datasets"][0].get("coordinateTransformations") or [{}]
    wanted = _name(moves[-1].get("output"))
    if wanted is not None and wanted not in systems and len(systems) > 1:
        raise ValueError(
            f"its levels lie in the coordinate system {wanted!r}, and there are {', '.join(map(str, systems))}"
        )
    return list(systems.get(wanted, next(iter(systems.values()))))


def _name(of: Any) -> Any:
    """A coordinate system is named by text, or by an object that has its name."""
    return of.get("name") if isinstance(of, Mapping) else of


def _begin(move: Mapping[str, Any]) -> Any:
    of = move.get("input")
    return of.get("name", of.get("path")) if isinstance(of, Mapping) else of


def of_level(image: Mapping[str, Any], level: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The transformations of a level, in order. In 0.6 those of the image lead on to other coordinate systems, and are
    none of the level's. Raises `ValueError` for such as an earlier version does not know."""
    own = list(level.get("coordinateTransformations") or ())
    if image.get("coordinateSystems"):
        begins = [_begin(move) for move in own]
        if any(begin is not None and begin == begins[0] for begin in begins[1:]):
            led = ", ".join(str(_name(move.get("output"))) for move in own)
            raise ValueError(f"its levels lie in several coordinate systems ({led}), and which is meant is not said")
        return own
    moves = [*own, *(image.get("coordinateTransformations") or ())]
    for move in moves:
        if move["type"] not in ("identity", "scale", "translation"):
            raise ValueError(f"transformation {move['type']!r} is not understood")
    return moves


def placed(moves: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> Placed:
    """What `moves`, done one after the other, come to. `axes`: names in lower case, as they are stored.

    Raises `ValueError`, and what values of another form raise.
    """
    plain = list(_flat(moves))
    if any(move["type"] in ("affine", "rotation", "mapAxis", "byDimension") for move in plain):
        return _turned(plain, axes)
    scale: list[float] | None = None
    translation: list[float] | None = None
    for move in plain:
        values = [float(v) for v in move[move["type"]]] if move["type"] != "identity" else []
        if move["type"] == "scale":
            scale = [s * v for s, v in zip(scale or [1.0] * len(values), values, strict=True)]
            translation = translation and [t * v for t, v in zip(translation, values, strict=True)]
        elif move["type"] == "translation":
            translation = [t + v for t, v in zip(translation or [0.0] * len(values), values, strict=True)]
    return Placed(scale, translation)


def _flat(moves: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for move in moves:
        if move["type"] == "sequence":
            yield from _flat(move["transformations"])
        elif move["type"] == "byDimension":
            yield move
        elif move["type"] in ("identity", "scale", "translation", "affine", "rotation", "mapAxis"):
            if move["type"] != "identity" and move["type"] not in move:
                raise ValueError(f"the numbers of its {move['type']} lie in an array of their own")
            yield move
        else:
            raise ValueError(f"transformation {move['type']!r} is not understood")


def _turned(moves: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> Placed:
    n = len(axes)
    matrix, origin = _composed(moves, axes)
    spatial = [i for i, a in enumerate(axes) if a in "zyx"]
    if any(matrix[i][j] for i in range(n) for j in range(n) if i != j and not {i, j} <= set(spatial)):
        raise ValueError("a transformation mixes axes of space with others")
    if not _is_straight(matrix, spatial):
        # the names are those of the world: an array has its x last, whatever turns it
        slowest_first = iter(sorted((axes[i] for i in spatial), key="zyx".index))
        names = [next(slowest_first) if i in spatial else a for i, a in enumerate(axes)]
        rows_of = [axes.index(a) for a in names]
        matrix, origin, axes = [matrix[i] for i in rows_of], [origin[i] for i in rows_of], names
    if _is_straight(matrix, spatial):
        return Placed([matrix[i][i] for i in range(n)], origin, axes=tuple(axes))
    ordered = [axes.index(a) for a in "zyx" if a in axes]
    rows = tuple(tuple(matrix[i][j] for j in ordered) for i in reversed(ordered))
    frame = Frame(rows, tuple(origin[i] for i in reversed(ordered)))
    sizes = [hypot(*(matrix[i][j] for i in spatial)) if j in spatial else matrix[j][j] for j in range(n)]
    return Placed(sizes, origin, frame, tuple(axes))


def _is_straight(matrix: Sequence[Sequence[float]], spatial: Sequence[int]) -> bool:
    return not any(matrix[i][j] for i in spatial for j in spatial if i != j)


_Linear = tuple[list[list[float]], list[float]]
"""A matrix, and what is added."""


def _composed(moves: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> _Linear:
    """`moves`, done one after the other, as one."""
    n = len(axes)
    matrix, origin = [[float(i == j) for j in range(n)] for i in range(n)], [0.0] * n
    for move in moves:
        step, added = _by_dimension(move, axes) if move["type"] == "byDimension" else _linear(move, n)
        matrix = [[sum(step[i][k] * matrix[k][j] for k in range(n)) for j in range(n)] for i in range(n)]
        origin = [sum(step[i][k] * origin[k] for k in range(n)) + added[i] for i in range(n)]
    return matrix, origin


def _by_dimension(move: Mapping[str, Any], axes: Sequence[str]) -> _Linear:
    """Transformations of some axes each, by the numbers or names of these, as one. Raises `ValueError` where an axis
    comes from none of them, or from two."""
    n = len(axes)
    matrix, added, made = [[0.0] * n for _ in range(n)], [0.0] * n, list[int]()
    for one in move["transformations"]:
        ins, outs = ([_number_of(axis, axes) for axis in _ends(one, end)] for end in ("input", "output"))
        if len(ins) != len(outs):
            raise ValueError(f"byDimension makes {len(outs)} axes of {len(ins)}")
        rows, more = _composed(list(_flat([one.get("transformation") or one])), [axes[i] for i in ins])
        for i, out in enumerate(outs):
            added[out] = more[i]
            for j, source in enumerate(ins):
                matrix[out][source] = rows[i][j]
        made += outs
    if sorted(made) != list(range(n)):
        raise ValueError("byDimension does not make each axis once")
    return matrix, added


def _ends(one: Mapping[str, Any], end: str) -> list[Any]:
    """The axes that a part of byDimension takes or makes: as numbers in 0.6, by name in what was proposed before."""
    found = one.get(f"{end}_axes", one.get(end))
    if not isinstance(found, list):
        raise ValueError(f"byDimension does not list its {end} axes")
    return found


def _number_of(axis: Any, axes: Sequence[str]) -> int:
    found = axes.index(axis.lower()) if isinstance(axis, str) else int(axis)
    if not 0 <= found < len(axes):
        raise ValueError(f"byDimension names axis {axis}, and there are {len(axes)}")
    return found


def _linear(move: Mapping[str, Any], n: int) -> _Linear:
    """One transformation as a matrix, and what is added."""
    kind = move["type"]
    zeros = [0.0] * n
    if kind == "identity":
        return [[float(i == j) for j in range(n)] for i in range(n)], zeros
    if kind == "scale":
        values = [float(v) for v in move["scale"]]
        return [[values[i] if i == j else 0.0 for j in range(n)] for i in range(n)], zeros
    if kind == "translation":
        values = [float(v) for v in move["translation"]]
        return [[float(i == j) for j in range(n)] for i in range(n)], [values[i] for i in range(n)]
    if kind == "mapAxis":
        order = [int(v) for v in move["mapAxis"]]
        if sorted(order) != list(range(n)):
            raise ValueError("mapAxis names no axis for each")
        return [[float(order[i] == j) for j in range(n)] for i in range(n)], zeros
    rows = [[float(v) for v in row] for row in move[kind]]
    more = kind == "affine"
    if len(rows) not in (n, n + more) or any(len(row) != n + more for row in rows):
        raise ValueError(f"the matrix of its {kind} does not fit {n} axes")
    return [row[:n] for row in rows[:n]], [row[n] for row in rows[:n]] if more else zeros
