"""Half-open n-D integer boxes: the geometry everything else is written in. No dependencies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Box:
    """The voxels x with ``lo[a] <= x[a] < hi[a]`` on every axis a; 2D and 3D alike.

    A box with ``hi <= lo`` on some axis is empty: `is_empty` is true and `size` is 0.
    """

    lo: tuple[int, ...]
    hi: tuple[int, ...]

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        return cls((0,) * len(shape), tuple(shape))

    @property
    def ndim(self) -> int:
        return len(self.lo)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(max(0, h - l) for l, h in zip(self.lo, self.hi, strict=True))

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def is_empty(self) -> bool:
        return any(h <= l for l, h in zip(self.lo, self.hi, strict=True))

    def __and__(self, other: Box) -> Box:
        return Box(tuple(map(max, self.lo, other.lo)), tuple(map(min, self.hi, other.hi)))

    def meets(self, other: Box) -> bool:
        """Whether the two share at least one voxel."""
        return not (self & other).is_empty

    def contains(self, other: Box) -> bool:
        return other.is_empty or (self & other) == other

    def shift(self, offset: Sequence[int]) -> Box:
        return Box(
            tuple(l + o for l, o in zip(self.lo, offset, strict=True)),
            tuple(h + o for h, o in zip(self.hi, offset, strict=True)),
        )

    def relative_to(self, origin: Sequence[int]) -> Box:
        return self.shift([-o for o in origin])

    def grow(self, margin: Sequence[int]) -> Box:
        return Box(
            tuple(l - m for l, m in zip(self.lo, margin, strict=True)),
            tuple(h + m for h, m in zip(self.hi, margin, strict=True)),
        )

    def slices(self) -> tuple[slice, ...]:
        """Index of this box in an array whose origin is 0: use on non-negative boxes."""
        return tuple(slice(l, h) for l, h in zip(self.lo, self.hi, strict=True))

    def cells(self, step: Sequence[int]) -> Iterator[Box]:
        """Cut into cells on the lattice of multiples of `step` (the chunks of an array), in C order."""
        ranges = [range(l // s * s, h, s) for l, h, s in zip(self.lo, self.hi, step, strict=True)]
        for corner in itertools.product(*ranges):
            yield self & Box(corner, tuple(c + s for c, s in zip(corner, step, strict=True)))

    def points(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*map(range, self.lo, self.hi))

    def __str__(self) -> str:
        return ",".join(f"{l}:{h}" for l, h in zip(self.lo, self.hi, strict=True))


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box that contains all of `boxes`, of which there is one at least."""
    return Box(
        tuple(map(min, zip(*(box.lo for box in boxes), strict=True))),
        tuple(map(max, zip(*(box.hi for box in boxes), strict=True))),
    )
