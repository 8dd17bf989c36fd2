"""MetaImage (``.mha``, ``.mhd``), as ITK writes it. Its header is a few lines of text: ITK itself would be 50 MB for
them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.units import brief, unit_name
from unet_engine.volumes.base import Timing, Volume
from unet_engine.volumes.files import Part, has_ending, opening
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.packed import Described, Packing, data_files, decoded, volume_of
from unet_engine.volumes.timing import stepped

_LONGEST = 2**18
"""Bytes of a header."""
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
"""In the sizes that ITK gives them everywhere."""


class MetaImageFormat:
    def recognises(self, path: str) -> bool:
        return has_ending(path, ".mha", ".mhd")

    def open(self, path: str, axes: str | None) -> Volume:
        Part.of(path)
        with opening(path, "MetaImage"):
            header, listed, length = _header(path)
            return volume_of(self, path, _described(path, header, listed, length), axes)


def _header(path: str) -> tuple[dict[str, str], list[str], int]:
    """Keys and values, the names of a list of files, and how long the header is: the line of ElementDataFile is its
    last but for such names."""
    with Path(path).open("rb") as file:
        head = file.read(_LONGEST)
    found: dict[str, str] = {}
    length = 0
    lines = head.split(b"\n")
    for number, line in enumerate(lines):
        length += len(line) + 1
        key, equals, value = decoded(line).partition("=")
        if not equals:
            raise ValueError(f"{brief(key.strip())} is no line of a header")
        found[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            listed = found["elementdatafile"].split()[:1] == ["LIST"]
            names = [decoded(name).strip() for name in lines[number + 1 :]] if listed else []
            return found, [name for name in names if name], length
    raise ValueError("its header names no ElementDataFile")


def _described(path: str, header: Mapping[str, str], listed: list[str], length: int) -> Described:
    n = int(header["ndims"])
    shape = tuple(int(v) for v in header["dimsize"].split())
    if len(shape) != n or not 2 <= n <= 4:
        raise ValueError(f"NDims is {n} and DimSize {header['dimsize']}")
    if header["elementtype"] not in _TYPES:
        raise InputError(f"{path} holds {brief(header['elementtype'])}; convert it to one number or several channels")
    packing: Packing = "" if _true(header, "binarydata", other=True) else "text"
    if _true(header, "compresseddata"):
        if packing:
            raise InputError(f"{path} says that its voxels are text, and packed; correct BinaryData or CompressedData")
        packing = "zlib"
    channels = int(header.get("elementnumberofchannels", 1))
    swapped = _true(header, "binarydatabyteordermsb") or _true(header, "elementbyteordermsb")
    dtype = np.dtype(_TYPES[header["elementtype"]]).newbyteorder(">" if swapped else "<")
    stored = (*shape[::-1], channels) if channels > 1 else shape[::-1]
    named = header["elementdatafile"]
    data, cut = ((path,), 0) if named.upper() == "LOCAL" else data_files(path, named, listed, shape[::-1])
    parts = tuple(Part.of(file) for file in dict.fromkeys((path, *data)))
    offset = length if data == (path,) else int(header.get("headersize", 0))
    if channels < 1 or offset < -1:
        raise ValueError(f"ElementNumberOfChannels is {channels} and HeaderSize {offset}")
    if offset == -1:
        if packing:
            raise ValueError("HeaderSize is -1, and its voxels are no plain numbers")
        if len({part.length for part in parts[-len(data) :]}) > 1:
            raise ValueError("HeaderSize is -1, and its files are of several lengths")
        each = int(np.prod(stored, dtype=object)) * dtype.itemsize // len(data)
        offset = max(0, parts[-1].length - each)
    return Described(
        data=data,
        cut=cut,
        offset=0 if packing else max(0, offset),
        begins=(offset,) * len(data) if packing else (),
        packing=packing,
        shape=stored,
        axes="tzyx"[4 - n :] + "c" * (channels > 1),
        dtype=dtype,
        frame=_frame(header, n),
        unit=_unit(header),
        notes=_notes(path, header),
        parts=parts,
        timing=_timing(header) if n == 4 else None,
        supposed="t" * (n == 4),  # by its place alone
    )


def _notes(path: str, header: Mapping[str, str]) -> tuple[str, ...]:
    """What the header says that intensities are, where stored numbers are others: ITK reads those that are stored."""
    slope, offset = (
        float(header.get(f"elementtointensityfunction{key}", other)) for key, other in (("slope", 1), ("offset", 0))
    )
    if (slope, offset) == (1.0, 0.0):
        return ()
    return (
        f"{path} says that intensities are {slope:g} · stored + {offset:g} (ElementToIntensityFunction), which ITK leaves "
        "out as well: voxels are taken as they are stored",
    )


def _unit(header: Mapping[str, str]) -> str:
    said = header.get("distanceunits", "").strip()
    return unit_name(said) if said.strip("?") else "millimeter"


def _true(header: Mapping[str, str], key: str, *, other: bool = False) -> bool:
    return header[key][:1] in ("T", "t", "1") if key in header else other  # as MetaIO has it


def _frame(header: Mapping[str, str], n: int) -> Frame | None:
    """Patient space, left, posterior, superior. Of a series in time the space is that of its first three axes."""
    sizes = _numbers(header, n, "elementspacing", "elementsize")
    if sizes is None:
        return None
    turned = _numbers(header, n * n, "transformmatrix", "rotation", "orientation")
    # a row of the file is the direction of an axis
    columns = (np.eye(n) if turned is None else turned.reshape(n, n)).T * sizes
    origin = _numbers(header, n, "offset", "position", "origin")
    affine = np.hstack([columns, (np.zeros(n) if origin is None else origin).reshape(n, 1)])
    m = min(n, 3)
    return Frame.of(np.hstack([affine[:m, :m], affine[:m, n:]]).tolist(), "LPS" if m == 3 else "")


def _timing(header: Mapping[str, str]) -> Timing | None:
    """Of the fourth axis, which has no unit here."""
    sizes = _numbers(header, 4, "elementspacing", "elementsize")
    origin = _numbers(header, 4, "offset", "position", "origin")
    return None if sizes is None else stepped(float(sizes[3]), 0.0 if origin is None else float(origin[3]))


def _numbers(header: Mapping[str, str], count: int, *keys: str) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    for key in keys:
        if key in header:
            values = np.array([float(v) for v in header[key].split()])
            if len(values) != count:
                raise ValueError(f"{key} has {len(values)} numbers, not {count}")
            return values
    return None
