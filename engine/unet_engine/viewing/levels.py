"""A volume at several resolutions: those that are stored, and coarser ones made of them as they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from unet_engine.errors import InputError
from unet_engine.paths import said
from unet_engine.plan.box import Box
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.formats import located, open_volume
from unet_engine.volumes.pick import Pick

PIECE = 2**25
"""Bytes that are read of a stored level at once, and for one answer."""
KEPT = 2**27
"""Bytes of decoded chunks that are kept of a pane whose chunks are large."""
ANSWER = 2**18
"""Voxels of an answer: what Neuroglancer asks for at once."""
_MOST_LEVELS = 24


@dataclass(frozen=True)
class Level:
    """One resolution that is stored."""

    volume: Volume
    factors: tuple[int, ...]
    """Per axis z, y, x, how many voxels of the full resolution one of these spans."""


class Levels:
    """Shapes, boxes and factors are spatial, in the order z, y, x."""

    def __init__(self, stored: Sequence[Level], *, changing: bool = False) -> None:
        """stored: the full resolution first; changing: whether voxels are written meanwhile, so that none are kept"""
        self.stored = tuple(stored)
        self._kept: OrderedDict[tuple[int, Box], Future[Array]] = OrderedDict()
        self._keeping = None if changing else threading.Lock()

    @classmethod
    def of(cls, path: str, volume: Volume, pick: Pick, *, changing: bool = False) -> Levels:
        """The full resolution `volume` of what lies at `path`, with the coarser ones that its OME metadata name and
        whose voxels are a whole number of those of the full one."""
        found = [Level(volume, (1,) * len(volume.shape))]
        for number in range(1, 1 if "level" in said(path) else _MOST_LEVELS):
            try:
                coarser = open_volume(located(path, None, number), None, pick)
            except InputError:
                break
            if factors := _factors(volume.shape, coarser.shape):
                found.append(Level(coarser, factors))
        return cls(found, changing=changing)

    @property
    def full(self) -> Volume:
        """The full resolution."""
        return self.stored[0].volume

    @property
    def coarsest(self) -> int:
        """By how many voxels of the full resolution one may stand at most: what makes an answer of the coarsest stored
        level fit `PIECE`."""
        own = max(8, PIECE // (ANSWER * self.full.voxel_bytes))
        return own * prod(self.stored[-1].factors)

    def read(self, box: Box, factors: tuple[int, ...], mean: bool) -> Array:  # noqa: FBT001
        """The voxels of `box` of a resolution whose voxels span `factors` of the full one: (channels, *box.shape).

        mean: of the voxels that one stands for; else the first of them, as labels want it. At the far end, where fewer
        are there, it is made of these."""
        level = self._made_of(factors)
        steps = tuple(f // g for f, g in zip(factors, level.factors, strict=True))
        volume = level.volume
        out = np.empty((volume.channels, *box.shape), np.float32 if mean and prod(steps) > 1 else volume.dtype)
        for part in _parts(box, steps, volume):
            there = Box(
                tuple(l * s for l, s in zip(part.lo, steps, strict=True)),
                tuple(min(h * s, n) for h, s, n in zip(part.hi, steps, volume.shape, strict=True)),
            )
            place = (slice(None), *part.relative_to(box.lo).slices())
            if there.is_empty or not volume.has_data(there):
                out[place] = volume.fill_value
                continue
            voxels = self._voxels(volume, there)
            out[place] = _mean(voxels, steps) if mean else voxels[(slice(None), *(slice(None, None, s) for s in steps))]
        return out if out.dtype == volume.dtype else _rounded(out, volume.dtype)

    def cost(self, shape: Sequence[int], factors: Sequence[int]) -> int:
        """Bytes that have to be read for so many voxels of a resolution."""
        level = self._made_of(factors)
        steps = [f // g for f, g in zip(factors, level.factors, strict=True)]
        counts = (min(n * s, m) for n, s, m in zip(shape, steps, level.volume.shape, strict=True))
        return prod(counts) * level.volume.voxel_bytes

    def _made_of(self, factors: Sequence[int]) -> Level:
        """The coarsest level that is stored and that voxels of a resolution are whole numbers of."""
        return max(
            (one for one in self.stored if all(f % g == 0 for f, g in zip(factors, one.factors, strict=True))),
            key=lambda one: prod(one.factors),
        )

    def _voxels(self, volume: Volume, box: Box) -> Array:
        """As `Volume.read`. Large chunks, of which a piece of the screen is a small part, are decoded once for all that
        lie beside one another."""
        if self._keeping is None or not ANSWER < volume.chunk_bytes * volume.channels <= KEPT // 2:
            return volume.read(box)
        out = np.empty((volume.channels, *box.shape), volume.dtype)
        cells = tuple(l - l % c for l, c in zip(box.lo, volume.chunks, strict=True))
        for cell in Box(cells, box.hi).relative_to(cells).cells(volume.chunks):
            both = cell.shift(cells) & box
            corner = tuple(l - l % c for l, c in zip(both.lo, volume.chunks, strict=True))
            whole = Box(corner, tuple(map(min, map(sum, zip(corner, volume.chunks, strict=True)), volume.shape)))
            found = self._chunk(volume, whole)
            out[(slice(None), *both.relative_to(box.lo).slices())] = found[
                (slice(None), *both.relative_to(corner).slices())
            ]
        return out

    def _chunk(self, volume: Volume, whole: Box) -> Array:
        """One chunk, read once by whoever asks first."""
        assert self._keeping is not None
        key = (id(volume), whole)
        with self._keeping:
            future = self._kept.get(key)
            mine = future is None
            if future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
            while len(self._kept) * volume.chunk_bytes * volume.channels > KEPT:
                self._kept.popitem(last=False)
        if mine:
            try:
                future.set_result(volume.read(whole))
            except BaseException as error:
                with self._keeping:
                    self._kept.pop(key, None)
                future.set_exception(error)
        return future.result()


def _factors(full: Sequence[int], coarse: Sequence[int]) -> tuple[int, ...] | None:
    """How many voxels of the full resolution a coarser one spans per axis; None where that is no power of two: sizes
    may be rounded up or down."""
    if len(full) != len(coarse):
        return None
    found = []
    for n, m in zip(full, coarse, strict=True):
        factor = next((1 << k for k in range(_MOST_LEVELS) if m in (n >> k, -(-n // (1 << k)), round(n / (1 << k)))), 0)
        if not factor:
            return None
        found.append(factor)
    return tuple(found) if prod(found) > 1 else None


def _parts(box: Box, steps: Sequence[int], volume: Volume) -> Iterator[Box]:
    """`box`, in parts that are read at once: whole chunks as far as `PIECE` allows, so that what is not stored costs
    nothing, and memory has a bound."""
    sizes = [max(1, c // s) for c, s in zip(volume.chunks, steps, strict=True)]
    while prod(sizes) * prod(steps) * volume.voxel_bytes > PIECE and max(sizes) > 1:
        a = max(range(len(sizes)), key=lambda i: sizes[i])
        sizes[a] = -(-sizes[a] // 2)
    for a in reversed(range(len(sizes))):
        room = PIECE // max(1, prod(sizes) * prod(steps) * volume.voxel_bytes)
        sizes[a] *= max(1, min(room, -(-box.shape[a] // sizes[a])))
    cuts = [
        [(x, min(x - x % size + size, hi)) for x in _starts(lo, hi, size)]
        for lo, hi, size in zip(box.lo, box.hi, sizes, strict=True)
    ]
    for spans in product(*cuts):
        yield Box(tuple(lo for lo, _ in spans), tuple(hi for _, hi in spans))


def _starts(lo: int, hi: int, size: int) -> list[int]:
    return [lo, *range(lo - lo % size + size, hi, size)] if hi > lo else []


def _mean(voxels: Array, steps: Sequence[int]) -> Array:
    """Of whole cells of `steps` voxels; the last cell along an axis may have fewer."""
    found = voxels.astype(np.float32, copy=False)
    for axis, step in enumerate(steps, 1):
        if step == 1:
            continue
        starts = np.arange(0, found.shape[axis], step)
        sums = np.add.reduceat(found, starts, axis=axis)
        counts = np.minimum(step, found.shape[axis] - starts).astype(np.float32)
        found = sums / counts.reshape([-1 if a == axis else 1 for a in range(found.ndim)])
    return found


def _rounded(values: Array, dtype: np.dtype[np.generic]) -> Array:
    if dtype.kind in "iu":
        return np.rint(values).astype(dtype)
    return values >= 0.5 if dtype.kind == "b" else values.astype(dtype)
