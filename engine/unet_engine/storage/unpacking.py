"""How much a chunk unpacks to: what it says itself, and unpacking that ends where it becomes more than that may be.

A chunk of a kilobyte may unpack to gigabytes, and codecs would do that. How large a chunk is follows from the metadata
of its array, so nothing larger need ever be in memory.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from unet_engine.storage import blosc
from unet_engine.units import size as in_words

HEAD = 32
"""Bytes at the beginning of a chunk that tell how much it unpacks to, where any do."""
TAIL = 4
"""The same for its end."""
DEFLATED = 1032
"""How many times longer than its deflated form anything can be: what the format allows."""
HARMLESS = 2**26
"""Bytes that may be unpacked in vain."""

_PIECE = 2**20
_ZSTD, _GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08"
_ZSTD_BLOCK = 2**17
"""The most that one block of Zstandard unpacks to."""


class Packing(Protocol):
    """A codec of numcodecs."""

    codec_id: str

    def decode(self, buf: Any, out: Any = None) -> Any: ...


def longest(size: int) -> int:
    """The most bytes that a codec inside a chunk of `size` bytes may hold: none makes data twice as long."""
    return 2 * size + 2**16


def too_much(size: int, of: int) -> ValueError:
    """The error for what unpacks to `size` bytes where there are `of`."""
    return ValueError(f"it unpacks to {in_words(size)}, and a chunk of this array to {in_words(of)}")


def too_much_at_least(size: int, of: int) -> ValueError:
    """The same for what unpacks to more than `size` bytes."""
    return ValueError(f"it unpacks to more than {in_words(size)}, and a chunk of this array to {in_words(of)}")


def said(codec: str, head: bytes, tail: bytes = b"") -> int | None:
    """How many bytes a packed chunk says it unpacks to, from its first `HEAD` and last `TAIL` bytes; None where it does
    not say that, or where others may follow. What these codecs unpack is that or an error.

    Blosc and LZ4: a field of the header. Zstandard: RFC 8878, 3.1.1. gzip: RFC 1952, 2.3.1.
    """
    if codec == "blosc" and len(head) >= blosc.HEADER:
        return int.from_bytes(head[4:8], "little")
    if codec == "lz4" and len(head) >= 4:
        return int.from_bytes(head[:4], "little")
    if codec == "zstd":
        return _said_by_zstd(head)[0]
    if codec == "gzip" and head.startswith(_GZIP) and len(tail) == TAIL:
        return int.from_bytes(tail, "little")
    return None


def _said_by_zstd(head: bytes) -> tuple[int | None, int]:
    """The size that a frame of Zstandard names, and how long its header is; no size and 0 where it is no frame."""
    if not head.startswith(_ZSTD) or len(head) < 6:
        return None, 0
    flags = head[4]
    single = flags >> 5 & 1
    at = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    if not width or len(head) < at + width:
        return None, at + width
    return int.from_bytes(head[at : at + width], "little") + 256 * (width == 2), at + width


def unpacked(codec: Packing, packed: Any, size: int) -> Any:
    """What `codec` unpacks of a chunk that should be `size` bytes then. Raises `ValueError` where that is far more,
    before it is in memory; any other length is for the caller to notice."""
    kind, limit = codec.codec_id, longest(size)
    data: memoryview = np.frombuffer(packed, np.uint8).data
    if kind == "blosc":
        blosc.check(data)
    if kind in _STREAMS:
        return _streamed(codec, data, limit, size)
    claimed = said(kind, bytes(data[:HEAD]))
    if claimed is not None and claimed > limit:
        raise too_much(claimed, size)
    if kind == "zstd" and claimed is None and _most_of_zstd(data) > limit + HARMLESS:
        return codec.decode(packed, np.empty(size, np.uint8))  # refuses what does not fit
    return codec.decode(packed)


_STREAMS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda _: zlib.decompressobj(31),
    "zlib": lambda _: zlib.decompressobj(),
    "bz2": lambda _: bz2.BZ2Decompressor(),
    "lzma": lambda codec: lzma.LZMADecompressor(codec.format, filters=codec.filters),
}
"""Codecs that say nothing that could be believed, and unpack as much as is asked for."""


def _streamed(codec: Packing, data: memoryview, limit: int, size: int) -> bytes:
    """What follows a stream is taken as the codecs take it: another stream, but of zlib; zeros behind those of gzip;
    anything behind those of bz2 and LZMA."""
    found: list[bytes] = []
    left, room = bytes(data), limit + 1
    while left or not found:
        stream = _STREAMS[codec.codec_id](codec)
        try:
            found.append(stream.decompress(left, room))
        except (OSError, lzma.LZMAError):
            if found:
                break
            raise
        room -= len(found[-1])
        if room <= 0:
            raise too_much_at_least(limit, size)
        if not stream.eof:
            raise ValueError("it breaks off")
        left = {"gzip": stream.unused_data.lstrip(b"\0"), "zlib": b""}.get(codec.codec_id, stream.unused_data)
    return b"".join(found)


def inflates_beyond(pieces: Iterable[bytes], bits: int, most: int) -> bool:
    """Whether a deflated stream, whose packed bytes come in `pieces`, unpacks to more than `most` bytes; `bits` say
    with which header, as zlib counts. 1 MiB of it is in memory at once. Damaged ones do not."""
    stream = zlib.decompressobj(bits)
    try:
        for piece in pieces:
            left = piece
            while left and not stream.eof:
                most -= len(stream.decompress(left, _PIECE))
                left = stream.unconsumed_tail
                if most < 0:
                    return True
    except zlib.error:
        pass
    return False


def _most_of_zstd(data: memoryview) -> int:
    """What a frame of Zstandard of no said size unpacks to at most: the sum over its blocks (RFC 8878, 3.1.1.2)."""
    at, most = _said_by_zstd(bytes(data[:HEAD]))[1], 0
    last = at == 0
    while not last and at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, length = bool(header & 1), header >> 1 & 3, header >> 3
        most += length if kind in (0, 1) else _ZSTD_BLOCK
        at += 3 + (1 if kind == 1 else length)
    return most
