"""What tilings are judged by: the regions that are looked at, and the labels around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.prepare.corners import Corner
from unet_engine.volumes.base import Volume
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.laid import over, refuse_unsaid

NOT_MEANT = -(2**40)
"""In place of a label: what a tiling gives there does not count."""


@dataclass(frozen=True)
class Design:
    """What is looked at. Sizes of the output, per axis of the volume."""

    contexts: tuple[tuple[int, ...], ...]
    """From the smallest to the largest."""
    yardstick: tuple[int, ...] | None
    regions: int = 0

    def octant(self, context: Sequence[int], corner: Corner) -> tuple[int, ...]:
        """The part of a window that is nearest to its corner; all of it along axes without one."""
        return tuple(-(-n // 2) if s else n for n, s in zip(context, corner.signs, strict=True))


@dataclass(frozen=True)
class Reference:
    """Labels (*box.shape) of a box of the volume."""

    box: Box
    labels: Array

    def at(self, box: Box) -> Array:
        return self.labels[box.relative_to(self.box.lo).slices()]


def truth_of(path: str, volume: Volume, labels: int) -> Volume:
    """The labels at `path`, on the grid of the volume. Raises `InputError` where they do not lie over it, or over a part
    of it."""
    truth = open_volume(path)
    refuse_unsaid(truth, volume, "--truth")
    found = over(truth, volume) or (truth if truth.shape == volume.shape else None)
    if found is None or truth.channels != 1:
        raise InputError(
            f"--truth {path} has the shape {truth.shape} and {truth.channels} channel(s), the volume {volume.shape}; give "
            "labels of its shape, or such as lie on a part of it"
        )
    if truth.dtype.kind not in "biu":
        raise InputError(f"--truth {path} holds {truth.dtype}; give whole numbers, 0 to {labels - 1}")
    return found


def labels_in(truth: Volume, box: Box, labels: int) -> Array:
    found = truth.read(box)[0]
    if found.size and not 0 <= int(found.min()) <= int(found.max()) < labels:
        raise InputError(
            f"--truth {truth.path} has labels from {found.min()} to {found.max()} at {box}, the network gives 0 to "
            f"{labels - 1}; give labels as the network numbers them"
        )
    return np.asarray(found, np.int64)
