"""Blosc chunks say how long they are. Some writers leave more bytes behind one, of others bytes are missing.

zarr's own codec does not compare the two: it reads past the end of a chunk that was cut short, and what it finds there
are voxels. `check` refuses such a chunk. The native codec refuses both kinds.
"""

from __future__ import annotations

import numcodecs
import zarr
from zarr.codecs import BloscCodec

HEADER = 16
"""Bytes. Of them the last four are the length of the whole chunk, and bytes 4 to 8 that of what is packed in it, both
little endian."""


def is_blosc(array: zarr.Array) -> bool:
    """Whether each stored chunk of `array` is one of Blosc, from its first byte to its last."""
    metadata = array.metadata
    if metadata.zarr_format == 2:
        return isinstance(metadata.compressor, numcodecs.Blosc)
    return isinstance(metadata.codecs[-1], BloscCodec)


def length(header: bytes) -> int:
    """How long the chunk that begins with `header` says it is. Raises `ValueError` where that is no whole header."""
    if len(header) < HEADER:
        raise ValueError(f"{len(header)} bytes are no Blosc chunk")
    return int.from_bytes(header[HEADER - 4 : HEADER], "little")


def check(chunk: memoryview) -> None:
    """Raises `ValueError` where a chunk, as it is stored, was cut short."""
    said = length(bytes(chunk[:HEADER]))
    if len(chunk) < said:
        raise ValueError(f"{len(chunk)} bytes of a Blosc chunk that says it has {said}")
