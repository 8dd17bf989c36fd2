"""Where voxels lie in the world, where spacing and translation along the axes do not say it: turned, flipped, or on a
map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import acos, degrees, hypot
from typing import Any

import numpy as np

_ALONG = 1e-5
"""Part of a step that may point elsewhere than along an axis of the world: headers round."""
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


@dataclass(frozen=True)
class Frame:
    """``world = origin + matrix @ voxel``: voxels count in the order of the spatial axes, z, y, x, the world x, y,
    z."""

    matrix: tuple[tuple[float, ...], ...]
    """A row for each axis of the world, in it a number for each axis of the voxels."""
    origin: tuple[float, ...]
    """Where the middle of the first voxel lies."""
    space: str = ""
    """Where the axes of the world point: ``RAS`` (right, anterior, superior), ``LPS``, or ``crs``; empty if unknown."""
    crs: str | None = None
    """Of a map: the coordinate reference system as WKT."""

    @classmethod
    def of(cls, affine: Sequence[Sequence[float]], space: str = "", crs: str | None = None) -> Frame:
        """From rows of numbers for voxels i, j, k (x, y, z; the fastest axis first) and the origin, as most formats
        have it."""
        n = len(affine)
        return cls(
            tuple(tuple(float(row[i]) for i in reversed(range(n))) for row in affine),
            tuple(float(row[n]) for row in affine),
            space,
            crs,
        )

    @property
    def sizes(self) -> tuple[float, ...]:
        """Of a voxel, along its own axes z, y, x."""
        return tuple(hypot(*column) for column in zip(*self.matrix, strict=True))

    @property
    def is_along(self) -> bool:
        """Whether x, y and z of the voxels run along those of the world, forwards or backwards."""
        n = len(self.matrix)
        return all(
            abs(self.matrix[w][v]) <= _ALONG * size
            for v, size in enumerate(self.sizes)
            for w in range(n)
            if w != n - 1 - v
        )

    @property
    def spacing(self) -> tuple[float, ...]:
        """Per axis z, y, x; with a sign where the axes run along those of the world."""
        n = len(self.matrix)
        return tuple(self.matrix[n - 1 - v][v] for v in range(n)) if self.is_along else self.sizes

    @property
    def translation(self) -> tuple[float, ...]:
        """Per axis z, y, x; 0 where they are turned, as then none says anything."""
        return tuple(reversed(self.origin)) if self.is_along else (0.0,) * len(self.origin)

    @property
    def orientation(self) -> str | None:
        """Where z, y and x of the voxels point most, e.g. ``SPL``, each along another axis of the world; None where the
        world does not say.

        Of voxels that lie obliquely, the nearest directions without shear (polar decomposition), the clearest axis
        first, as nibabel has it."""
        found = self._nearest()
        return None if found is None else "".join(name for name, _ in found)

    @property
    def tilt(self) -> float:
        """Degrees between an axis of the voxels and the direction that `orientation` names for it, the largest; 0 where
        it names none."""
        return max((degrees(acos(min(1.0, part))) for _, part in self._nearest() or ()), default=0.0)

    def _nearest(self) -> list[tuple[str, float]] | None:
        """By axis of the voxels, the name of its direction and the cosine of the angle to it."""
        n = len(self.matrix)
        if len(self.space) != n or not set(self.space) <= set(_OPPOSITE) or not all(self.sizes):
            return None
        unit = np.array(self.matrix) / np.array(self.sizes)
        left, stretch, right = np.linalg.svd(unit)
        if stretch[-1] <= stretch[0] * n * np.finfo(float).eps:
            return None
        near = left @ right
        found, free = [("", 0.0)] * n, list(range(n))
        for v in np.argsort(-np.max(near**2, axis=0), kind="stable"):
            w = max(free, key=lambda i: abs(near[i, v]))
            free.remove(w)
            name = self.space[w] if near[w, v] > 0 else _OPPOSITE[self.space[w]]
            found[v] = (name, float(abs(unit[w, v])))
        return found

    def turned(self, order: Sequence[int], backwards: Sequence[bool], shape: Sequence[int]) -> Frame:
        """Of the same voxels, `shape` many, their axes in another order, some of them backwards (`order` and
        `backwards` by new axis)."""
        last = [0.0] * len(shape)
        for a, back in zip(order, backwards, strict=True):
            last[a] = float(shape[a] - 1) if back else 0.0
        rows = tuple(
            tuple(-row[a] if b else row[a] for a, b in zip(order, backwards, strict=True)) for row in self.matrix
        )
        return replace(self.moved(last), matrix=rows)

    def seen_in(self, space: str) -> Frame:
        """The same places in the words of another space, e.g. ``RAS`` for ``LPS``; as it is where one of the two is
        none of the body's."""
        both = (self.space, space)
        if len(space) != len(self.space) or any(not s or not set(s) <= set(_OPPOSITE) for s in both):
            return self
        if any(a not in (b, _OPPOSITE[b]) for a, b in zip(*both, strict=True)):
            return self
        signs = [1.0 if a == b else -1.0 for a, b in zip(*both, strict=True)]
        return Frame(
            tuple(tuple(s * m + 0.0 for m in row) for s, row in zip(signs, self.matrix, strict=True)),
            tuple(s * o + 0.0 for s, o in zip(signs, self.origin, strict=True)),
            space,
        )

    @property
    def affine(self) -> list[list[float]]:
        """Rows of numbers for voxels x, y, z, the fastest axis first, and the origin: what `of` takes."""
        return [[*reversed(row), o] for row, o in zip(self.matrix, self.origin, strict=True)]

    def times(self, factor: float) -> Frame:
        """The same in a unit that is so many times as small."""
        return self.stretched([factor] * len(self.origin))

    def stretched(self, factors: Sequence[float]) -> Frame:
        """The same where x, y, z of the world are measured in units so many times as small."""
        return replace(
            self,
            matrix=tuple(tuple(m * f for m in row) for row, f in zip(self.matrix, factors, strict=True)),
            origin=tuple(o * f for o, f in zip(self.origin, factors, strict=True)),
        )

    def resampled(self, factors: Sequence[float], begin: Sequence[float] | None = None) -> Frame:
        """Of a volume whose voxels are so many times as long along z, y, x, the first of them at voxel `begin`; None:
        of one between the same ends."""
        moved = self.moved([(f - 1) / 2 for f in factors] if begin is None else begin)
        return replace(moved, matrix=tuple(tuple(m * f for m, f in zip(r, factors, strict=True)) for r in self.matrix))

    def moved(self, start: Sequence[float]) -> Frame:
        """Of a part of the volume that begins at voxel `start`."""
        moved = [
            o + sum(m * s for m, s in zip(row, start, strict=True))
            for o, row in zip(self.origin, self.matrix, strict=True)
        ]
        return replace(self, origin=tuple(moved))

    def facts(self) -> dict[str, Any]:
        """As plain values, for people and for the output's attributes."""
        return {
            "space": self.space or None,
            "matrix": [list(row) for row in self.matrix],
            "origin": list(self.origin),
            "orientation": self.orientation,
            "crs": self.crs,
        }

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Frame:
        """Raises what values of another form raise."""
        matrix = tuple(tuple(map(float, row)) for row in facts["matrix"])
        origin = tuple(map(float, facts["origin"]))
        if not 2 <= len(matrix) <= 3 or len(origin) != len(matrix) or any(len(row) != len(matrix) for row in matrix):
            raise ValueError("matrix and origin do not fit")
        return cls(matrix, origin, str(facts.get("space") or ""), facts.get("crs"))


def covered(full: int, coarse: int) -> float:
    """How many voxels of an axis one of a coarser level covers, of `full` and `coarse` many: a whole number where
    rounding the length up or down explains it."""
    whole = round(full / coarse)
    return float(whole) if coarse in (full // max(1, whole), -(-full // max(1, whole))) else full / coarse
