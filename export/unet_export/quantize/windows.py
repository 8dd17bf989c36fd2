"""Windows of a user's volume to calibrate on, to choose layers on and to judge on: three sets that share no voxel.

They are drawn as `unet_engine.volumes.windows` says; what is rare is in all of them, or at least in those to judge on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unet_engine.errors import DataError, InputError
from unet_engine.plan.box import Box
from unet_engine.units import times
from unet_engine.volumes.base import Volume
from unet_engine.volumes.normalize import Scaling
from unet_engine.volumes.windows import POOL, Array, cut, dealt, pool

LEAST = 2
"""Windows that each set needs at least."""


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
    """Draw `counts` = (held-out, calibration, choosing) windows; fewer of each, in proportion, where the volume has no
    more.

    `label` gives the labels of a window. Raises `InputError` where fewer than `LEAST` of each fit in, `DataError` where
    all that was looked at is one value.
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
    if len(boxes) < len(counts) * LEAST:
        raise InputError(
            f"{volume.path} has {len(boxes)} window(s) of {times(window)} with an image in them, and "
            f"{len(counts) * LEAST} are needed; "
            "use a smaller --window or a larger volume"
        )
    sets = dealt(np.array(contents), _shares(len(boxes), counts), rng)
    held_out, calibration, choosing = (tuple(cut(volume, scale, boxes[i], window) for i in chosen) for chosen in sets)
    return Sample(calibration, choosing, held_out, tuple(boxes[i] for i in sets[0]))


def _shares(there: int, counts: Sequence[int]) -> tuple[int, ...]:
    """How many of `there` windows each set gets: `counts`, or `LEAST` and of the others in proportion to what it
    lacks."""
    if there >= sum(counts):
        return tuple(counts)
    least = len(counts) * LEAST
    return tuple(LEAST + (there - least) * (count - LEAST) // (sum(counts) - least) for count in counts)
