"""Volumes that lie on the same voxels, seen as one whose channels are theirs, one after the other: channels in files of
their own (``a.tif+b.tif``), and bands in arrays of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.endings import together
from unet_engine.errors import InputError
from unet_engine.paths import parts
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.volumes.base import Array, Selection, StoredVolume, Volume
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
        """axes: of each volume, with or without those of channels"""
        paths = parts(path)
        if len({*paths}) < len(paths):
            raise InputError(f"{path} names one volume twice; name each of its channels once")
        volumes = [self._opened(part, axes) for part in paths]
        _, names = together(paths)
        listed = _list(
            [f"{Path(part).name} ({name})" if name else Path(part).name for part, name in _zip(paths, names)]
        )
        told = f"channels are, in this order, those of {listed}; --input-channels takes others"
        return join(path, paths, names, volumes, (told,))

    def _opened(self, path: str, axes: str | None) -> StoredVolume:
        without = axes and axes.replace("c", "")
        try:
            found = self._open(path, axes)
        except InputError:
            if without == axes:
                raise
            found = self._open(path, without)
        assert isinstance(found, StoredVolume)
        return found


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
    placed = next((n for n, volume in enumerate(opened) if volume.frame or volume.stored_spacing), 0)
    first = opened[placed]
    notes = dict.fromkeys((*told, *(note for volume in opened for note in volume.notes)))
    for name, volume in zip(called, opened, strict=True):
        if why := differs(volume, first):
            raise InputError(
                f"{name} {why} {called[placed]} and cannot be a channel beside it; bring one to the voxels of the other "
                "first, or correct its header where that is wrong"
            )
        if not volume.frame and not volume.stored_spacing and (first.frame or first.stored_spacing):
            notes[f"{name} does not say where it lies: taken to lie where {called[placed]} does"] = None
    dtype = promoted(called, opened)
    if any(volume.dtype != dtype for volume in opened):
        kinds = ", ".join(f"{name} ({volume.dtype})" for name, volume in zip(called, opened, strict=True))
        notes[f"{kinds} are read as {dtype}, which holds the numbers of all"] = None
    nodata = dict.fromkeys(value for volume in opened for value in volume.nodata)
    if any({*map(repr, volume.nodata)} != {*map(repr, nodata)} for volume in opened):
        notes[
            f"{path}: its channels name other values for what was not measured: in all of them it is each of these; "
            "--nodata says otherwise"
        ] = None
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
        nodata=tuple(nodata),
        notes=tuple(notes),
        timing=next((v.timing for v in opened if v.timing), None),
        parts=tuple(opened),
    )


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

    @property
    def validity(self) -> Volume | None:
        found = [one for part, _ in self._read if (one := part.validity)]
        if self.whole or not found:
            return None
        return found[0] if len(found) == 1 else _Measured.of(self, found)

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
    found = part.stored((*selection[:at], part._channel_span, *selection[at:]))
    squeezed: Array = np.squeeze(found, axis=at)
    return squeezed


@dataclass(frozen=True, eq=False, kw_only=True)
class _Measured(StoredVolume):
    """1 where all of several volumes, of one channel each, are anything but 0; else 0."""

    parts: tuple[Volume, ...]

    @classmethod
    def of(cls, whole: StoredVolume, found: Sequence[Volume]) -> _Measured:
        return cls(
            path=whole.path,
            axes=whole.spatial,
            stored_shape=whole.shape,
            stored_chunks=whole.chunks,
            stored_dtype=np.dtype(np.uint8),
            parts=tuple(found),
        )

    def stored(self, selection: Selection) -> Array:
        spans = [part.indices(n)[:2] for part, n in zip(selection, self.stored_shape, strict=True)]
        box = Box(tuple(lo for lo, _ in spans), tuple(hi for _, hi in spans))
        found: Array = np.all([part.read(box)[0] != 0 for part in self.parts], axis=0).astype(np.uint8)
        return found

    def changed(self, box: Box, since: float) -> str | None:
        return next((found for part in self.parts if (found := part.changed(box, since))), None)

    def token(self, box: Box) -> tuple[str, str] | None:
        found = [one for part in self.parts if (one := part.token(box))]
        return (found[0][0], " ".join(tag for _, tag in found)) if found else None

    def confirm(self) -> None:
        for part in self.parts:
            part.confirm()
