"""Windows of a user's volume to try a network on, the same ones for the same seed.

The volume is divided into cells of one window each, from an offset that the seed draws, so no two windows share a
voxel. Many cells are read; a pool is half of it those of highest contrast and half those drawn. By the labels in them,
windows are then dealt class by class, the rarest class first, so that what is rare is in every set, and filled up at
random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.plan.box import Box
from unet_engine.volumes import samples
from unet_engine.volumes.base import Volume
from unet_engine.volumes.normalize import Scaling
from unet_engine.volumes.resampled import Interpolated
from unet_engine.volumes.validity import unmeasured

Array = npt.NDArray[Any]
READ = 8
"""Cells read for each window wanted."""
POOL = 2
"""Cells whose labels are predicted for each window wanted."""


def pool(
    volume: Volume,
    scale: Scaling,
    window: tuple[int, ...],
    size: int,
    rng: np.random.Generator,
    admits: Callable[[Box], bool] = lambda _: True,
) -> list[Box]:
    """Up to `size` cells that hold more than one value: half of highest contrast, half as they were drawn; of those
    that `admits`."""
    boxes, spreads = [], []
    for box in _cells(volume, window, rng, READ * size // POOL, admits):
        spread = float(np.std(cut(volume, scale, box, window)))
        if spread > 0:
            boxes.append(box)
            spreads.append(spread)
    rich = [int(i) for i in np.argsort(spreads)[::-1][: size // 2]]
    chosen = list(dict.fromkeys([*rich, *range(len(boxes))]))[:size]
    return [boxes[i] for i in sorted(chosen)]


def richest(volume: Volume, window: tuple[int, ...], count: int) -> list[Box]:
    """Up to `count` boxes of one window each where the samples have most contrast, in as few chunks as may be; fewer in
    a volume without so many apart, none in one of a single value."""
    size = (1,) * (len(volume.shape) - len(window)) + window
    found: list[Box] = []
    for sample in samples.by_contrast(volume):
        box = _around(sample, size, volume)
        if not any(all(a < d and c < b for a, b, c, d in zip(box.lo, box.hi, o.lo, o.hi, strict=True)) for o in found):
            found.append(box)
        if len(found) == count:
            break
    return found


def _around(sample: Box, size: tuple[int, ...], volume: Volume) -> Box:
    """A window that holds the sample, or part of it: from the start of its chunk where windows are the larger ones."""
    lo = []
    for at, w, n, chunk in zip(sample.lo, size, volume.shape, volume.chunks, strict=True):
        start = at // chunk * chunk if w >= chunk else min(at, at // chunk * chunk + chunk - w)
        lo.append(max(0, min(start, n - w)))
    return Box(tuple(lo), tuple(min(l + w, n) for l, w, n in zip(lo, size, volume.shape, strict=True)))


def _cells(
    volume: Volume, window: tuple[int, ...], rng: np.random.Generator, most: int, admits: Callable[[Box], bool]
) -> Iterator[Box]:
    """Up to `most` cells with stored data in them, in random order."""
    size = (1,) * (len(volume.shape) - len(window)) + window
    counts = [max(1, n // w) for n, w in zip(volume.shape, size, strict=True)]
    offset = [int(rng.integers(0, max(0, n - c * w) + 1)) for n, c, w in zip(volume.shape, counts, size, strict=True)]
    total = prod(counts)
    order = rng.permutation(total) if total <= 2**20 else rng.integers(0, total, 16 * most)
    given = 0
    for number in dict.fromkeys(int(i) for i in order):
        if given == most:
            return
        corner = np.unravel_index(number, counts)
        lo = tuple(int(o + i * w) for o, i, w in zip(offset, corner, size, strict=True))
        box = Box(lo, tuple(min(l + w, n) for l, w, n in zip(lo, size, volume.shape, strict=True)))
        if volume.has_data(box) and admits(box):
            given += 1
            yield box


def cut(volume: Volume, scale: Scaling, box: Box, window: tuple[int, ...]) -> Array:
    """The voxels of `box` normalised: (channels, *window) float32. What the volume lacks is reflected, NaN, Inf
    and what was not measured become the shift."""
    if isinstance(volume, Interpolated):
        scale = volume.fed
    voxels = volume.read(box)
    raw = voxels.astype(np.float32)
    if (absent := unmeasured(volume, box, voxels)) is not None:
        raw[absent] = np.nan
    planes = raw.ndim - 1 - len(window)
    raw = raw.reshape(raw.shape[0], *raw.shape[1 + planes :])
    missing = [(0, 0), *((0, w - n) for w, n in zip(window, raw.shape[1:], strict=True))]
    raw = np.pad(raw, missing, mode="symmetric")
    normal = np.stack([scale.normalised(channel, c) for c, channel in enumerate(raw)])
    return np.where(np.isfinite(raw), normal, np.float32(0))


def dealt(contents: Array, shares: Sequence[int], rng: np.random.Generator) -> tuple[list[int], ...]:
    """Indices for sets of `shares` windows each, in turn, from the voxels per label (windows, labels) in each."""
    left = [int(i) for i in rng.permutation(len(contents))]
    sets: tuple[list[int], ...] = tuple([] for _ in shares)
    present = [int(c) for c in np.argsort(contents.sum(0), kind="stable") if contents[:, c].any()]
    turns = len(shares) * sum(shares)
    for turn in range(turns):
        # the first half by class, so that each class has its richest windows in every set; the rest as they come
        target = turn % len(shares)
        if len(sets[target]) >= shares[target] or not left:
            continue
        by_class = present and turn < turns / 2
        wanted = present[turn // len(shares) % len(present)] if by_class else None
        best = left[0] if wanted is None else max(left, key=lambda i: contents[i, wanted])
        sets[target].append(best)
        left.remove(best)
    return sets
