"""Where tilings are compared: corners of windows in the inside of a volume. Pure geometry.

A window of any size is laid with one corner there, and its octant at that corner is looked at: in it every distance
from the window's border occurs, along each axis. The yardstick is a larger window around the octant, so that what the
octant lacks in context at its corner, the yardstick has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unet_engine.plan.box import Box


@dataclass(frozen=True)
class AxisSizes:
    """One axis of the volume and what the network takes along it, in voxels of its output."""

    size: int
    least: int
    """Shortest window."""
    step: int
    """From one length that it takes to the next; 0 where it takes the shortest alone."""
    lattice: int
    """Windows begin at multiples of it."""
    margin: int = 0
    """Voxels of the input that are lost at each side."""

    def at_least(self, length: int) -> int | None:
        """The shortest window of `length` or more that fits into the axis, else the longest that fits; None where none
        does."""
        room = self.size - 2 * self.margin
        if room < self.least:
            return None
        if not self.step:
            return self.least
        wanted = self.least + max(0, -(-(length - self.least) // self.step)) * self.step
        return min(wanted, self.least + (room - self.least) // self.step * self.step)


@dataclass(frozen=True)
class Corner:
    """Per axis: where windows begin (sign 1), where they end (-1), or that there is room for a single one (0), which
    then begins at `at`."""

    at: tuple[int, ...]
    signs: tuple[int, ...]

    def box(self, lengths: Sequence[int]) -> Box:
        """The box of these lengths that has its corner here."""
        lo = [x - n if s < 0 else x for x, s, n in zip(self.at, self.signs, lengths, strict=True)]
        return Box(tuple(lo), tuple(l + n for l, n in zip(lo, lengths, strict=True)))

    def around(self, octant: Box, lengths: Sequence[int], axes: Sequence[AxisSizes]) -> Box:
        """The window of `lengths` with the octant in its middle, as far as the volume goes, on the lattice."""
        lo = []
        for a, axis in enumerate(axes):
            middle = (octant.lo[a] + octant.hi[a] - lengths[a]) // 2
            start = min(max(middle, axis.margin), axis.size - axis.margin - lengths[a])
            first = -(-axis.margin // axis.lattice)
            lo.append(max(first, start // axis.lattice) * axis.lattice if self.signs[a] else self.at[a])
        return Box(tuple(lo), tuple(l + n for l, n in zip(lo, lengths, strict=True)))


def corner_near(
    box: Box, longest: Sequence[int], axes: Sequence[AxisSizes], strides: Sequence[int], rng: np.random.Generator
) -> Corner:
    """A corner near the middle of `box` at which windows up to `longest` have room, where windows of a grid of
    `strides` meet if that may be. Where an axis has no room for a border in its inside, windows span it."""
    at, signs = [], []
    for a, axis in enumerate(axes):
        middle = (box.lo[a] + box.hi[a]) // 2
        choices = []
        for sign in (1, -1):
            low = axis.margin + (longest[a] if sign < 0 else 1)
            high = axis.size - axis.margin - (longest[a] if sign > 0 else 1)
            # windows that end here begin on the lattice, too
            offset = longest[a] % axis.lattice if sign < 0 else 0
            unit = axis.lattice if offset or strides[a] % axis.lattice else strides[a]
            for step in (unit, axis.lattice):
                first, last = -(-(low - offset) // step), (high - offset) // step
                if first <= last:
                    choices.append((min(max(middle // step, first), last) * step + offset, sign))
                    break
        if choices:
            x, sign = choices[int(rng.integers(len(choices)))]
        else:
            x, sign = axis.margin, 0
        at.append(x)
        signs.append(sign)
    return Corner(tuple(at), tuple(signs))
