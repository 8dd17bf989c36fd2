"""zarr's own codecs, made to end where a chunk unpacks to more than it may, or its shard says what cannot be."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec, Codec
from zarr.abc.store import RangeByteRequest
from zarr.codecs import ShardingCodec
from zarr.core.buffer.cpu import as_numpy_array_wrapper

from unet_engine.storage import guarded, shards
from unet_engine.storage.unpacking import unpacked

WIDEST = 16
"""Bytes of the largest number that a filter of Zarr v2 makes of another."""


def bounded(array: zarr.Array) -> zarr.Array:
    """`array`, opened with zarr's own codecs: what of it unpacks to far more than a chunk raises `ValueError`, as does
    a Blosc chunk that was cut short, and a shard whose index says what cannot be."""
    metadata = array.metadata
    if metadata.zarr_format == 2:
        size = prod(metadata.chunks) * (WIDEST if metadata.filters else metadata.dtype.to_native_dtype().itemsize)
        metadata = replace(
            metadata,
            compressor=metadata.compressor and _Bounded(metadata.compressor, size),
            filters=metadata.filters and tuple(_Bounded(codec, size) for codec in metadata.filters),
        )
    else:
        metadata = replace(metadata, codecs=_bounded(metadata.codecs))
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path, config=array.async_array.config))


class _Bounded(numcodecs.abc.Codec):  # type: ignore[misc]
    """A codec of Zarr v2 for chunks of `size` bytes."""

    codec_id = "bounded"

    def __init__(self, codec: Any, size: int) -> None:
        self.codec_id, self._codec, self._size = codec.codec_id, codec, size

    def encode(self, buf: Any) -> Any:
        return self._codec.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        if self.codec_id in PACKINGS:
            return unpacked(self._codec, buf, self._size)
        return self._codec.decode(buf, out) if self.codec_id in SIZED else guarded.decoded(self._codec, buf, self._size)

    def get_config(self) -> dict[str, Any]:
        return dict(self._codec.get_config())


PACKINGS = frozenset({"blosc", "zstd", "lz4", "gzip", "zlib", "bz2", "lzma"})
"""Codecs that unpack, and that can be kept from unpacking too much."""
SIZED = frozenset({
    "adler32", "astype", "base64", "bitround", "crc32", "crc32c", "delta", "fixedscaleoffset", "fletcher32",
    "jenkins_lookup3", "packbits", "quantize", "shuffle",
    "bytes", "endian", "transpose", "vlen-bytes", "vlen-utf8",
})  # fmt: skip
"""Those whose output is as large as their input, or a few times so at most. All others run in `guarded` processes."""


def _bounded(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    return tuple(map(_bounded_codec, codecs))


def _bounded_codec(codec: Codec) -> Codec:
    if isinstance(codec, ShardingCodec):
        return _Sharding(
            chunk_shape=codec.chunk_shape,
            codecs=_bounded(codec.codecs),
            index_codecs=codec.index_codecs,
            index_location=codec.index_location,
        )
    if name_of(codec) in SIZED or isinstance(codec, ArrayArrayCodec):
        return codec
    found = copy.copy(codec)
    make = _made_within if name_of(codec) in PACKINGS else _made_guarded
    object.__setattr__(found, "__class__", _class_of(type(codec), make))
    return found


def name_of(codec: Codec) -> str:
    """What a codec of Zarr v3 is called by numcodecs."""
    return str(codec.to_dict()["name"]).removeprefix("numcodecs.")


def _class_of(kind: Any, make: Callable[[Any], Any]) -> Any:
    """The class of codecs `kind`, of such as unpack no more than they may."""
    if kind not in _CLASSES:
        _CLASSES[kind] = make(kind)
    return _CLASSES[kind]


_CLASSES: dict[Any, Any] = {}


def _plain(codec: Any, kind: Any) -> Any:
    """The same of the class `kind` itself, which other processes know."""
    found = object.__new__(kind)
    vars(found).update(vars(codec))
    return found


def _made_guarded(kind: Any) -> Any:

    class Guarded(kind):  # type: ignore[misc]
        def __reduce__(self) -> tuple[Any, ...]:
            return _bounded_codec, (_plain(self, kind),)

        def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            getattr(self, "_codec", None)  # raises where it is not installed, which is told by name
            codec, prototype = _plain(self, kind), chunk_spec.prototype
            size = prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
            known = guarded.OfZarr3(codec, chunk_spec, name_of(codec))
            found = guarded.decoded(known, np.frombuffer(chunk_bytes.to_bytes(), np.uint8), size)
            if isinstance(codec, BytesBytesCodec):
                return prototype.buffer.from_array_like(found.view("b"))
            return prototype.nd_buffer.from_ndarray_like(found.reshape(chunk_spec.shape))

        async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    return Guarded


def _made_within(kind: Any) -> Any:

    class Within(kind):  # type: ignore[misc]
        def __reduce__(self) -> tuple[Any, ...]:
            return _bounded_codec, (_plain(self, kind),)

        def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            size = prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
            codec = _numcodec(self)
            return as_numpy_array_wrapper(lambda data: unpacked(codec, data, size), chunk_bytes, chunk_spec.prototype)

        async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
            return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    return Within


def _numcodec(codec: Any) -> Any:
    """What a codec of Zarr v3 has unpack for it."""
    for name in ("_codec", "_gzip_codec", "_zstd_codec", "_blosc_codec"):
        if found := getattr(codec, name, None):
            return found
    raise TypeError(f"{name_of(codec)} is made of another version of zarr")


class _Sharding(ShardingCodec):  # type: ignore[misc]
    """Shards whose index is looked at before it is believed."""

    async def _decode_single(self, shard_bytes: Any, shard_spec: Any) -> Any:
        await self._load_full_shard_maybe(_Whole(shard_bytes), None, self._get_chunks_per_shard(shard_spec))
        return await super()._decode_single(shard_bytes, shard_spec)

    async def _decode_partial_single(self, byte_getter: Any, selection: Any, shard_spec: Any) -> Any:
        return await super()._decode_partial_single(_Exact(byte_getter), selection, shard_spec)

    async def _decode_shard_index(self, index_bytes: Any, chunks_per_shard: tuple[int, ...]) -> Any:
        wanted = self._shard_index_size(chunks_per_shard)
        if len(index_bytes) != wanted:
            raise shards.too_short(len(index_bytes), wanted)
        found = await super()._decode_shard_index(index_bytes, chunks_per_shard)
        shards.check(found.offsets_and_lengths)
        return found

    async def _load_full_shard_maybe(self, byte_getter: Any, prototype: Any, chunks_per_shard: tuple[int, ...]) -> Any:
        data = await byte_getter.get(prototype=prototype)
        if data is None:
            return None
        found = await super()._load_full_shard_maybe(_Whole(data), prototype, chunks_per_shard)
        if found is None:
            raise shards.too_short(0, self._shard_index_size(chunks_per_shard))
        behind = self._shard_index_size(chunks_per_shard) if self.index_location.value == "end" else 0
        shards.check(found.index.offsets_and_lengths, len(data) - behind)
        return found


class _Whole:
    """Bytes that are there already, for who asks for them."""

    def __init__(self, data: Any) -> None:
        self._data = data

    async def get(self, prototype: Any, byte_range: Any = None) -> Any:
        return self._data


class _Exact:
    """Gets bytes, and takes fewer than were asked for as an error: they would be read as something else."""

    def __init__(self, getter: Any) -> None:
        self._getter = getter

    async def get(self, prototype: Any, byte_range: Any = None) -> Any:
        found = await self._getter.get(prototype=prototype, byte_range=byte_range)
        if isinstance(byte_range, RangeByteRequest) and found is not None:
            wanted = byte_range.end - byte_range.start
            if len(found) != wanted:
                raise ValueError(f"its shard ends {wanted - len(found):,} bytes before the chunk does")
        return found
