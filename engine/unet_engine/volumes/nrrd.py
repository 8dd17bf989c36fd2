"""NRRD, with its data in the same file or in another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.units import brief, times, unit_along, unit_name
from unet_engine.volumes.axis_names import letter
from unet_engine.volumes.base import Timing, Volume
from unet_engine.volumes.files import Part, has_ending, opening, package
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.packed import Described, Packing, data_files, decoded, volume_of
from unet_engine.volumes.timing import even, stepped, unit_of_time

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
_PACKED: dict[str, Packing] = {
    "raw": "", "gzip": "zlib", "gz": "zlib", "bzip2": "bzip2", "bz2": "bzip2",
    "text": "text", "txt": "text", "ascii": "text", "hex": "hex",
}  # fmt: skip
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
            header = nrrd.read_header(list(map(decoded, lines)))  # of bytes it drops what is not ASCII: µm becomes m
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


def _without_list(lines: list[bytes]) -> tuple[list[bytes], list[str]]:
    """The lines before the names of a list of files, and these names."""
    for number, line in enumerate(lines):
        key, _, value = line.partition(b":")
        if key.strip().lower() in (b"data file", b"datafile") and value.split()[:1] == [b"LIST"]:
            names = [decoded(name).strip() for name in lines[number + 1 :]]
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
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize // len(data)
    parts = tuple(Part.of(file) for file in dict.fromkeys((path, *data)))
    begins, offset = _begun(header, packing, data, length if data == (path,) else 0)
    if offset == -1 and not packing:
        if len({part.length for part in parts[-len(data) :]}) > 1:
            raise ValueError("it counts bytes from the end of files of several lengths")
        offset = max(0, parts[-1].length - size)
    axes, spatial = _axes(header, len(shape))
    frame, spacing, unit, notes = _measured(path, header, spatial, *_placed(header, spatial))
    return Described(
        data=data,
        cut=cut,
        offset=offset,
        begins=begins,
        packing=packing,
        shape=shape[::-1],
        axes=axes[::-1],
        dtype=dtype.newbyteorder(">" if header.get("endian") == "big" else "<"),
        frame=frame,
        spacing=spacing,
        unit=unit,
        notes=notes,
        timing=_timing(header, axes) if "t" in axes else None,
        parts=parts,
    )


def _begun(
    header: Mapping[str, Any], packing: Packing, data: tuple[str, ...], behind: int
) -> tuple[tuple[int, ...], int]:
    """Where what is packed begins in each of the files `data`, and how many bytes of what it unpacks to come before the
    voxels, -1 meaning all but theirs. Of plain numbers the same for all files, and in the file itself.

    Lines are skipped in the file, from `behind` its header on, bytes in what it unpacks to. Text is no packing there.
    """
    lines, skipped = (int(header.get(f"{what} skip", header.get(f"{what}skip", 0))) for what in ("line", "byte"))
    if not 0 <= lines <= _LONGEST or skipped < -1 or (skipped == -1 and packing in ("text", "hex")):
        raise ValueError(f"it skips {lines} lines and {skipped} bytes of data in {header.get('encoding')}")
    begins = tuple(_behind_lines(file, behind, lines) for file in data)
    if packing in ("text", "hex"):
        return tuple(begin + skipped for begin in begins), 0
    if packing or skipped == -1:
        return begins, skipped
    if len(set(begins)) > 1:
        raise ValueError("the lines that it skips are of another length in each of its files")
    return (), begins[0] + skipped


def _behind_lines(file: str, begin: int, count: int) -> int:
    """Where `file` goes on behind so many lines. Raises `ValueError` where it has no such lines."""
    if not count:
        return begin
    with Path(file).open("rb") as opened:
        opened.seek(begin)
        head = opened.read(_LONGEST)
    at = 0
    for _ in range(count):
        at = head.find(b"\n", at) + 1
        if not at:
            raise ValueError(f"{file} has fewer lines than are to be skipped, or far longer ones")
    return begin + at


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
    in_time = {i for i, kind in enumerate(kinds) if kind == "time" or (kind == "list" and _is_sequence(header, i))}
    if _in_time(header) and len(kinds) == 4 and len(spatial) == 3:
        in_time |= set(range(4)) - set(spatial)
    return "".join(names.get(i, "t" if i in in_time else "c") for i in range(count)), spatial


def _is_sequence(header: Mapping[str, Any], axis: int) -> bool:
    """Whether a list of volumes is one in time, as 3D Slicer marks it: else it may be anything, such as layers of a
    segmentation, and is one of channels."""
    labels = header.get("labels")
    called = letter(str(labels[axis]).strip('" ')) if labels is not None and len(labels) > axis else ""
    return called == "t" or any(f"axis {axis} index {what}" in header for what in ("type", "values"))


def _timing(header: Mapping[str, Any], axes: str) -> Timing | None:
    """axes: the fastest first."""
    axis, units = axes.index("t"), header.get("units")
    if said := header.get(f"axis {axis} index values"):
        try:
            return even(
                [float(value) for value in str(said).split()],
                unit_of_time(str(header.get(f"axis {axis} index unit", ""))),
            )
        except ValueError:  # names of them
            return None
    sizes = header.get("spacings")
    if sizes is None:
        return None
    lows = header.get("axis mins", header.get("axismins"))
    start = 0.0 if lows is None or not np.isfinite(float(lows[axis])) else float(lows[axis])
    unit = unit_of_time(str(units[axis]).strip('" ?')) if units is not None and len(units) == len(axes) else None
    return stepped(float(sizes[axis]), start, unit)


def _rows(header: Mapping[str, Any]) -> list[Any] | None:
    """What a step along each axis is in space; None for axes that are none of it."""
    directions = header.get("space directions")
    if directions is None:
        return None
    found = [None if row is None else np.asarray(row, np.float64) for row in directions]
    found = [None if row is None or not row.shape or np.isnan(row).any() else row for row in found]
    if _in_time(header):  # of space and time: what is a step in time is none in space
        found = [None if row is None or len(row) != 4 or not any(row[:3]) else row[:3] for row in found]
    return found


def _in_time(header: Mapping[str, Any]) -> bool:
    space = str(header.get("space", "")).lower()
    return space.endswith("-time") or space in ("rast", "last", "lpst")


_SPACES = {"right-anterior-superior": "RAS", "left-anterior-superior": "LAS", "left-posterior-superior": "LPS"}


def _placed(header: Mapping[str, Any], spatial: list[int]) -> tuple[Frame | None, tuple[float, ...] | None]:
    rows, n = _rows(header), len(spatial)
    if rows and n in (2, 3) and all(rows[i] is not None and len(rows[i]) == n for i in spatial):
        columns = np.stack([rows[i] for i in spatial], axis=1)
        origin = np.asarray(header.get("space origin", np.zeros(n)), np.float64)
        origin = (origin[:n] if _in_time(header) else origin).reshape(n, 1)
        said = str(header.get("space", "")).lower().removesuffix("-time")
        said = said[:3] if _in_time(header) and len(said) == 4 else said
        space = _SPACES.get(said, said.upper() if said.upper() in _SPACES.values() else "")
        return Frame.of(np.hstack([columns, origin]).tolist(), space), None
    sizes = _spacings(header)
    if sizes is None:
        return None, None
    found = np.array([sizes[i] for i in spatial])
    if not np.isfinite(found).all() or not found.all():
        return None, None
    lows = header.get("axis mins", header.get("axismins"))
    if lows is None or n not in (2, 3) or not np.isfinite([float(lows[i]) for i in spatial]).all():
        return None, tuple(found[::-1].tolist())
    # the least is where a voxel begins, unless it says that it is its middle
    moved = [float(lows[i]) + (0 if center == "node" else size / 2) for i, center, size in
             zip(spatial, _centers(header, spatial), found, strict=True)]  # fmt: skip
    return Frame.of(np.hstack([np.diag(found), np.reshape(moved, (n, 1))]).tolist()), None


def _centers(header: Mapping[str, Any], spatial: list[int]) -> list[str]:
    said = header.get("centers", header.get("centerings"))
    said = said.split() if isinstance(said, str) else said
    return [str(said[i]).lower() if said is not None else "cell" for i in spatial]


def _spacings(header: Mapping[str, Any]) -> list[float] | None:
    """Per axis, of what the header says of sizes, or of where its axes begin and end; None where it says neither."""
    if header.get("spacings") is not None:
        return [float(size) for size in header["spacings"]]
    lows, highs = (header.get(f"axis {end}", header.get(f"axis{end}")) for end in ("mins", "maxs"))
    if lows is None or highs is None:
        return None
    steps = [
        max(1, int(count) - (center == "node"))
        for count, center in zip(header["sizes"], _centers(header, list(range(len(header["sizes"])))), strict=True)
    ]
    return [(float(hi) - float(lo)) / step for lo, hi, step in zip(lows, highs, steps, strict=True)]


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
