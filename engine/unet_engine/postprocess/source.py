"""What a pass reads: a volume, by where it lies, so that workers open it by themselves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import DataError, InputError
from unet_engine.output.header import read_header, written_outside
from unet_engine.paths import inside, is_local, plain
from unet_engine.plan.box import Box
from unet_engine.postprocess.base import Array
from unet_engine.postprocess.formats import account_of, is_one_file, is_remote_file
from unet_engine.storage.remote_files import RemoteFile
from unet_engine.volumes import samples
from unet_engine.volumes.base import Volume
from unet_engine.volumes.files import FileVolume
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.nodata import union, where
from unet_engine.volumes.pick import ALL, Pick
from unet_engine.volumes.turn import Turn
from unet_engine.volumes.turned import Turned
from unet_engine.volumes.validity import marked, void


@dataclass(frozen=True)
class Source:
    """A volume, of which one channel at one time is read."""

    path: str
    axes: str | None = None
    pick: Pick = ALL
    nodata: tuple[float, ...] | None = None
    """Values that count as background; None: those that the volume names, or a run of ours wrote there."""
    turn: Turn | None = None
    """How its axes are turned; None: they are as they are stored."""
    fingerprint: str = ""
    """Of what lay there when the pass began: a process opens it anew where that is another one."""

    @classmethod
    def of(
        cls, path: str, axes: str | None = None, pick: Pick = ALL, nodata: tuple[float, ...] | None = None
    ) -> Source:
        """Raises `InputError` naming what is missing."""
        found = samples.fingerprint(open_volume(path, axes, pick))
        return cls(path, axes, pick, nodata, fingerprint=f"{found}{_stamp(path)}")

    @property
    def name(self) -> str:
        """All that decides what is read."""
        return self.fingerprint if self.nodata is None else f"{self.fingerprint} without {self.nodata}"

    def open(self) -> Volume:
        """Raises `InputError` naming what is missing."""
        return _opened(self)

    def read(self, box: Box) -> Array:
        """The voxels of `box`, of the volume's type. Raises `DataError`."""
        voxels: Array = self.open().read(box)[0]
        return voxels

    def labels(self, box: Box) -> Array:
        """The same as unsigned numbers, 0 where nothing was measured. Raises `DataError` for what is no label."""
        voxels = self.read(box)
        for value in self._background:
            voxels[where(voxels, (value,))] = 0
        if voxels.dtype.kind == "b":
            return voxels.view(np.uint8)
        if voxels.dtype.kind == "f":
            return self._whole(voxels, box)
        if voxels.dtype.kind == "i":
            if voxels.size and voxels.min() < 0:
                raise self._no_label(voxels.min(), box)
            return voxels.view(voxels.dtype.str.replace("i", "u"))
        return voxels

    def unmeasured(self, box: Box, voxels: Array) -> Array | None:
        """Which of `voxels`, (channels, *box.shape), were not measured: by `nodata`, else the values that the volume
        names, and by its masks; None where all were. Raises `DataError`."""
        volume = self.open()
        values = volume.missing if self.nodata is None else (self.nodata,) * len(voxels)
        return marked(voxels, values, void(volume, box))

    @property
    def _background(self) -> tuple[float, ...]:
        """Values beside 0 that are no label."""
        if self.nodata is not None:
            return self.nodata
        header = self.header
        written = written_outside(header, labels=True) if header.get("output") == "labels" else ()
        return (*union(self.open().missing), *written)

    def _whole(self, voxels: Array, box: Box) -> Array:
        wrong = ~((voxels >= 0) & (voxels < 2.0**53) & (voxels == np.rint(voxels)))
        if wrong.any():
            raise self._no_label(voxels[wrong][0], box)
        return voxels.astype(np.uint64)

    def _no_label(self, value: Any, box: Box) -> DataError:
        return DataError(
            f"{self.path}: a voxel in {box} is {value}, and labels are whole numbers from 0 on; correct it, or say with "
            f"--nodata {value} that it is none"
        )

    def changed(self, box: Box, since: float) -> str | None:
        """What of `box` was changed after `since`, where that can be told."""
        return self.open().changed(box, since)

    @property
    def header(self) -> dict[str, Any]:
        """What a run or a pass of ours says of it, or the segments of a segmentation; empty where none made it."""
        return _said(self)


@lru_cache(maxsize=8)
def _opened(source: Source) -> Volume:
    volume = open_volume(source.path, source.axes, source.pick)
    return Turned(volume, source.turn) if source.turn else volume


@lru_cache(maxsize=8)
def _said(source: Source) -> dict[str, Any]:
    path = source.path
    if behind := is_remote_file(path):
        volume = source.open()
        if isinstance(volume, FileVolume) and volume.fetched:
            path = str(volume.fetched.path)
        elif (RemoteFile(inside(path)[0]).about().length or inf) > _FETCHED_FOR_NAMES:
            return {}
    if behind or is_one_file(path):
        found = account_of(path)
        return {**found, "complete": True} if found else {}
    return read_header(path) or {}


_FETCHED_FOR_NAMES = 2**26
"""Bytes of a file that is read by parts, and that is fetched whole to learn what is said of it."""


def _stamp(path: str) -> str:
    """What changes where a file, or one of those in a folder, is written anew: a hash; nothing for what lies
    elsewhere."""
    place = Path(inside(plain(path))[0])
    if not is_local(path) or not place.exists():
        return ""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return ":" + hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def check_labels(source: Source) -> Volume:
    """The volume, if its voxels can be labels. Raises `InputError` where they cannot, or are not all there."""
    header = source.header
    if header and not header.get("complete"):
        raise InputError(f"{source.path} is not complete; run the command that makes it again with --resume")
    volume = source.open()
    if volume.channels > 1:
        raise InputError(
            f"{source.path} has {volume.channels} channels, and a label is one number a voxel; choose one with "
            "--input-channels, or make labels with run --output labels"
        )
    if header.get("output") in ("probabilities", "logits"):
        raise InputError(f"{source.path} holds {header['output']}; make labels with run --output labels")
    return volume


def starting(source: Source, volume: Volume) -> tuple[int, ...] | None:
    """The voxel of the image that the labels' first one lies on, as their header says it; None where it does not, or
    they are on another grid."""
    header = source.header
    start = header.get("start")
    if isinstance(start, list) and len(start) == len(volume.shape):
        return tuple(map(int, start))
    roi = (header.get("identity") or {}).get("roi")
    if isinstance(roi, str) and "resampling" not in header:  # older versions, which knew no turned volumes
        return tuple(int(part.partition(":")[0]) for part in roi.split(","))
    return None
