"""Holes of what is not 0: voxels that are 0 in every channel and that no path of such voxels, from face to face, leads
out of the volume. nnU-Net takes them for inside (`scipy.ndimage.binary_fill_holes` of the whole image).

Background is held as runs along the last axis, some planes at a time, and of what lies below only what may still turn
out to be a hole: so the memory that this takes follows from the shape of the background, and not from the volume's size.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from unet_engine.errors import DataError
from unet_engine.plan.box import Box
from unet_engine.volumes.base import Volume
from unet_engine.volumes.pieces import pieces

Array = npt.NDArray[Any]
RUNS = 2**18
"""Of background that are looked at together, in whole planes; some 100 bytes are needed for each."""
MOST = 2**24
"""Runs that may be held, of holes and of what may turn out to be one: 256 MiB."""


@dataclass(frozen=True)
class Holes:
    """Of a volume of `shape` (z, y, x). Small, and picklable."""

    shape: tuple[int, ...]
    packed: bytes
    """First places of runs along the last axis and those behind their ends, int64, (2, n), compressed with zlib; places
    are counted in C order in a volume whose last axis is one voxel longer."""

    def within(self, box: Box) -> Array | None:
        """Which voxels of `box` lie in a hole, (*box.shape) bool; None where none does. What lies outside of the volume
        is in none."""
        along, rows = self.shape[2] + 1, self.shape[1]
        lo, hi = max(box.lo[0], 0) * rows * along, max(box.hi[0], 0) * rows * along
        at = slice(*np.searchsorted(self._runs[0], [lo, hi]))
        starts, ends = self._runs[0][at], self._runs[1][at]
        line, first = np.divmod(starts, along)
        first, last = np.maximum(first, box.lo[2]), np.minimum(ends - line * along, box.hi[2])
        plane, row = np.divmod(line, rows)
        met = (row >= box.lo[1]) & (row < box.hi[1]) & (first < last)
        if not met.any():
            return None
        line = (plane[met] - box.lo[0]) * box.shape[1] + row[met] - box.lo[1]
        steps = np.zeros((box.shape[0] * box.shape[1], box.shape[2] + 1), np.int8)
        steps[line, first[met] - box.lo[2]] = 1
        steps[line, last[met] - box.lo[2]] = -1
        inside: Array = np.cumsum(steps[:, :-1], axis=1, dtype=np.int8).astype(bool).reshape(box.shape)
        return inside

    def meets(self, box: Box) -> bool:
        """Whether any voxel of `box` lies in a hole."""
        return self.within(box) is not None

    @cached_property
    def _runs(self) -> Array:
        return np.frombuffer(zlib.decompress(self.packed), np.int64).reshape(2, -1)

    @classmethod
    def of(cls, shape: tuple[int, ...], starts: Array, ends: Array) -> Holes | None:
        """None where there are none."""
        order = np.argsort(starts)
        runs = np.stack([starts[order], ends[order]]).astype(np.int64)
        return cls(shape, zlib.compress(runs.tobytes(), 1)) if starts.size else None


_FOUND: WeakKeyDictionary[Volume, Holes | None] = WeakKeyDictionary()
"""Of volumes that are still open."""


def holes_of(volume: Volume) -> Holes | None:
    """Those of what is not 0 in any channel of `volume`, all of which is read; None where there are none, as in a plane,
    which is open to both sides. Raises `DataError` as reading does, and where they are too many to be held."""
    if volume not in _FOUND:
        _FOUND[volume] = _found(volume)
    return _FOUND[volume]


def outside(voxels: Array, holes: Holes | None, box: Box) -> Array:
    """Which of the voxels (c, *box.shape) of `box` are 0 in every channel, and in no hole; (*box.shape) bool."""
    found: Array = (voxels == 0).all(axis=0)
    filled = None if holes is None else holes.within(box)
    return found if filled is None else found & ~filled


def outside_of(voxels: Array) -> Array:
    """The same of a whole image (c, *space)."""
    box = Box.of_shape(voxels.shape[1:])
    if box.ndim != 3:
        return outside(voxels, None, box)
    search = _Search(box.shape)
    search.add(*_runs((voxels == 0).all(axis=0), box, box.shape))
    return outside(voxels, search.holes(), box)


def _found(volume: Volume) -> Holes | None:
    shape = volume.shape
    if len(shape) != 3:
        return None
    search = _Search(shape)
    for slab in _slabs(volume):
        found = [
            _runs(_background(volume, piece), piece, shape) for piece in pieces(volume, slab) if not piece.is_empty
        ]
        search.add(*(np.concatenate(ends) for ends in zip(*found, strict=True)))
        if search.held > MOST:
            raise DataError(
                f"{volume.path}: what is 0 in it has more than {MOST:,} parts that may be holes; use --normalize with "
                "foreground in place of foreground=filled"
            )
    return search.holes()


def _slabs(volume: Volume) -> Iterator[Box]:
    """The volume in slabs of a chunk's thickness."""
    step = min(volume.chunks[0], volume.shape[0])
    for lo in range(0, volume.shape[0], step):
        yield Box((lo, 0, 0), (min(lo + step, volume.shape[0]), *volume.shape[1:]))


def _background(volume: Volume, piece: Box) -> Array:
    """What is 0 in all channels, (*piece.shape) bool."""
    if volume.fill_value == 0 and not volume.has_data(piece):
        return np.ones(piece.shape, bool)
    return outside(volume.read(piece), None, piece)


def _runs(background: Array, box: Box, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """First places of its runs along the last axis, and those behind their ends, as `Holes.packed` counts them.
    background: (*box.shape) bool, a part of a volume of `shape`."""
    rows, along = box.shape[0] * box.shape[1], box.shape[2] + 1
    closed = np.zeros(rows * along + 1, bool)
    closed[1:].reshape(rows, along)[:, :-1] = background.reshape(rows, -1)
    line, x = np.divmod(np.flatnonzero(closed[1:] != closed[:-1]), along)
    plane, row = np.divmod(line, box.shape[1])
    places = ((plane + box.lo[0]) * shape[1] + row + box.lo[1]) * (shape[2] + 1) + x + box.lo[2]
    return places[::2], places[1::2]


_NONE: Array = np.zeros(0, np.int64)


@dataclass
class _Search:
    """Takes the runs of background in slabs of whole planes, from the first to the last, and tells which are holes."""

    shape: tuple[int, ...]
    _last: tuple[Array, Array, Array] = field(default_factory=lambda: (_NONE, _NONE, _NONE))
    """Runs of the plane that was the last to be added, and the part each belongs to: 0 is what leads outside."""
    _open: tuple[Array, Array, Array] = field(default_factory=lambda: (_NONE, _NONE, _NONE))
    """Runs of parts that reach that plane and may be holes, with their parts, numbered from 1."""
    _closed: list[tuple[Array, Array]] = field(default_factory=list)

    @property
    def held(self) -> int:
        """Runs."""
        return len(self._open[0]) + sum(len(starts) for starts, _ in self._closed)

    def holes(self) -> Holes | None:
        """Once all planes were added: also what no later plane had a way on for."""
        starts, ends = zip(*self._closed, self._open[:2], strict=True)
        return Holes.of(self.shape, np.concatenate(starts), np.concatenate(ends))

    def add(self, starts: Array, ends: Array) -> None:
        """Runs of a slab, which may be cut along the last axis, in any order."""
        order = np.argsort(starts)
        starts, ends = starts[order], ends[order]
        begins = np.concatenate([[True], starts[1:] != ends[:-1]])[: len(starts)]
        starts, ends = starts[begins], ends[np.concatenate([begins[1:], [True]])[: len(ends)]]
        plane = starts // self._plane
        firsts = np.flatnonzero(np.concatenate([[True], plane[1:] != plane[:-1]])[: len(plane)])
        lo = 0
        while lo < len(starts):
            fit = firsts[(firsts > lo) & (firsts <= lo + RUNS)]
            later = firsts[firsts > lo]
            hi = int(fit[-1]) if len(fit) and lo + RUNS < len(starts) else len(starts)
            if hi == len(starts) > lo + RUNS and len(later):
                hi = int(later[0])  # a plane of more than so many
            self._add(starts[lo:hi], ends[lo:hi])
            lo = hi

    @property
    def _plane(self) -> int:
        """Places of a plane."""
        return self.shape[1] * self._along

    @property
    def _along(self) -> int:
        return self.shape[2] + 1

    def _add(self, starts: Array, ends: Array) -> None:
        """Runs of whole planes, in order, and whole."""
        known = int(self._open[2].max(initial=0))
        runs = np.arange(len(starts)) + known + 1
        line = starts // self._along
        goes_on = line % self.shape[1] < self.shape[1] - 1
        edges = [
            (np.zeros(np.count_nonzero(out := self._leads_out(starts, ends)), np.int64), runs[out]),
            _touching((starts[goes_on] + self._along, ends[goes_on] + self._along, runs[goes_on]), starts, ends, runs),
            _touching((starts + self._plane, ends + self._plane, runs), starts, ends, runs),
            _touching((self._last[0] + self._plane, self._last[1] + self._plane, self._last[2]), starts, ends, runs),
        ]
        part = _parts(known + 1 + len(starts), *(np.concatenate(side) for side in zip(*edges, strict=True)))
        top = starts // self._plane == starts[-1] // self._plane
        at_top = part[runs[top]]
        reaching = np.unique(at_top[at_top > 0])
        number = np.zeros(len(part), np.int64)
        number[reaching] = np.arange(len(reaching)) + 1
        self._last = starts[top], ends[top], number[at_top]
        held = [np.concatenate(pair) for pair in zip(self._open[:2], (starts, ends), strict=True)]
        belongs = part[np.concatenate([self._open[2], runs])]
        inside, goes = belongs > 0, number[belongs] > 0
        self._open = held[0][goes], held[1][goes], number[belongs[goes]]
        closed = inside & ~goes
        if closed.any():
            self._closed.append((held[0][closed], held[1][closed]))

    def _leads_out(self, starts: Array, ends: Array) -> Array:
        """Which runs lie at a face of the volume."""
        line, x = np.divmod(starts, self._along)
        plane, row = np.divmod(line, self.shape[1])
        at_end = ends - line * self._along == self.shape[2]
        at_rows = (row == 0) | (row == self.shape[1] - 1)
        found: Array = (x == 0) | at_end | at_rows | (plane == 0) | (plane == self.shape[0] - 1)
        return found


def _touching(moved: tuple[Array, Array, Array], starts: Array, ends: Array, names: Array) -> tuple[Array, Array]:
    """Pairs of names, of runs that share a place: some that were moved, with theirs, and others."""
    first = np.searchsorted(ends, moved[0], side="right")
    count = np.searchsorted(starts, moved[1], side="left") - first
    several = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(several)) - np.repeat(np.cumsum(count) - count, count)
    return moved[2][several], names[first[several] + within]


def _parts(count: int, a: Array, b: Array) -> Array:
    """By node, the least node that it is connected with, by pairs of nodes `a` and `b`."""
    least = np.arange(count)
    while True:
        ends = least[a], least[b]
        differ = ends[0] != ends[1]
        if not differ.any():
            return least
        a, b = a[differ], b[differ]
        low, high = np.minimum(*ends)[differ], np.maximum(*ends)[differ]
        np.minimum.at(least, high, low)
        while (further := least[least]).tobytes() != least.tobytes():
            least = further
