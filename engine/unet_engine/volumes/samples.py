"""What is looked at of a volume before it is read whole: a few boxes all over it, for statistics and a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from unet_engine.model.normalization import Normalization
from unet_engine.plan.box import Box
from unet_engine.storage.remote import AT_ONCE
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.normalize import Scaling, scaling
from unet_engine.volumes.validity import marked, void
from unet_engine.volumes.whole import scaling_of_whole

T = TypeVar("T")

_EXACT = 2
"""Bytes of the largest numbers that float32 tells apart."""
SAMPLES = 64
SAMPLE_VOXELS = 2**16
"""Normalisation and fingerprint look at this many boxes of at most so many voxels, spread over the volume."""

TOGETHER = 2
"""Boxes of one chunk, or of a small volume, are read by one that holds up to so many times the voxels of them all."""

_READ: WeakKeyDictionary[Volume, tuple[list[Box], list[Array]]] = WeakKeyDictionary()
"""The samples of volumes that are still open: statistics and fingerprint ask for the same, and they are read once."""

_SCALED: WeakKeyDictionary[Volume, dict[Normalization, Scaling]] = WeakKeyDictionary()
"""What was measured of every voxel of volumes that are still open."""

_RANKED: WeakKeyDictionary[Volume, list[Box]] = WeakKeyDictionary()
"""`by_contrast` of volumes that are still open."""

_NOWHERE: WeakKeyDictionary[Volume, Array | None] = WeakKeyDictionary()


def boxes(volume: Volume) -> Iterator[Box]:
    """Up to `SAMPLES` boxes inside single chunks, spread by a low-discrepancy sequence; the whole of a small volume.

    Additive recurrence with powers of the generalised golden ratio (M. Roberts, 2018).
    """
    if _is_small(volume):
        yield from Box.of_shape(volume.shape).cells(volume.chunks)
        return
    n = len(volume.shape)
    ratio = 1.0
    for _ in range(32):
        ratio = (1 + ratio) ** (1 / (n + 1))
    side = round(SAMPLE_VOXELS ** (1 / n))
    for i in range(1, SAMPLES + 1):
        corner = [int(size * ((0.5 + i * ratio ** -(a + 1)) % 1)) for a, size in enumerate(volume.shape)]
        lo = [x // c * c + min(x % c, max(0, c - side)) for x, c in zip(corner, volume.chunks, strict=True)]
        hi = [min(l + min(side, c), size) for l, c, size in zip(lo, volume.chunks, volume.shape, strict=True)]
        yield Box(tuple(lo), tuple(hi))


def _is_small(volume: Volume) -> bool:
    """Whether all of it is looked at."""
    return prod(volume.shape) <= SAMPLES * SAMPLE_VOXELS // 4


def values(volume: Volume) -> list[Array]:
    """Values of the boxes per channel, flat. Boxes without stored data are left out, unless all are.

    Raises `DataError` as reading does.
    """
    return _read(volume)[1]


def by_contrast(volume: Volume) -> list[Box]:
    """The boxes that hold more than one value, those with the largest deviation of the first channel first. Raises as
    `values` does."""
    if volume not in _RANKED:
        present, found = _read(volume)
        ends = np.cumsum([box.size for box in present])
        pieces = np.split(found[0], ends[:-1])
        spreads = np.array([_spread(piece) for piece in pieces])
        _RANKED[volume] = [present[i] for i in np.argsort(-spreads, kind="stable") if spreads[i] > 0]
    return _RANKED[volume]


def _spread(values: Array) -> float:
    """The standard deviation of those that are finite, as exactly as ranking needs it."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size or finite.itemsize > _EXACT:
        return float(finite.std(dtype=np.float64)) if finite.size else 0.0
    least = finite.min()
    above = finite.astype(np.float32)  # a third of the time that float64 takes
    above -= np.float32(least)
    above -= above.mean()
    return float(np.sqrt(np.dot(above, above) / above.size)) if finite.max() > least else 0.0


def _read(volume: Volume) -> tuple[list[Box], list[Array]]:
    found = _READ.get(volume)
    if found is None:
        looked_at = list(boxes(volume))
        there = _each(volume, volume.has_data, looked_at)
        present = [box for box, is_there in zip(looked_at, there, strict=True) if is_there] or looked_at[:1]
        blocks = [voxels.reshape(volume.channels, -1) for voxels in _voxels(volume, present)]
        found = present, [np.concatenate([block[c] for block in blocks]) for c in range(volume.channels)]
        _READ[volume] = found
    return found


def _voxels(volume: Volume, asked: Sequence[Box]) -> list[Array]:
    """What lies in each box, (channels, *box.shape). Boxes in one chunk are read together where that is not much more
    than they are: a small volume has many in each of its chunks, which is unpacked as a whole for any of them. So are
    all of a volume that is looked at whole, where asking costs more than what is read."""
    groups = _groups(volume, asked)
    arounds = [_around([asked[i] for i in numbers]) for numbers in groups]
    found: dict[int, Array] = {}
    for numbers, around, voxels in zip(groups, arounds, _each(volume, volume.read, arounds), strict=True):
        for i in numbers:
            found[i] = voxels[(slice(None), *asked[i].relative_to(around.lo).slices())]
    return [found[i] for i in range(len(asked))]


def _groups(volume: Volume, asked: Sequence[Box]) -> list[list[int]]:
    """Numbers of the boxes that are read together."""
    if _is_small(volume) and volume.units is None and _near(asked):
        return [list(range(len(asked)))]
    together: dict[tuple[int, ...], list[int]] = {}
    for number, box in enumerate(asked):
        chunk = tuple(l // c for l, c in zip(box.lo, volume.chunks, strict=True))
        together.setdefault(chunk, []).append(number)
    groups: list[list[int]] = []
    for numbers in together.values():
        groups += [numbers] if _near([asked[i] for i in numbers]) else [[i] for i in numbers]
    return groups


def _near(boxes: Sequence[Box]) -> bool:
    return _around(boxes).size <= TOGETHER * sum(box.size for box in boxes)


def _around(boxes: Sequence[Box]) -> Box:
    lows, highs = zip(*((box.lo, box.hi) for box in boxes), strict=True)
    return Box(tuple(map(min, zip(*lows, strict=True))), tuple(map(max, zip(*highs, strict=True))))


def _each(volume: Volume, ask: Callable[[Box], T], asked: Sequence[Box]) -> list[T]:
    """What `ask` says of each box. What lies behind a network is asked for several at once: each answer takes its time,
    and there are many."""
    if volume.units is None:
        return list(map(ask, asked))
    with ThreadPoolExecutor(AT_ONCE, "samples") as pool:
        return list(pool.map(ask, asked))


def measured(volume: Volume) -> list[Array]:
    """`values` without those that mean that nothing was measured. Raises `DataError` as reading does."""
    found = values(volume)
    nowhere = _nowhere(volume)
    if not volume.missing and nowhere is None:
        return found
    absent = marked(np.stack(found), volume.missing, nowhere)
    return found if absent is None else [channel[~a] for channel, a in zip(found, absent, strict=True)]


def _nowhere(volume: Volume) -> Array | None:
    """Which of `values` were not measured, (1 or channels, flat); None where all may have been."""
    if volume not in _NOWHERE:
        found = [void(volume, box) for box in _read(volume)[0]]
        each = [v.reshape(len(v), -1) for v in found if v is not None]
        _NOWHERE[volume] = np.concatenate(each, axis=1) if each else None
    return _NOWHERE[volume]


def scaling_of(volume: Volume, normalization: Normalization) -> Scaling:
    """Shift, scale and clip of the volume's voxels, from all of them or from its samples, as `normalization` says,
    where they have to be looked at. Raises `DataError` as `scaling` does."""
    if normalization.of_all:
        known = _SCALED.setdefault(volume, {})
        if normalization not in known:
            known[normalization] = scaling_of_whole(normalization, volume, Box.of_shape(volume.shape))
        return known[normalization]
    return scaling(normalization, measured(volume) if normalization.looks else [np.zeros(0)] * volume.channels)


def fingerprint(volume: Volume) -> str:
    """Tells volumes apart without reading them whole: hash of shape, type, axes and the samples."""
    digest = hashlib.sha256(f"{volume.shape} {volume.dtype} {volume.axes}".encode())
    for channel in values(volume):
        digest.update(np.ascontiguousarray(channel).view(np.uint8).data)
    return digest.hexdigest()[:16]
