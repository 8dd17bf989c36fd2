"""Windows of a user's volume to calibrate on, and others, disjoint from these, to judge on.

The volume is divided into cells of one window each, from an offset that the seed draws, so no two windows share a voxel. Many cells are
read; of a pool, half of it those of highest contrast and half drawn, the reference predicts the labels. Windows are then dealt to both
sets class by class, the rarest class first, so that what is rare is in both, and filled up at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
"""Windows that calibration and judging each need at least."""
READ = 8
"""Cells read for each window wanted."""
POOL = 2
"""Cells whose labels are predicted for each window wanted."""


@dataclass(frozen=True)
class Sample:
    """Windows (channels, *window) float32, normalised."""

    calibration: tuple[Array, ...]
    held_out: tuple[Array, ...]
    boxes: tuple[Box, ...]
    """Of the held-out windows, in voxels of the volume."""


def sample(
    volume: Volume,
    scale: Scaling,
    window: tuple[int, ...],
    counts: tuple[int, int],
    seed: int,
    label: Callable[[Array], Array],
    label_count: int,
) -> Sample:
    """Draw `counts` = (calibration, held-out) windows; fewer of both, in proportion, where the volume has no more.

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
    held = max(LEAST, len(boxes) * counts[1] // wanted) if len(boxes) < wanted else counts[1]
    shares = (min(counts[0], len(boxes) - held), held)
    if shares[0] < LEAST:
        raise InputError(
            f"{volume.path} has {len(boxes)} window(s) of {times(window)} with an image in them, and {2 * LEAST} are needed; "
            "use a smaller --window or a larger volume"
        )
    calibration, held_out = _dealt(np.array(contents), shares, rng)
    return Sample(
        tuple(cut(volume, scale, boxes[i], window) for i in calibration),
        tuple(cut(volume, scale, boxes[i], window) for i in held_out),
        tuple(boxes[i] for i in held_out),
    )


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


def _dealt(contents: Array, shares: tuple[int, int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Indices for both sets, from the voxels per label (windows, labels) of each window."""
    left = [int(i) for i in rng.permutation(len(contents))]
    sets: tuple[list[int], list[int]] = ([], [])
    present = [int(c) for c in np.argsort(contents.sum(0), kind="stable") if contents[:, c].any()]
    for turn in range(2 * sum(shares)):
        # the first half by class, so that each class has its richest windows in both sets; the rest as they come
        target = turn % 2
        if len(sets[target]) >= shares[target] or not left:
            continue
        by_class = present and turn < sum(shares)
        wanted = present[turn // 2 % len(present)] if by_class else None
        best = left[0] if wanted is None else max(left, key=lambda i: contents[i, wanted])
        sets[target].append(best)
        left.remove(best)
    return sets
