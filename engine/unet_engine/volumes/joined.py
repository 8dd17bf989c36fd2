"""Volumes that lie on the same voxels, seen as one whose channels are theirs, one after the other: channels in files of
their own (``a.tif+b.tif``), and bands in arrays of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.endings import together
from unet_engine.errors import InputError
from unet_engine.paths import absolute, is_local, parts
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.volumes import nodata
from unet_engine.volumes.base import Array, Selection, StoredVolume, Volume
from unet_engine.volumes.nodata import Missing
from unet_engine.volumes.pick import Pick
from unet_engine.volumes.same_grid import differs, promoted

_LISTED = 24


class JoinedFormat:
    """Paths that name several volumes, each of which any format opens."""

    def __init__(
        self,
        open_one: Callable[[str, str | None], Volume],
        located: Callable[[str, str | None, int | None], str],
    ) -> None:
        self._open, self._located = open_one, located

    def recognises(self, path: str) -> bool:
        return len(parts(path)) > 1

    def located(self, path: str, image: str | None, level: int | None) -> str:
        return "+".join(self._located(part, image, level) for part in parts(path))

    def open(self, path: str, axes: str | None) -> Volume:
        """axes: of each volume, with or without those of channels; or those of the first, of the second and so on, with a
        plus between"""
        paths = parts(path)
        if len({*map(absolute, paths)}) < len(paths):
            raise InputError(f"{path} names one volume twice; name each of its channels once")
        if axes and "+" in axes:
            volumes = [self._as_said(part, own) for part, own in zip(paths, axes.split("+"), strict=True)]
        else:
            volumes = [self._opened(part, axes) for part in paths]
        _, names = together(paths)
        listed = _list(
            [f"{Path(part).name} ({name})" if name else Path(part).name for part, name in _zip(paths, names)]
        )
        told = f"channels are, in this order, those of {listed}; --input-channels takes others"
        return join(path, paths, names, volumes, (told, *_alike(paths)))

    def _as_said(self, path: str, axes: str | None) -> StoredVolume:
        found = self._open(path, axes)
        assert isinstance(found, StoredVolume)
        return found

    def _opened(self, path: str, axes: str | None) -> StoredVolume:
        """One with channels, or without, beside others that are the other: what its file says of these counts."""
        try:
            return self._as_said(path, axes)
        except InputError:
            if not axes:
                raise
            with suppress(InputError):
                found = self._as_said(path, None)
                if found.axes.replace("c", "") == axes.replace("c", ""):
                    return found
            if "c" not in axes:
                raise
        return self._as_said(path, axes.replace("c", ""))


def _alike(paths: Sequence[str]) -> list[str]:
    """What is told where two names lead to one place."""
    first: dict[str, str] = {}
    found = [first.setdefault(os.path.realpath(path) if is_local(path) else path, path) for path in paths]
    return [
        f"{path} is {other}, by a link: it is read as two channels"
        for path, other in _zip(paths, found)
        if path != other
    ]


def _zip(paths: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(paths, names or [""] * len(paths), strict=True))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def join(
    path: str, called: Sequence[str], names: Sequence[str], volumes: Sequence[StoredVolume], told: Sequence[str]
) -> JoinedVolume:
    """`volumes` as one at `path`, with all channels of each but alpha.

    called: what people are told that they are; names: of their channels, where each has one; empty: as they call these
    themselves. Raises `InputError` where they are not on the same voxels, or no type holds the numbers of all exactly.
    """
    seen = [volume.picked(Pick(timepoint=0)) for volume in volumes]
    opened = [volume for volume in seen if isinstance(volume, StoredVolume)]
    placed = max(range(len(opened)), key=lambda n: (_says(opened[n]), -n))
    first = opened[placed]
    notes = dict.fromkeys((*told, *(note for volume in opened for note in volume.notes)))
    for name, volume in zip(called, opened, strict=True):
        if why := differs(volume, first):
            raise InputError(
                f"{name} {why} {called[placed]} and cannot be a channel beside it; bring one to the voxels of the other "
                "first, or correct its header where that is wrong"
            )
        if _lacks(volume, first):
            what = "in which coordinate system it lies" if volume.frame else "where it lies"
            notes[f"{name} does not say {what}: taken to lie where {called[placed]} does"] = None
    dtype = promoted(called, opened)
    if any(volume.dtype != dtype for volume in opened):
        kinds = ", ".join(f"{name} ({volume.dtype})" for name, volume in zip(called, opened, strict=True))
        notes[f"{kinds} are read as {dtype}, which holds the numbers of all"] = None
    missing = tuple(values for volume in opened for values in _missing(volume))
    same = nodata.same(missing)
    each, ahead = [_without_channels(v, v.stored_chunks) for v in opened], first.axes.replace("c", "")
    spacing, translation = (_without_channels(first, v or ()) for v in (first.stored_spacing, first.stored_translation))
    return JoinedVolume(
        path=path,
        axes=f"c{ahead}",
        stored_shape=(sum(v.channels for v in opened), *_without_channels(first, first.stored_shape)),
        stored_chunks=(max(map(_channel_chunk, opened)), *max(each, key=prod)),
        stored_dtype=dtype,
        stored_spacing=[1.0, *spacing] if spacing else None,
        stored_translation=[0.0, *translation] if translation else None,
        unit=first.unit,
        frame=first.frame,
        fill_value=opened[0].fill_value,
        channel_names=_names(called, names, opened),
        nodata=same or (),
        nodata_of=missing if same is None else (),
        notes=tuple(notes),
        timing=next((v.timing for v in opened if v.timing), None),
        parts=tuple(opened),
    )


def _says(volume: StoredVolume) -> int:
    """How much of where it lies."""
    if volume.frame:
        return 3 + bool(volume.frame.crs)
    return 0 if not volume.stored_spacing else 1 + any(volume.translation)


def _lacks(volume: StoredVolume, first: StoredVolume) -> bool:
    """Whether it says less than that one, of what is not compared for that."""
    mine, theirs = _says(volume), _says(first)
    return mine < theirs and (mine == 0 or (mine == 1 and theirs > 2) or mine == 3)


def _missing(volume: StoredVolume) -> Missing:
    """Values that mean that nothing was measured, of each channel, as numbers of the volume's own type: of a wider one
    that holds all, the same text may be another number."""
    each = volume.missing or ((),) * volume.channels
    cast = [[nodata.in_type(value, volume.dtype) for value in own] for own in each]
    return tuple(tuple(float(value) for value in own if value is not None) for own in cast)


def _names(called: Sequence[str], names: Sequence[str], volumes: Sequence[StoredVolume]) -> tuple[str, ...]:
    """Of all channels: each is called like its volume where that has no other, else as that calls it."""
    found: list[str] = []
    for name, volume in _zip_volumes(names or [Path(one).name for one in called], volumes):
        own = [volume.channel_names[c] for c in _channels(volume)] if volume.channel_names else []
        found += [name] if volume.channels == 1 else own or [f"{name}:{c}" for c in _channels(volume)]
    return tuple(found) if len({*found}) == len(found) else ()


def _zip_volumes(names: Sequence[str], volumes: Sequence[StoredVolume]) -> list[tuple[str, StoredVolume]]:
    return list(zip(names, volumes, strict=True))


def _channels(volume: StoredVolume) -> Sequence[int]:
    """Those of a volume that are read, as they are stored."""
    return range(volume.channels) if volume.chosen is None else volume.chosen


def _without_channels(volume: StoredVolume, values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(value for a, value in zip(volume.axes, values, strict=False) if a != "c")


def _channel_chunk(volume: StoredVolume) -> int:
    return volume.stored_chunks[volume.axes.index("c")] if "c" in volume.axes else 1


@dataclass(frozen=True, eq=False, kw_only=True)
class JoinedVolume(StoredVolume):
    """Read by the volumes that it is made of; those of whose channels nobody chose any are not read."""

    parts: tuple[StoredVolume, ...]

    @property
    def opened_by_axes(self) -> str:
        several = len(parts(self.path)) == len(self.parts)  # else bands that lie in one place
        return "+".join(part.axes for part in self.parts) if several else self.axes

    @cached_property
    def _read(self) -> tuple[tuple[StoredVolume, list[int]], ...]:
        """Volumes that are read, of which the channels are picked that are, and which of those of the whole these are;
        at the time point that is read."""
        every = [(number, own) for number, part in enumerate(self.parts) for own in _channels(part)]
        rows: dict[int, list[tuple[int, int]]] = {}
        for row, channel in enumerate(range(len(every)) if self.chosen is None else self.chosen):
            number, own = every[channel]
            rows.setdefault(number, []).append((row, own))
        return tuple(
            (_picked(self.parts[number], [own for _, own in found], self.time), [row for row, _ in found])
            for number, found in rows.items()
        )

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        found = np.empty((self.channels, *box.shape), self.dtype)
        for part, rows in self._read:
            for row, voxels in zip(rows, part.read(box, recorder), strict=True):
                found[row] = voxels
        return found

    def stored(self, selection: Selection) -> Array:
        every = [_picked(part, [own], None) for part in self.parts for own in _channels(part)]
        numbers = range(*selection[0].indices(len(every)))
        return np.stack([_stored(every[n], selection[1:]) for n in numbers]).astype(self.stored_dtype)

    @cached_property
    def validity(self) -> Volume | None:
        """What is there in any channel was measured: nothing is said where a part has no mask, or its own of each
        channel."""
        found = [part.validity for part, _ in self._read if part.validity]
        if self.whole or len(found) < len(self._read):
            return None
        return found[0] if len(found) == 1 else _Measured.of(self, found)

    @cached_property
    def gaps(self) -> Volume | None:
        found = [(part.gaps or part.validity, rows) for part, rows in self._read]
        if self.whole or not any(one for one, _ in found) or (len(found) == 1 and not self._read[0][0].gaps):
            return None
        rows = {row: (one, k if one and one.channels > 1 else 0) for one, own in found for k, row in enumerate(own)}
        return _Gaps.of(self, [rows[row] for row in range(self.channels)])

    def has_data(self, box: Box) -> bool:
        return any(part.fill_value != self.fill_value or part.has_data(box) for part, _ in self._read)

    def changed(self, box: Box, since: float) -> str | None:
        return next((found for part, _ in self._read if (found := part.changed(box, since))), None)

    def token(self, box: Box) -> tuple[str, str] | None:
        found = [one for part, _ in self._read if (one := part.token(box))]
        return (found[0][0], " ".join(tag for _, tag in found)) if found else None

    def confirm(self) -> None:
        for part, _ in self._read:
            part.confirm()

    @property
    def drawback(self) -> str | None:
        return next((part.drawback for part, _ in self._read if part.drawback), None)

    @property
    def units(self) -> tuple[int, ...] | None:
        return self._read[0][0].units

    @property
    def pieces(self) -> tuple[int, ...] | None:
        return max((pieces for part, _ in self._read if (pieces := part.pieces)), key=prod, default=None)

    def keep(self, most: int, reads: Fetching | None) -> None:
        for part, _ in self._read:
            part.keep(most // len(self._read), reads if part.units == self.units else None)

    def fetch(self, box: Box) -> None:
        for part, _ in self._read:
            part.fetch(box)

    def hold(self, most: int) -> None:
        for part, _ in self._read:
            part.hold(most // len(self._read))

    @property
    def held_bytes(self) -> int:
        return sum(part.held_bytes for part, _ in self._read)

    def release(self) -> None:
        for part in self.parts:
            part.release()

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "joined": [part.path for part in self.parts]}


def _picked(part: StoredVolume, channels: Sequence[int], time: int | None) -> StoredVolume:
    """`part` with some of its stored channels; time: another time point."""
    return replace(
        part,
        time=part.time if time is None else time,
        chosen=tuple(channels) if "c" in part.axes else None,
    )


def _stored(part: StoredVolume, selection: Selection) -> Array:
    """The voxels of `selection`, which has no channels, in the order of its stored axes."""
    if "c" not in part.axes:
        return part.stored(selection)
    at = part.axes.index("c")
    found = part.stored((*selection[:at], part.channel_span, *selection[at:]))
    squeezed: Array = np.squeeze(found, axis=at)
    return squeezed


@dataclass(frozen=True, eq=False, kw_only=True)
class _Masks(StoredVolume):
    """What volumes that say where something was measured, of one channel or several, come to."""

    parts: tuple[Volume, ...]

    def changed(self, box: Box, since: float) -> str | None:
        return next((found for part in self.parts if (found := part.changed(box, since))), None)

    def token(self, box: Box) -> tuple[str, str] | None:
        found = [one for part in self.parts if (one := part.token(box))]
        return (found[0][0], " ".join(tag for _, tag in found)) if found else None

    def confirm(self) -> None:
        for part in self.parts:
            part.confirm()


@dataclass(frozen=True, eq=False, kw_only=True)
class _Measured(_Masks):
    """1 where any of several volumes, of one channel each, is anything but 0; else 0."""

    @classmethod
    def of(cls, whole: StoredVolume, parts: Sequence[Volume]) -> _Measured:
        return cls(
            path=whole.path,
            axes=whole.spatial,
            stored_shape=whole.shape,
            stored_chunks=whole.chunks,
            stored_dtype=np.dtype(np.uint8),
            parts=tuple(parts),
        )

    def has_data(self, box: Box) -> bool:
        return any(part.fill_value or part.has_data(box) for part in self.parts)

    def stored(self, selection: Selection) -> Array:
        box = _box(selection, self.stored_shape)
        found: Array = np.any([part.read(box)[0] != 0 for part in self.parts], axis=0).astype(np.uint8)
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class _Gaps(_Masks):
    """1 where a channel was measured, else 0."""

    of_channels: tuple[tuple[int, int] | None, ...]
    """For each, which of `parts` says it, and by which of its channels; None: nothing does, and all was."""

    @classmethod
    def of(cls, whole: StoredVolume, channels: Sequence[tuple[Volume | None, int]]) -> _Gaps:
        parts = list(dict.fromkeys(part for part, _ in channels if part))
        return cls(
            path=whole.path,
            axes=f"c{whole.spatial}",
            stored_shape=(len(channels), *whole.shape),
            stored_chunks=(len(channels), *whole.chunks),
            stored_dtype=np.dtype(np.uint8),
            parts=tuple(parts),
            of_channels=tuple((parts.index(part), own) if part else None for part, own in channels),
        )

    def stored(self, selection: Selection) -> Array:
        box = _box(selection[1:], self.stored_shape[1:])
        each = [part.read(box) for part in self.parts]
        found = np.ones((len(self.of_channels), *box.shape), np.uint8)
        for row, said in enumerate(self.of_channels):
            if said:
                found[row] = each[said[0]][said[1]] != 0
        return found[selection[0]]


def _box(selection: Selection, shape: Sequence[int]) -> Box:
    spans = [part.indices(n)[:2] for part, n in zip(selection, shape, strict=True)]
    return Box(tuple(lo for lo, _ in spans), tuple(hi for _, hi in spans))
