"""Folders of files of one plane each, TIFF or pictures: slices."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.endings import cases_among, numbered
from unet_engine.errors import InputError
from unet_engine.paths import is_local
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.units import times
from unet_engine.volumes import picture, tiff
from unet_engine.volumes.axes import checked_axes
from unet_engine.volumes.base import Array, Selection, StoredVolume, Volume
from unet_engine.volumes.files import FileVolume, Kept, Part, grouped
from unet_engine.volumes.picture import PictureVolume
from unet_engine.volumes.tiff import TiffFormat, TiffVolume

_OPEN = 128
"""Files that are held open at once."""
_KINDS = (tiff.ENDINGS, (".png",), (".jpg", ".jpeg"))
"""Endings of slices. Of a folder with several kinds the first is meant, which is told."""


class SlicesFormat:
    def recognises(self, path: str) -> bool:
        return is_local(path) and Path(path).is_dir() and not _is_zarr(path) and bool(_slices(path))

    def open(self, path: str, axes: str | None) -> Volume:
        files = _slices(path)
        if not axes and (cases := cases_among(files)):
            raise InputError(
                f"{path} holds files that are called as channels of {len(cases)} cases, such as {Path(files[0]).name} (as "
                f"nnU-Net's imagesTs): run takes the folder, or --in '{path}/*', as those; name one case, e.g. --in "
                f"{files[0]}; or say --axes zyx where they are slices of one volume"
            )
        if whole := _as_one(path, files, axes):
            return replace(whole, path=path, opened_by=self)
        first = _slice(files[0])
        names = "z" + first.axes
        names = checked_axes(path, (len(files), *first.stored_shape), first.stored_dtype, axes or names)
        if not names.startswith("z"):
            raise InputError(
                f"{path} is a folder of slices, which lie along z: {names!r} is not possible; use --axes zyx"
            )
        return SlicesVolume(
            path=path,
            axes=names,
            stored_shape=(len(files), *first.stored_shape),
            stored_chunks=grouped(
                names, (len(files), *first.stored_shape), (1, *first.stored_chunks), first.stored_dtype.itemsize
            ),
            stored_dtype=first.stored_dtype,
            nodata=first.nodata,
            nodata_of=first.nodata_of,
            alpha=first.alpha if names[1:] == first.axes else None,
            notes=(*first.notes, *_gaps(path, files), *_others(path, files)),
            opened_by=self,
            files=tuple(Part.of(file) for file in files),
            first=first,
        )


def are_cases(path: str) -> bool:
    """Whether the slices in the folder `path` are called as channels of several cases."""
    return bool(cases_among(_slices(path)))


def case_in(path: str) -> str | None:
    """The first of the slices in the folder `path` where all of them are called as channels of one case; else None."""
    files = _slices(path) if is_local(path) and Path(path).is_dir() else []
    found = [numbered(file) for file in files]
    numbers = [one[1] for one in found if one]
    return (
        files[0]
        if files and len({one and (one[0], one[2]) for one in found}) == 1 and numbers == [*range(len(files))]
        else None
    )


def _is_zarr(path: str) -> bool:
    return any(os.path.lexists(f"{path}/{name}") for name in ("zarr.json", ".zarray", ".zgroup", "attributes.json"))


def _slices(path: str) -> list[str]:
    """The slices in a folder, in the order of the numbers in their names."""
    names = next(filter(None, _by_kind(path)), [])
    return [f"{path.rstrip('/')}/{name}" for name in sorted(names, key=_natural)]


def _by_kind(path: str) -> list[list[str]]:
    """Names of files in a folder, for each of `_KINDS`."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError:
        names = []
    return [[name for name in names if name.lower().endswith(endings)] for endings in _KINDS]


def _others(path: str, files: list[str]) -> tuple[str, ...]:
    """A note where files of another kind could be slices as well."""
    taken = {Path(file).name for file in files}
    left = sorted(name for names in _by_kind(path) for name in names if name not in taken)
    if not left:
        return ()
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return (
        f"{path}: its slices are the {len(files)} files like {Path(files[0]).name}; {left[0]}{more}, of another kind, "
        "left out: give them a folder of their own if they are meant",
    )


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _gaps(path: str, files: list[str]) -> tuple[str, ...]:
    """A note where numbers are left out, by the last number that differs from file to file."""
    numbers = [[int(n) for n in re.findall(r"[0-9]+", Path(file).name)] for file in files]
    if len({len(n) for n in numbers}) != 1:
        return ()
    columns = [column for column in zip(*numbers, strict=True) if len(set(column)) == len(files)]
    steps = np.diff(columns[-1]) if columns and len(files) > 1 else np.ones(1)
    if (steps == steps[0]).all():
        return ()
    at = int(np.flatnonzero(steps != np.median(steps))[0])
    return (
        f"{path}: between {Path(files[at]).name} and {Path(files[at + 1]).name} slices seem to be "
        "missing; they are taken as neighbours",
    )


def _as_one(path: str, files: list[str], axes: str | None) -> FileVolume | None:
    """The image that all `files` are parts of, as the first one describes it; None where it describes none. Raises
    `InputError` where others lie among them."""
    found = _opened(files[0], None)
    if len(found.files) == 1:
        return None
    inside = {os.path.realpath(part.path) for part in found.files}
    other = next((file for file in files if os.path.realpath(file) not in inside), None)
    if other:
        raise InputError(
            f"{path} holds an image of several files, {files[0]} and others, and {other} is none of them; take it out"
        )
    if axes:
        found = _opened(files[0], axes)
    return found


def _opened(file: str, axes: str | None) -> FileVolume:
    found = picture.plane(file, axes) if file.lower().endswith(picture.ENDINGS) else TiffFormat().open(file, axes)
    assert isinstance(found, FileVolume)
    return found


def _slice(file: str) -> StoredVolume:
    volume = _opened(file, None)
    if "z" in volume.axes or "t" in volume.axes:
        raise InputError(
            f"{file} is not a slice but holds {times(volume.stored_shape)} ({volume.axes}); give the file itself"
        )
    return volume


class _Open:
    """The slices that were read last. What any of them keeps unpacked is kept together."""

    def __init__(self) -> None:
        self._lock, self._found = threading.Lock(), OrderedDict[str, StoredVolume]()
        self.kept: Kept[Any] = Kept()

    def get(self, file: str) -> StoredVolume:
        with self._lock:
            if file not in self._found:
                found = _slice(file)
                if isinstance(found, TiffVolume | PictureVolume):
                    found = replace(found, kept=self.kept)
                self._found[file] = found
            self._found.move_to_end(file)
            while len(self._found) > _OPEN:
                self._found.popitem(last=False)
            return self._found[file]


@dataclass(frozen=True, eq=False, kw_only=True)
class SlicesVolume(FileVolume):
    first: StoredVolume
    _open: _Open = field(default_factory=_Open)

    @property
    def pieces(self) -> tuple[int, ...] | None:
        inside = dict(zip(self.first.spatial, self.first.pieces or (), strict=False))
        return self.along((1, *(inside.get(axis, 1) for axis in self.first.axes))) if inside else None

    def keep(self, most: int, reads: Fetching | None) -> None:
        self._open.kept.allow(most)

    def parts(self, box: Box) -> Iterable[Part]:
        z = box.slices()[0]
        return self.files[z.start : z.stop]

    def confirm(self) -> None:
        """The folder's first and last slice stand for it: asked of every block, of thousands of files."""
        for part in (self.files[0], self.files[-1]):
            part.confirm(self.path)

    def stored(self, selection: Selection) -> Array:
        span = range(*selection[0].indices(self.stored_shape[0]))
        found = np.empty(
            (
                len(span),
                *(len(range(*s.indices(n))) for s, n in zip(selection[1:], self.stored_shape[1:], strict=True)),
            ),
            self.stored_dtype,
        )
        for plane, number in zip(found, span, strict=True):
            plane[...] = self._slice(number).stored(selection[1:])
        return found

    def _slice(self, number: int) -> StoredVolume:
        part = self.files[number]
        part.confirm(self.path)
        volume = self._open.get(part.path)
        if volume.stored_shape != self.first.stored_shape or volume.stored_dtype != self.first.stored_dtype:
            raise InputError(
                f"{part.path} is {times(volume.stored_shape)} {volume.stored_dtype}, the first slice "
                f"{times(self.first.stored_shape)} {self.first.stored_dtype}; give a folder of slices that are alike"
            )
        return volume
