"""Windows of a user's volume to calibrate on, to choose layers on and to judge on: three sets that share no voxel.

The volume is divided into cells of one window each, from an offset that the seed draws, so no two windows share a voxel. Many cells are
read; of a pool, half of it those of highest contrast and half drawn, the reference predicts the labels. Windows are then dealt to the
sets class by class, the rarest class first, so that what is rare is in all of them or at least
in those to judge on, and filled up at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.box import Box
from unet_engine.errors import DataError, InputError
from unet_engine.normalize import Scaling
from unet_engine.units import times
from unet_engine.volume import Volume

Array = npt.NDArray[Any]
LEAST = 2
"""Windows that each set needs at least."""
READ = 8
"""Cells read for each window wanted."""
POOL = 2
"""Cells whose labels are predicted for each window wanted."""


@dataclass(frozen=True)
class Sample:
    """Windows (channels, *window) float32, normalised."""

    calibration: tuple[Array, ...]
    choosing: tuple[Array, ...]
    """Those that the fallback tries its choices of layers on."""
    held_out: tuple[Array, ...]
    """Those that the verdict rests on, and nothing else."""
    boxes: tuple[Box, ...]
    """Of the held-out windows, in voxels of the volume."""


def sample(
    volume: Volume,
    scale: Scaling,
    window: tuple[int, ...],
    counts: tuple[int, int, int],
    seed: int,
    label: Callable[[Array], Array],
    label_count: int,
) -> Sample:
    """Draw `counts` = (held-out, calibration, choosing) windows; fewer of each, in proportion, where the volume has no more.

    `label` gives the labels of a window. Raises `InputError` where fewer than `LEAST` of each fit in, `DataError` where all
    that was looked at is one value.
    """
    rng = np.random.default_rng(seed)
    wanted = sum(counts)
    boxes = _pool(volume, scale, window, POOL * wanted, rng)
    if not boxes:
        raise DataError(
            f"{volume.path} holds one value alone wherever it was looked at; calibrate on a volume with an image in it"
        )
    # windows are read again once they are chosen: all of the pool at once may not fit into memory
    contents = [np.bincount(label(cut(volume, scale, b, window)).ravel(), minlength=label_count) for b in boxes]
    if len(boxes) < len(counts) * LEAST:
        raise InputError(
            f"{volume.path} has {len(boxes)} window(s) of {times(window)} with an image in them, and {len(counts) * LEAST} are needed; "
            "use a smaller --window or a larger volume"
        )
    dealt = _dealt(np.array(contents), _shares(len(boxes), counts), rng)
    held_out, calibration, choosing = (tuple(cut(volume, scale, boxes[i], window) for i in chosen) for chosen in dealt)
    return Sample(calibration, choosing, held_out, tuple(boxes[i] for i in dealt[0]))


def _shares(there: int, counts: Sequence[int]) -> tuple[int, ...]:
    """How many of `there` windows each set gets: `counts`, or `LEAST` and of the others in proportion to what it lacks."""
    if there >= sum(counts):
        return tuple(counts)
    least = len(counts) * LEAST
    return tuple(LEAST + (there - least) * (count - LEAST) // (sum(counts) - least) for count in counts)


def _pool(volume: Volume, scale: Scaling, window: tuple[int, ...], size: int, rng: np.random.Generator) -> list[Box]:
    """Up to `size` cells that hold more than one value: half of highest contrast, half as they were drawn."""
    boxes, spreads = [], []
    for box in _cells(volume, window, rng, READ * size // POOL):
        spread = float(np.std(cut(volume, scale, box, window)))
        if spread > 0:
            boxes.append(box)
            spreads.append(spread)
    rich = [int(i) for i in np.argsort(spreads)[::-1][: size // 2]]
    chosen = list(dict.fromkeys([*rich, *range(len(boxes))]))[:size]
    return [boxes[i] for i in sorted(chosen)]


def _cells(volume: Volume, window: tuple[int, ...], rng: np.random.Generator, most: int) -> Iterator[Box]:
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
        if volume.has_data(box):
            given += 1
            yield box


def cut(volume: Volume, scale: Scaling, box: Box, window: tuple[int, ...]) -> Array:
    """The voxels of `box` normalised: (channels, *window) float32. What the volume lacks is reflected, NaN and Inf become the shift."""
    raw = volume.read(box).astype(np.float32)
    planes = raw.ndim - 1 - len(window)
    raw = raw.reshape(raw.shape[0], *raw.shape[1 + planes :])
    missing = [(0, 0), *((0, w - n) for w, n in zip(window, raw.shape[1:], strict=True))]
    raw = np.pad(raw, missing, mode="symmetric")
    shape = (-1,) + (1,) * len(window)
    shift, factor = (np.array(v, np.float32).reshape(shape) for v in (scale.shift, scale.scale))
    return np.where(np.isfinite(raw), (raw - shift) * factor, np.float32(0)).astype(np.float32)


def _dealt(contents: Array, shares: Sequence[int], rng: np.random.Generator) -> tuple[list[int], ...]:
    """Indices for each set, from the voxels per label (windows, labels) of each window."""
    left = [int(i) for i in rng.permutation(len(contents))]
    sets: tuple[list[int], ...] = tuple([] for _ in shares)
    present = [int(c) for c in np.argsort(contents.sum(0), kind="stable") if contents[:, c].any()]
    for turn in range(len(sets) * sum(shares)):
        target = turn % len(sets)
        if len(sets[target]) >= shares[target] or not left:
            continue
        # the first half by class, so that each class has its richest windows in all sets; the rest as they come
        by_class = present and 2 * turn < len(sets) * sum(shares)
        wanted = present[turn // len(sets) % len(present)] if by_class else None
        best = left[0] if wanted is None else max(left, key=lambda i: contents[i, wanted])
        sets[target].append(best)
        left.remove(best)
    return sets
