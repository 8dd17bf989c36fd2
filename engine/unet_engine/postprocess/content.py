"""What a file of another format is made of: voxels that are read by box, and all that is known of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.output.header import written_outside
from unet_engine.plan.box import Box
from unet_engine.storage.plain_files import read_box, write_box
from unet_engine.units import micrometers
from unet_engine.volumes.base import Array, Selection, Timing, Volume
from unet_engine.volumes.collection import timing_of
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.nodata import Missing
from unet_engine.volumes.pick import ALL, Pick

PIECE = 2**25
"""Bytes that are read at once, where chunks are smaller."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """Voxels with the axes `axes`, those of t, c, z, y, x that there are, in this order; all tuples follow it, those
    called spatial z, y, x."""

    origin: str
    """What people know it by, for messages."""
    axes: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    """What is read best at once."""
    dtype: np.dtype[Any]
    read: Callable[[Selection], Array]
    """The voxels of a span along each axis, with all axes."""
    spacing: tuple[float, ...] | None = None
    """Per spatial axis, with a sign; None where it is not known."""
    translation: tuple[float, ...] = ()
    unit: str | None = None
    frame: Frame | None = None
    timing: Timing | None = None
    """Of its time points, where that is known."""
    channel_names: tuple[str, ...] = ()
    missing: Missing = ()
    """Values of voxels that were not measured, of each channel; empty where there are none."""
    measured: Volume | None = None
    """What is 0 there was measured in no channel; None where values alone say it."""
    gaps: Volume | None = None
    """What is 0 there, of as many channels, was not measured in that one; None where `measured` says it of all."""
    labels: bool = False
    """Whether voxels number classes."""
    classes: tuple[str, ...] = ()
    """The names of labels 0, 1, …, where these are known."""
    colours: tuple[str, ...] = ()
    """Of the same, as ``#RRGGBB``; empty where the model names none."""
    source: str | None = None
    """The volume that a network was run on to make it, where it was."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """What a run says of itself, as JSON values."""

    @property
    def spatial(self) -> str:
        return "".join(a for a in self.axes if a in "zyx")

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return tuple(n for a, n in zip(self.axes, self.shape, strict=True) if a in "zyx")

    def count(self, axis: str) -> int:
        """Voxels along `axis`; 1 where there is no such axis."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    @property
    def place(self) -> Frame:
        """Where its voxels lie, whatever says it: the frame, or spacing and translation; without either as if voxels
        were one unit large."""
        if self.frame:
            return self.frame
        n = len(self.spatial)
        spacing, translation = self.spacing or (1.0,) * n, self.translation or (0.0,) * n
        rows = tuple(tuple(spacing[v] if v == n - 1 - w else 0.0 for v in range(n)) for w in range(n))
        return Frame(rows, tuple(reversed(translation)))

    def in_unit(self, units: Mapping[str, str]) -> tuple[Frame, str | None]:
        """The place in one of `units` (OME-Zarr's name to the format's), and what the format calls that; None for a
        unit that cannot be brought to one of them: numbers are then as they are."""
        if self.unit is None:
            return self.place, None
        if self.unit in units:
            return self.place, units[self.unit]
        mine = micrometers(1.0, self.unit)
        if mine is None:
            return self.place, None
        # the largest that is not larger, so that numbers do not become small
        known = sorted(units, key=lambda unit: micrometers(1.0, unit) or 0.0)
        best = next((unit for unit in reversed(known) if (micrometers(1.0, unit) or 0.0) <= mine), known[0])
        return self.place.times(mine / (micrometers(1.0, best) or 1.0)), units[best]

    # --- reading all of it ---

    def cells(self, room: int = PIECE) -> Iterator[Selection]:
        """Spans that together are all of it, in order: whole chunks, several at once up to `room` bytes, the fastest
        axis first. Channels are read together."""
        return self._cells([1 if a == "t" else n if a == "c" else min(c, n) for a, n, c in self._each()], room)

    def _cells(self, sizes: list[int], room: int) -> Iterator[Selection]:
        for i in reversed(range(len(self.axes))):
            if self.axes[i] in "zyx":
                fits = max(1, room // max(1, prod(sizes) * self.dtype.itemsize))
                sizes[i] = min(self.shape[i], sizes[i] * min(fits, -(-self.shape[i] // sizes[i])))
        starts = [range(0, n, size) for n, size in zip(self.shape, sizes, strict=True)]
        for corner in product(*starts):
            yield tuple(slice(lo, min(lo + size, n)) for lo, size, n in zip(corner, sizes, self.shape, strict=True))

    def aligned(self, pieces: Sequence[int], room: int = PIECE) -> Iterator[Selection]:
        """The same in whole `pieces` of what is written; where these and chunks do not fit, some chunks are read more
        than once."""
        sizes = [p if a in "tzyx" else n for a, p, n in zip(self.axes, pieces, self.shape, strict=True)]
        return self._cells(sizes, room)

    def _each(self) -> Iterator[tuple[str, int, int]]:
        return zip(self.axes, self.shape, self.chunks, strict=True)

    def write_plain(self, file: Path, offset: int, axes: str, dtype: np.dtype[Any] | None = None) -> None:
        """Write all voxels to `file`, which exists, from byte `offset` on, in C order of `axes`, which has all axes
        that are longer than one; room is taken first, so that a full disk is known at once."""
        dtype = dtype or self.dtype
        shape = tuple(self.count(a) for a in axes)
        with file.open("r+b") as opened:
            _take_room(opened.fileno(), offset + prod(shape) * dtype.itemsize)
            for cell in self.cells():
                values = np.asarray(self.read(cell), dtype)
                spans = {a: range(s.start, s.stop) for a, s in zip(self.axes, cell, strict=True)}
                ordered = _ordered(values, self.axes, axes)
                write_box(opened.fileno(), offset, shape, [spans.get(a, range(1)) for a in axes], ordered)

    def spooled(self, file: Path, axes: str, dtype: np.dtype[Any] | None = None) -> Spool:
        """All voxels in a plain file, for formats that want them in an order of their own."""
        file.touch()
        self.write_plain(file, 0, axes, dtype)
        return Spool(file, tuple(self.count(a) for a in axes), dtype or self.dtype)


@dataclass(frozen=True)
class Spool:
    """Plain numbers in a file, in C order."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, *spans: range) -> Array:
        """What is in `spans`, one for each axis."""
        return read_box(str(self.file), 0, self.shape, self.dtype, spans)


def _take_room(descriptor: int, length: int) -> None:
    try:
        if length and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, length)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        os.ftruncate(descriptor, length)  # file systems that cannot say beforehand


def _ordered(values: Array, axes: str, wanted: str) -> Array:
    """`values` with axes in another order; those that are missing are one long, and those that are not wanted are."""
    kept = [a for a in axes if a in wanted]
    values = values.reshape([n for a, n in zip(axes, values.shape, strict=True) if a in wanted])
    values = values.transpose([kept.index(a) for a in wanted if a in kept])
    return values.reshape([values.shape[[a for a in wanted if a in kept].index(a)] if a in kept else 1 for a in wanted])


def content_of(volume: Volume, pick: Pick = ALL, header: Mapping[str, Any] | None = None) -> Content:
    """What `volume`, of which nothing was picked, holds: all of its time points unless `pick` names one. `header` is
    what a run says of it, where one made it. Raises `InputError` for what there is not."""
    header = header or {}
    times = [pick.time(volume.path, volume.timepoints)] if pick.timepoint is not None else range(volume.timepoints)
    # alpha too: what is told apart is what networks read
    channels = pick.channels or (None if volume.alpha is None else tuple(range(volume.channels)))
    parts = [volume.picked(Pick(time, channels)) for time in times]
    one = parts[0]
    axes = "".join(a for a in "tczyx" if a in volume.axes and (a != "t" or pick.timepoint is None))
    shape = {"t": len(parts), "c": one.channels, **dict(zip(one.spatial, one.shape, strict=True))}
    chunks = {"t": 1, "c": one.channels, **dict(zip(one.spatial, one.chunks, strict=True))}
    labels = header.get("output") == "labels"
    classes = tuple(map(str, header.get("classes") or ()))
    return Content(
        origin=volume.path,
        axes=axes,
        shape=tuple(shape[a] for a in axes),
        chunks=tuple(chunks[a] for a in axes),
        dtype=one.dtype,
        read=lambda selection: _read(parts, axes, selection),
        spacing=one.spacing,
        translation=one.translation,
        unit=one.unit,
        frame=one.frame,
        timing=timing_of(volume, header) if "t" in axes else None,
        channel_names=_channel_names(volume, pick, one.channels) or (classes if len(classes) == one.channels else ()),
        missing=(written,) * one.channels if (written := written_outside(header, labels=labels)) else one.missing,
        measured=one.validity,
        gaps=one.gaps,
        labels=labels,
        classes=_label_names(header, classes) if labels else (),
        colours=tuple(map(str, header.get("colours") or ())) if labels else (),
        source=str(header["input"]) if header.get("input") else None,
        said=header,
    )


def _label_names(header: Mapping[str, Any], classes: tuple[str, ...]) -> tuple[str, ...]:
    return classes or tuple(f"class {i}" for i in range(int(header.get("labels") or 0)))


def _channel_names(volume: Volume, pick: Pick, count: int) -> tuple[str, ...]:
    names = volume.channel_names
    numbers = pick.numbers(volume.path, names, len(names)) if names else None
    found = names if numbers is None else tuple(names[i] for i in numbers)
    if volume.alpha is not None and pick.channels is None and not any(found):
        found = tuple("alpha" if i == volume.alpha else f"channel {i}" for i in range(count))
    return found if len(found) == count and any(found) else ()


def _read(times: Sequence[Volume], axes: str, selection: Selection) -> Array:
    spans = dict(zip(axes, selection, strict=True))
    spatial = times[0].spatial
    box = Box(tuple(spans[a].start for a in spatial), tuple(spans[a].stop for a in spatial))
    found = []
    for volume in times[spans.get("t", slice(0, 1))]:
        voxels = volume.read(box)
        found.append(voxels[spans["c"]] if "c" in axes else voxels[0])
    return np.stack(found) if "t" in axes else found[0]
