"""How large pictures say that they are: JPEG, JPEG-LS, JPEG 2000, JPEG XR, JPEG XL, PNG, WebP and LERC, as pieces of
other files are packed with them. Whoever unpacks one takes memory for what it says. And PNG and JPEG unpacked, as files
of their own."""

from __future__ import annotations

import io
import struct
from typing import Any, BinaryIO

import numpy.typing as npt

from unet_engine.errors import InputError
from unet_engine.storage.unpacking import HARMLESS
from unet_engine.units import times

Sides = tuple[int, int]
"""Rows, columns."""
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
"""How they begin."""


def check(data: bytes, rows: int, columns: int) -> None:
    """Raise `ValueError` where `data` are a picture of far more pixels than a piece of so many rows and columns."""
    said = sides(data)
    if said and said[0] * said[1] > 4 * rows * columns + HARMLESS // 16:
        raise ValueError(
            f"it says that it is a picture of {times(said)}, and a piece of this image is {rows}×{columns}"
        )


def sides(data: bytes) -> Sides | None:
    """What the header of a picture says; None where it is none of those known, or breaks off."""
    try:
        return next((read(data) for begin, read in _KINDS.items() if data.startswith(begin)), None)
    except (struct.error, ValueError, IndexError):
        return None


def _jpeg(data: bytes) -> Sides | None:
    """ISO 10918-1, B.2.2, and ISO 14495-1 for JPEG-LS: a frame's header among segments that name their length."""
    at = 2
    while True:
        while data[at + 1] == 0xFF:
            at += 1
        kind = data[at + 1]
        if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)):
            return struct.unpack_from(">2H", data, at + 5)
        if kind == 0xDA:  # voxels, and no header came
            return None
        at += 2 if kind == 1 or 0xD0 <= kind <= 0xD8 else 2 + int(struct.unpack_from(">H", data, at + 2)[0])


def _jpeg2000(data: bytes) -> Sides:
    """ISO 15444-1, A.5.1: the far corner less the near one."""
    right, bottom, left, top = struct.unpack_from(">4I", data, data.index(b"\xff\x4f\xff\x51") + 8)
    return bottom - top, right - left


def _png(data: bytes) -> Sides:
    columns, rows = struct.unpack_from(">2I", data, 16)
    return rows, columns


def _webp(data: bytes) -> Sides | None:
    """RFC 9649, 2.7, 3.4 and RFC 6386, 9.1."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    columns, rows = struct.unpack_from("<2H", data, 26)
    return rows & 0x3FFF, columns & 0x3FFF


def _jpeg_xr(data: bytes) -> Sides:
    """ISO 29199-2, A.7: tags as of TIFF, by their numbers."""
    start = struct.unpack_from("<I", data, 4)[0]
    found = {}
    for i in range(struct.unpack_from("<H", data, start)[0]):
        tag, kind = struct.unpack_from("<2H", data, start + 2 + 12 * i)
        found[tag] = struct.unpack_from("<H" if kind == 3 else "<I", data, start + 10 + 12 * i)[0]
    return found.get(0xBC81, 0), found.get(0xBC80, 0)


_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def _jpeg_xl(data: bytes) -> Sides:
    """ISO 18181-1, 5.3: fields of bits behind the signature of the stream, the lowest first."""
    place = data.index(b"\xff\x0a") + 2
    bits = int.from_bytes(data[place : place + 10], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    rows, ratio = side(), take(3)
    if ratio:
        numerator, denominator = _RATIOS[ratio - 1]
        return rows, rows * numerator // denominator
    return rows, side()


def _lerc(data: bytes) -> Sides:
    """LERC 2: a version, from 3 on a checksum, then rows and columns."""
    version = struct.unpack_from("<i", data, 6)[0]
    return struct.unpack_from("<2i", data, 10 + 4 * (version >= 3))


_KINDS = {
    JPEG: _jpeg, b"\xff\x4f\xff\x51": _jpeg2000, b"\0\0\0\x0cjP  ": _jpeg2000, PNG: _png,
    b"RIFF": _webp, b"II\xbc": _jpeg_xr, b"\xff\x0a": _jpeg_xl, b"\0\0\0\x0cJXL ": _jpeg_xl, b"Lerc2 ": _lerc,
}  # fmt: skip
"""By how their bytes begin."""


def decoded(path: str, data: bytes) -> npt.NDArray[Any]:
    """The array of the PNG or JPEG `data`, (y, x) or (y, x, c), uint8 or uint16. Raises `InputError` for colours of a
    printer, `ValueError` for a JPEG that breaks off, of which the library makes grey, and what the library raises.
    Pillow, which is always here, makes eight bits of colours in sixteen."""
    import imagecodecs

    if data.startswith(PNG):
        found: npt.NDArray[Any] = imagecodecs.png_decode(data)
        return found
    if data.rfind(_ENDS) < data.rfind(_VOXELS):  # neither is among voxels, and a picture within has its own before
        raise ValueError("it breaks off")
    voxels: npt.NDArray[Any] = imagecodecs.jpeg8_decode(data)
    if voxels.ndim == 3 and voxels.shape[2] == 4:
        raise InputError(f"{path} is a JPEG in CMYK, colours for a printer; save it as RGB")
    return voxels


_VOXELS, _ENDS = b"\xff\xda", b"\xff\xd9"
"""Markers of a JPEG: of the scan and the end, ISO 10918-1, table B.1."""


_EXIF, _ORIENTATION = b"Exif\0\0", 274
"""Exif 2.32, 4.7.2.1 and 4.6.5: how a segment begins, which is among the first and has 64 KiB at most; the tag."""


def is_shown_turned(data: bytes) -> bool:
    """Whether a JPEG asks whoever shows it to turn or mirror it."""
    from PIL.Image import Exif

    start = data.find(_EXIF, 0, 2**17)
    if not data.startswith(JPEG) or start < 0:
        return False
    found = Exif()
    try:
        found.load(data[start : start + 2**16])
        return found.get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # whatever else a camera writes there
        return False


def stream(file: BinaryIO) -> BinaryIO:
    """The numbers of an opened picture, row by row."""
    return io.BytesIO(decoded(file.name, file.read()).tobytes())
