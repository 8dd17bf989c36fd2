"""Formats of a header and one run of plain numbers, compressed or not: what they have in common."""

from __future__ import annotations

import bz2
import gzip
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite, prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from unet_engine.errors import InputError
from unet_engine.paths import is_local
from unet_engine.storage import scratch, written_numbers
from unet_engine.units import brief, size
from unet_engine.volumes import alpha, pictures, slabs
from unet_engine.volumes.axes import check_sizes, checked_axes
from unet_engine.volumes.base import Format, Timing, Volume
from unet_engine.volumes.files import Part, PlainVolume, plain_chunks
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.linear import Linear

Packing = Literal["", "gzip", "bzip2", "zlib", "text", "hex", "picture"]


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a header says. Axes and shape are as the numbers lie in the file, the slowest first."""

    data: tuple[str, ...]
    """The file that holds the numbers, or those that do, in order."""
    offset: int
    """Where they begin: in each file, or in what it unpacks to, of which -1 means the last bytes."""
    begins: tuple[int, ...] = ()
    """Where what is packed begins in each file; at 0 where none is given."""
    cut: int = 0
    """Of several files: the axis along which they follow one another."""
    packing: Packing = ""
    shape: tuple[int, ...]
    axes: str | None
    dtype: np.dtype[Any]
    slope: float = 1.0
    intercept: float = 0.0
    frame: Frame | None = None
    spacing: Sequence[float] | None = None
    """Per axis z, y, x, where there is no frame."""
    unit: str | None = None
    notes: tuple[str, ...] = ()
    timing: Timing | None = None
    parts: tuple[Part, ...]
    channel_names: tuple[str, ...] = ()
    supposed: str = ""
    """See `Volume.supposed`."""


def beside(path: str, named: str) -> str:
    """The file of the name that the header at `path` gives for its numbers. Raises `InputError` where it does not lie
    in the header's folder or below, after links: a header from elsewhere is not to choose what of this machine is
    read."""
    found = os.path.join(os.path.dirname(path), named)  # noqa: PTH118, PTH120
    if not named.strip() or not is_local(named) or not _below(os.path.dirname(path) or ".", found):  # noqa: PTH120
        raise InputError(
            f"{path} says that its data are in {brief(named)}, which is no file in its folder; put that file beside it "
            "and correct the name"
        )
    return found


def data_files(path: str, named: str, listed: Sequence[str], shape: Sequence[int]) -> tuple[tuple[str, ...], int]:
    """The files with the numbers of an array of `shape`, the slowest axis first, and the axis along which they follow
    one another.

    named: what the header at `path` says: a name, LIST with `listed` names below it, or a pattern with numbers. Raises
    `InputError` for files outside of the header's folder, and `ValueError` for such as cannot make up the array.
    """
    if len(named) > _LONGEST_NAME:
        raise ValueError(f"the name of its data has {len(named):,} characters")
    said = named.split()
    if said[:1] == ["LIST"]:
        names, rank = list(listed), int(said[1].rstrip("Dd")) if len(said) > 1 else None
    elif several := slabs.numbered(path, named):
        names, rank = several
    else:
        return (beside(path, named),), 0
    if len(set(names)) < len(names):
        raise ValueError("it names one file several times")
    cut = slabs.cut_of(path, shape, len(names), len(shape) - 1 if rank is None else rank)
    return tuple(beside(path, name) for name in names), cut


_LONGEST_NAME = 2**12


def decoded(line: bytes) -> str:
    """Of a header, whose names of files may be in either coding."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _below(folder: str, file: str) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


def volume_of(opened_by: Format, path: str, said: Described, axes: str | None) -> Volume:
    """The volume at `path`. What is packed is unpacked here, once. Raises `InputError` where the header says what
    cannot be."""
    check_sizes(path, said.shape, said.shape)
    if said.dtype.itemsize > 8:
        raise InputError(f"{path} holds {said.dtype}; convert it to integers or floating point numbers")
    names = checked_axes(path, said.shape, said.dtype, axes or said.axes)
    frame, notes = _sensible(path, said, names)
    notes = [*said.notes, *notes]
    length = prod(said.shape) * said.dtype.itemsize // len(said.data)  # of each file
    parts = {part.path: part for part in said.parts}
    homes = tuple(parts[name] for name in said.data)
    copy = _unpacked(said, length, notes) if said.packing else None
    if copy is None:
        for part in homes:
            part.check_length(said.offset + length)
    linear = Linear.of(said.dtype, said.slope, said.intercept)
    called = said.channel_names if "c" in names and said.shape[names.index("c")] == len(said.channel_names) else ()
    seen, doubts = alpha.settled(path, alpha.named(called, {}, len(called)), len(called))
    spacing = frame.spacing if frame else said.spacing
    common: dict[str, Any] = {
        "path": path,
        "axes": names,
        "supposed": "" if axes else said.supposed,
        "stored_shape": said.shape,
        "stored_chunks": plain_chunks(names, said.shape),
        "stored_dtype": linear.dtype,
        "stored_spacing": _stored(names, spacing, 1.0),
        "stored_translation": _stored(names, frame.translation, 0.0) if frame else None,
        "unit": said.unit if spacing else None,
        "notes": (*notes, *doubts),
        "channel_names": called,
        "alpha": seen,
        "timing": said.timing if "t" in names else None,
        "frame": frame,
        "opened_by": opened_by,
        "files": said.parts,
        "numbers": said.dtype,
        "linear": linear,
    }
    if copy is None and len(homes) > 1:
        side = prod(said.shape[: said.cut + 1]) // len(homes)
        return slabs.SlabsVolume(**common, data=homes, offset=said.offset, cut=said.cut, side=side)
    place, offset = (str(copy.path), 0) if copy else (said.data[0], said.offset)
    return PackedVolume(**common, data=place, offset=offset, copy=copy)


def _unpacked(said: Described, length: int, notes: list[str]) -> scratch.Scratch:
    """A copy of the numbers of all files, one after the other, `length` bytes of each."""
    written = said.packing in ("text", "hex")
    how = f"{said.packing} {said.begins} {said.dtype.str}" if written or any(said.begins) else ""
    copy = scratch.unpacked(said.data, partial(_opened, said), said.offset, length, how)
    others = f" and {len(said.data) - 1} others" if len(said.data) > 1 else ""
    verb = ("are", "were") if others else ("is", "was")
    notes.append(
        f"{said.data[0]}{others} {verb[0]} {'text' if written else 'compressed as a whole'} and {verb[1]} unpacked to {copy.path} "
        f"({size(length * len(said.data))}), which goes once a run of it is complete, or after a week"
    )
    return copy


def _sensible(path: str, said: Described, names: str) -> tuple[Frame | None, list[str]]:
    """The frame where it is one of these axes; a note where it makes no sense."""
    frame = said.frame
    if frame is None:
        return None, []
    spatial = "".join(a for a in names if a in "zyx")
    numbers = [*frame.origin, *(v for row in frame.matrix for v in row)]
    if spatial != "zyx"[3 - len(frame.matrix) :]:
        return None, [f"{path}: where it lies in the world is left out: its axes are called {names}"]
    if not all(isfinite(v) for v in numbers) or not all(frame.sizes):
        return None, [f"{path}: its affine is no place in space: left out"]
    return frame, []


def _stored(names: str, values: Sequence[float] | None, other: float) -> list[float] | None:
    """`values` of z, y, x for each of the stored axes."""
    if values is None:
        return None
    of = dict(zip([a for a in "zyx" if a in names], values, strict=False))
    return [of.get(a, other) for a in names]


@contextmanager
def _opened(said: Described, file: str) -> Iterator[BinaryIO]:
    with Path(file).open("rb") as plain:
        plain.seek(dict(zip(said.data, said.begins, strict=False)).get(file, 0))
        yield cast(BinaryIO, _STREAMS[said.packing](plain, said.dtype))


_STREAMS: dict[str, Callable[[BinaryIO, np.dtype[Any]], Any]] = {
    "gzip": lambda file, _: gzip.GzipFile(fileobj=file),
    "bzip2": lambda file, _: bz2.BZ2File(file),
    "zlib": lambda file, _: scratch.ZlibFile(file),
    "text": written_numbers.text,
    "hex": lambda file, _: written_numbers.hexadecimal(file),
    "picture": lambda file, _: pictures.stream(file),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedVolume(PlainVolume):
    copy: scratch.Scratch | None

    def release(self) -> None:
        super().release()
        if self.copy:
            self.copy.release()
