"""What a pass reads: a volume, by where it lies, so that workers open it by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from unet_engine.errors import DataError, InputError
from unet_engine.output.header import read_header
from unet_engine.plan.box import Box
from unet_engine.postprocess.base import Array
from unet_engine.volumes import samples
from unet_engine.volumes.base import Volume
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import ALL, Pick


@dataclass(frozen=True)
class Source:
    """A volume, of which one channel at one time is read."""

    path: str
    axes: str | None = None
    pick: Pick = ALL
    fingerprint: str = ""
    """Of what lay there when the pass began: a process opens it anew where that is another one."""

    @classmethod
    def of(cls, path: str, axes: str | None = None, pick: Pick = ALL) -> Source:
        """Raises `InputError` naming what is missing."""
        return cls(path, axes, pick, samples.fingerprint(open_volume(path, axes, pick)))

    def open(self) -> Volume:
        """Raises `InputError` naming what is missing."""
        return _opened(self)

    def read(self, box: Box) -> Array:
        """The voxels of `box`, of the volume's type. Raises `DataError`."""
        voxels: Array = self.open().read(box)[0]
        return voxels

    def labels(self, box: Box) -> Array:
        """The same as unsigned numbers. Raises `DataError` where one is negative."""
        voxels = self.read(box)
        if voxels.dtype.kind == "b":
            return voxels.view(np.uint8)
        if voxels.dtype.kind == "i":
            if voxels.size and voxels.min() < 0:
                raise DataError(f"{self.path}: a label in voxels {box} is {voxels.min()}; labels are 0 or more")
            return voxels.view(voxels.dtype.str.replace("i", "u"))
        return voxels

    @property
    def header(self) -> dict[str, Any]:
        """What a run or a pass of ours says of it; empty where none made it."""
        return read_header(self.path) or {}


@lru_cache(maxsize=8)
def _opened(source: Source) -> Volume:
    return open_volume(source.path, source.axes, source.pick)


def check_labels(source: Source) -> Volume:
    """The volume, if its voxels can be labels. Raises `InputError` where they cannot, or are not all there."""
    header = source.header
    if header and not header.get("complete"):
        raise InputError(f"{source.path} is not complete: run the command that makes it again with --resume")
    volume = source.open()
    if volume.channels > 1:
        raise InputError(
            f"{source.path} has {volume.channels} channels, and a label is one number a voxel; choose one with "
            "--input-channels, or make labels with run --output labels"
        )
    if volume.dtype.kind not in "biu":
        raise InputError(
            f"{source.path} holds {volume.dtype}, and labels are whole numbers; make them with run --output labels"
        )
    return volume


def starting(source: Source, volume: Volume) -> tuple[int, ...] | None:
    """The voxel of the image that the labels' first one lies on, as their header says it; None where it does not, or they
    are on another grid."""
    header = source.header
    start = header.get("start")
    if isinstance(start, list) and len(start) == len(volume.shape):
        return tuple(map(int, start))
    roi = (header.get("identity") or {}).get("roi")
    if isinstance(roi, str) and "resampling" not in header:  # older versions, which knew no turned volumes
        return tuple(int(part.partition(":")[0]) for part in roi.split(","))
    return None
