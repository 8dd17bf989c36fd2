"""NRRD, with its data in the same file or in another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.units import brief, times, unit_along, unit_name
from unet_engine.volumes.base import Volume
from unet_engine.volumes.files import Part, has_ending, opening, package
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.packed import Described, Packing, data_files, volume_of

_LONGEST = 2**20
"""Bytes of a header."""
_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_DTYPES = {name: dtype for dtype, names in _TYPES.items() for name in names.split("|")}
_PACKED: dict[str, Packing] = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_SPATIAL = ("domain", "space", "???", "none")


class NrrdFormat:
    def recognises(self, path: str) -> bool:
        return has_ending(path, ".nrrd", ".nhdr")

    def open(self, path: str, axes: str | None) -> Volume:
        Part.of(path)
        nrrd = package(path, "an NRRD file", "nrrd", "nrrd")
        with opening(path, "NRRD file"):
            lines, length = _header_lines(path)
            lines, listed = _without_list(lines)
            header = nrrd.read_header(list(map(_text, lines)))  # of bytes it drops what is not ASCII: µm becomes m
            if header["type"].lower() not in _DTYPES:
                raise InputError(f"{path} holds {brief(header['type'])}; convert it to numbers")
            dtype = np.dtype(_DTYPES[header["type"].lower()])
            return volume_of(self, path, _described(path, header, listed, dtype, length), axes)


def _header_lines(path: str) -> tuple[list[bytes], int]:
    """The header's lines, up to the empty one, and how long it is with it."""
    with Path(path).open("rb") as file:
        head = file.read(_LONGEST)
    lines: list[bytes] = []
    length = 0
    for line in head.splitlines(keepends=True):
        length += len(line)
        lines.append(line)
        if not line.strip():
            break
    return lines, length


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _without_list(lines: list[bytes]) -> tuple[list[bytes], list[str]]:
    """The lines before the names of a list of files, and these names."""
    for number, line in enumerate(lines):
        key, _, value = line.partition(b":")
        if key.strip().lower() in (b"data file", b"datafile") and value.split()[:1] == [b"LIST"]:
            names = [_text(name).strip() for name in lines[number + 1 :]]
            return lines[: number + 1], [name for name in names if name]
    return lines, []


def _described(path: str, header: Mapping[str, Any], listed: list[str], dtype: np.dtype[Any], length: int) -> Described:
    shape = tuple(int(n) for n in header["sizes"])
    if int(header.get("dimension", len(shape))) != len(shape):
        raise ValueError(f"dimension is {header['dimension']} and sizes are {times(shape)}")
    encoding = str(header.get("encoding", "raw")).lower()
    if encoding not in _PACKED:
        raise InputError(f"{path} is encoded as {brief(encoding)}, which is not read here; save it as raw or gzip")
    named = str(header.get("data file", header.get("datafile", "")))
    data, cut = data_files(path, named, listed, shape[::-1]) if named else ((path,), 0)
    packing = _PACKED[encoding]
    skipped = int(header.get("byte skip", header.get("byteskip", 0)))
    if int(header.get("line skip", header.get("lineskip", 0))) or skipped < -1 or (skipped == -1 and packing):
        raise InputError(
            f"{path} skips lines or counts bytes from the end of packed data; save it again as plain or packed numbers"
        )
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize // len(data)
    parts = tuple(Part.of(file) for file in dict.fromkeys((path, *data)))
    begin = length if data == (path,) else 0
    if skipped == -1 and len({part.length for part in parts[-len(data) :]}) > 1:
        raise ValueError("it counts bytes from the end of files of several lengths")
    offset = max(0, parts[-1].length - size) if skipped == -1 else begin + skipped
    if data == (path,) and packing:  # the packed stream begins behind the header
        if skipped or packing == "bzip2":
            raise InputError(f"{path} skips bytes of packed data, or packs with bzip2; save it as raw or gzip")
        packing, offset = "zlib", begin
    axes, spatial = _axes(header, len(shape))
    frame, spacing, unit, notes = _measured(path, header, spatial, *_placed(header, spatial))
    return Described(
        data=data,
        cut=cut,
        offset=offset,
        packing=packing,
        shape=shape[::-1],
        axes=axes[::-1],
        dtype=dtype.newbyteorder(">" if header.get("endian") == "big" else "<"),
        frame=frame,
        spacing=spacing,
        unit=unit,
        notes=notes,
        parts=parts,
    )


def _axes(header: Mapping[str, Any], count: int) -> tuple[str, list[int]]:
    """The axes, the fastest first, and which of them are spatial."""
    kinds = [str(kind).lower() for kind in header.get("kinds", [])] or ["???"] * count
    rows = _rows(header)
    spatial = [
        i for i, kind in enumerate(kinds) if (rows[i] is not None if rows and len(rows) == count else kind in _SPATIAL)
    ]
    if len(spatial) > 3 and not rows:  # nothing says which: the slowest is no place
        spatial = spatial[:3]
    names = dict(zip(spatial, "xyz", strict=False))
    return "".join(names.get(i, "t" if kind == "time" else "c") for i, kind in enumerate(kinds)), spatial


def _rows(header: Mapping[str, Any]) -> list[Any] | None:
    """What a step along each axis is in space; None for axes that are none of it."""
    directions = header.get("space directions")
    if directions is None:
        return None
    found = [None if row is None else np.asarray(row, np.float64) for row in directions]
    return [None if row is None or not row.shape or np.isnan(row).any() else row for row in found]


_SPACES = {"right-anterior-superior": "RAS", "left-anterior-superior": "LAS", "left-posterior-superior": "LPS"}


def _placed(header: Mapping[str, Any], spatial: list[int]) -> tuple[Frame | None, tuple[float, ...] | None]:
    rows, n = _rows(header), len(spatial)
    if rows and n in (2, 3) and all(rows[i] is not None and len(rows[i]) == n for i in spatial):
        columns = np.stack([rows[i] for i in spatial], axis=1)
        origin = np.asarray(header.get("space origin", np.zeros(n)), np.float64).reshape(n, 1)
        said = str(header.get("space", "")).lower()
        space = _SPACES.get(said, said.upper() if said.upper() in _SPACES.values() else "")
        return Frame.of(np.hstack([columns, origin]).tolist(), space), None
    spacings = header.get("spacings")
    if spacings is None:
        return None, None
    sizes = tuple(float(spacings[i]) for i in reversed(spatial))
    return None, sizes if all(np.isfinite(sizes)) and all(sizes) else None


def _measured(
    path: str, header: Mapping[str, Any], spatial: list[int], frame: Frame | None, spacing: tuple[float, ...] | None
) -> tuple[Frame | None, tuple[float, ...] | None, str | None, tuple[str, ...]]:
    """The same places in one unit, that unit, and what the user is told of it. ``space units`` are those of the axes of
    the world, ``units`` those of each axis of the voxels."""
    of_world = header.get("space units") is not None
    said = header.get("space units") if of_world else header.get("units")
    listed = [str(unit).strip('" ') for unit in (said if said is not None else ())]
    listed = ["" if unit == "???" else unit for unit in listed]
    if frame is None and not of_world and len(listed) == header.get("dimension"):
        listed = [listed[i] for i in spatial]
    if not any(listed):
        return frame, spacing, "millimeter" if frame and frame.space else None, ()
    if len(set(listed)) < 2 or len(listed) != len(spatial):  # one said of each, or of some alone
        named = {unit_name(unit) for unit in listed if unit}
        return frame, spacing, named.pop() if len(named) == 1 else None, ()
    unit, factors, notes = unit_along(dict(zip("xyz", listed, strict=False)))
    by = [factors.get(axis, 1.0) for axis in "xyz"[: len(spatial)]]
    return (
        frame and frame.stretched(by),
        spacing and tuple(s * f for s, f in zip(spacing, reversed(by), strict=True)),
        unit,
        tuple(f"{path}: {note}" for note in notes),
    )
