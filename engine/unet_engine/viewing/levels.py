"""A volume at several resolutions: those that are stored, and coarser ones made of them as they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.paths import said
from unet_engine.plan.box import Box, around
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.formats import located, open_volume
from unet_engine.volumes.pick import Pick

PIECE = 2**25
"""Bytes that are read of a stored level for one answer, at most."""
PART = 2**23
"""Bytes of it that are read at once: of a volume that is mostly empty, larger parts would nearly all have something."""
KEPT = 2**27
"""Bytes of decoded chunks that are kept of a pane."""
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
        """As `Volume.read`. Chunks of which a piece of the screen is a small part are decoded once for all that lie
        beside one another, or that one scrolls through."""
        low = tuple(l - l % c for l, c in zip(box.lo, volume.chunks, strict=True))
        high = tuple(min(-(-h // c) * c, n) for h, c, n in zip(box.hi, volume.chunks, volume.shape, strict=True))
        touched, one = Box(low, high).size * volume.voxel_bytes, volume.chunk_bytes * volume.channels
        thin = touched <= KEPT // 4 and 2 * box.size * volume.voxel_bytes <= touched
        if self._keeping is None or not (thin or ANSWER < one <= KEPT // 2):
            return volume.read(box)
        out = np.empty((volume.channels, *box.shape), volume.dtype)
        chunks = list(Box(low, high).cells(volume.chunks))
        for whole, found in zip(chunks, self._chunks(volume, chunks), strict=True):
            both = whole & box
            out[(slice(None), *both.relative_to(box.lo).slices())] = found[
                (slice(None), *both.relative_to(whole.lo).slices())
            ]
        return out

    def _chunks(self, volume: Volume, chunks: Sequence[Box]) -> list[Array]:
        """Whole chunks, each read by whoever asks first; those that are missing are read together where a store may be
        far, one by one where each is large."""
        assert self._keeping is not None
        missing, found = [], []
        with self._keeping:
            for whole in chunks:
                key = (id(volume), whole)
                future = self._kept.get(key)
                if future is None:
                    future = self._kept[key] = Future()
                    missing.append((whole, future))
                self._kept.move_to_end(key)
                found.append(future)
            while len(self._kept) * volume.chunk_bytes * volume.channels > KEPT:
                self._kept.popitem(last=False)
        self._fill(volume, missing)
        return [future.result() for future in found]

    def _fill(self, volume: Volume, missing: Sequence[tuple[Box, Future[Array]]]) -> None:
        assert self._keeping is not None
        together = len(missing) > 1 and volume.chunk_bytes * volume.channels <= ANSWER
        try:
            region = around([whole for whole, _ in missing]) if together else None
            voxels = volume.read(region) if region else None
            for whole, future in missing:
                if region is None or voxels is None:
                    future.set_result(volume.read(whole))
                else:
                    future.set_result(voxels[(slice(None), *whole.relative_to(region.lo).slices())].copy())
        except BaseException as error:
            with self._keeping:
                for whole, future in missing:
                    if not future.done():
                        self._kept.pop((id(volume), whole), None)
                        future.set_exception(error)


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
    """`box`, in parts that are read at once: whole chunks as far as `PART` allows, so that what is not stored costs
    nothing, and memory has a bound."""
    sizes = [max(1, c // s) for c, s in zip(volume.chunks, steps, strict=True)]
    while prod(sizes) * prod(steps) * volume.voxel_bytes > PART and max(sizes) > 1:
        a = max(range(len(sizes)), key=lambda i: sizes[i])
        sizes[a] = -(-sizes[a] // 2)
    for a in reversed(range(len(sizes))):
        room = PART // max(1, prod(sizes) * prod(steps) * volume.voxel_bytes)
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
    """Of whole cells of `steps` voxels; the last cell along an axis may have fewer. float32."""
    found = voxels
    exact = _sums_of(voxels.dtype, prod(steps))
    counts = np.ones((1,) * voxels.ndim, np.float32)
    for axis, step in enumerate(steps, 1):
        if step == 1:
            continue
        # the slowest axis first: whole planes are added to one another, and what is left is small
        found, length = _summed(found, axis, step, exact), found.shape[axis]
        most = np.minimum(step, length - np.arange(0, length, step)).astype(np.float32)
        counts = counts * most.reshape([-1 if a == axis else 1 for a in range(found.ndim)])
    return found.astype(np.float32, copy=False) / counts


def _sums_of(dtype: np.dtype[Any], count: int) -> type[np.generic]:
    """The smallest type that holds the sum of so many values: the fewer bytes are moved, the sooner it is there."""
    if dtype.kind not in "bui" or dtype.itemsize > 2:
        return np.float32
    if dtype.itemsize == 1 and count <= 2**8:
        return np.uint16 if dtype.kind in "bu" else np.int16
    return np.uint32 if dtype.kind == "u" and count <= 2**16 else np.int32 if count <= 2**15 else np.float32


def _summed(voxels: Array, axis: int, step: int, dtype: type[np.generic]) -> Array:
    """Every `step` values along an axis added up; the last sum may be of fewer."""
    length = voxels.shape[axis]
    shape = list(voxels.shape)
    shape[axis] = -(-length // step)
    out = np.zeros(shape, dtype)
    for k in range(min(step, length)):
        there = voxels[(slice(None),) * axis + (slice(k, None, step),)]
        place = out[(slice(None),) * axis + (slice(there.shape[axis]),)]
        np.add(place, there, out=place, casting="unsafe")
    return out


def _rounded(values: Array, dtype: np.dtype[np.generic]) -> Array:
    if dtype.kind in "iu":
        limits: Any = np.iinfo(np.dtype(dtype).type)  # type: ignore[type-var]
        return np.rint(values).astype(np.float64).clip(limits.min, limits.max).astype(dtype)
    return values >= 0.5 if dtype.kind == "b" else values.astype(dtype)
