"""Windows of a user's volume to calibrate on, and others, disjoint from these, to judge on; drawn as `unet_engine.sampling` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unet_engine.box import Box
from unet_engine.errors import DataError, InputError
from unet_engine.normalize import Scaling
from unet_engine.sampling import POOL, Array, cut, dealt, pool
from unet_engine.units import times
from unet_engine.volume import Volume

LEAST = 2
"""Windows that calibration and judging each need at least."""


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
    boxes = pool(volume, scale, window, POOL * wanted, rng)
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
    calibration, held_out = dealt(np.array(contents), shares, rng)
    return Sample(
        tuple(cut(volume, scale, boxes[i], window) for i in calibration),
        tuple(cut(volume, scale, boxes[i], window) for i in held_out),
        tuple(boxes[i] for i in held_out),
    )
