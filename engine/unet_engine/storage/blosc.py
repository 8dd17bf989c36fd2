"""Blosc chunks say how long they are. Some writers leave more bytes behind one, of others bytes are missing.

zarr's own codec does not compare the two: it reads past the end of a chunk that was cut short, and what it finds there
are voxels. `checked` has it refuse such a chunk. The native codec refuses both kinds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numcodecs
import zarr
from zarr.abc.codec import Codec
from zarr.codecs import BloscCodec, ShardingCodec

_HEADER = 16
"""Bytes. The last four of them are the length of the whole chunk, little endian."""


class _Blosc(numcodecs.Blosc):  # type: ignore[misc]
    """Blosc of Zarr v2, that refuses a chunk that was cut short."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        _check(buf)
        return super().decode(buf, out)


class _BloscCodec(BloscCodec):  # type: ignore[misc]
    """The same of Zarr v3."""

    async def decode(self, chunks_and_specs: Iterable[tuple[Any, Any]]) -> Iterable[Any]:
        chunks = list(chunks_and_specs)
        for stored, _ in chunks:
            if stored is not None:
                _check(stored.as_numpy_array())
        decoded: Iterable[Any] = await super().decode(chunks)
        return decoded


def checked(array: zarr.Array) -> zarr.Array:
    """`array`, opened with zarr's own codecs: a Blosc chunk of it that was cut short raises `ValueError`."""
    metadata = array.metadata
    if metadata.zarr_format == 2:
        if not isinstance(metadata.compressor, numcodecs.Blosc):
            return array
        options = {k: v for k, v in metadata.compressor.get_config().items() if k != "id"}
        metadata = replace(metadata, compressor=_Blosc(**options))
    else:
        codecs = _checked(metadata.codecs)
        if codecs == tuple(metadata.codecs):
            return array
        metadata = replace(metadata, codecs=codecs)
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path, config=array.async_array.config))


def _checked(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    return tuple(map(_checked_codec, codecs))


def _checked_codec(codec: Codec) -> Codec:
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=_checked(codec.codecs))
    return _BloscCodec.from_dict(codec.to_dict()) if isinstance(codec, BloscCodec) else codec


def is_blosc(array: zarr.Array) -> bool:
    """Whether each stored chunk of `array` is one of Blosc, from its first byte to its last."""
    metadata = array.metadata
    if metadata.zarr_format == 2:
        return isinstance(metadata.compressor, numcodecs.Blosc)
    return isinstance(metadata.codecs[-1], BloscCodec)


def length(header: bytes) -> int:
    """How long the chunk that begins with `header` says it is. Raises `ValueError` where that is no whole header."""
    if len(header) < _HEADER:
        raise ValueError(f"{len(header)} bytes are no Blosc chunk")
    return int.from_bytes(header[_HEADER - 4 : _HEADER], "little")


def _check(chunk: Any) -> None:
    stored = memoryview(chunk).cast("B")
    said = length(bytes(stored[:_HEADER]))
    if len(stored) < said:
        raise ValueError(f"{len(stored)} bytes of a Blosc chunk that says it has {said}")
