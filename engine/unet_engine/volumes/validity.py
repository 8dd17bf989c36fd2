"""Where a volume was measured at all: by values that say it was not, and by what says it per voxel, such as alpha."""

from __future__ import annotations

import numpy as np

from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.volumes import nodata
from unet_engine.volumes.base import Array, Volume
from unet_engine.volumes.nodata import Missing


def void(volume: Volume, box: Box, recorder: Recorder = PLAIN) -> Array | None:
    """Which voxels of `box` were not measured, whatever their values, (1 or channels, *box.shape) bool: in any channel,
    or in each; None where all may have been. Raises what `Volume.read` raises."""
    validity = volume.gaps or volume.validity
    return None if validity is None else np.equal(validity.read(box, recorder), 0)


def unmeasured(volume: Volume, box: Box, voxels: Array) -> Array | None:
    """Which of `voxels`, which `volume` has in `box`, were not measured, (channels, *box.shape) bool; None where all
    were. Raises what `Volume.read` raises."""
    return marked(voxels, volume.missing, void(volume, box))


def marked(voxels: Array, values: Missing, nowhere: Array | None) -> Array | None:
    """The same, of `voxels`, (channels, …), that were not measured where they are one of `values`, or `nowhere` says
    it, (1 or channels, …)."""
    if not values:
        return None if nowhere is None or not nowhere.any() else np.broadcast_to(nowhere, voxels.shape)
    found = nodata.where_of_each(voxels, values)
    if nowhere is not None:
        found |= nowhere
    return found if found.any() else None
