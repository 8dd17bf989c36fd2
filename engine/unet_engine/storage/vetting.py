"""Stored chunks of a local disk, looked at before the native codecs see them.

Those codecs unpack whatever a chunk holds, take what is too long for what they asked for, and end the whole process
over some indices of shards. What they are given is therefore certain to unpack to a chunk; the rest is left to zarr's
own codecs, which can be bounded (`storage/bounded.py`). It is one `stat` and one small read for a chunk.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec

from unet_engine.paths import check_file
from unet_engine.storage import shards
from unet_engine.storage.bounded import WIDEST, name_of
from unet_engine.storage.unpacking import DEFLATED, HARMLESS, HEAD, TAIL, longest, said, too_much
from unet_engine.units import size as in_words

Span = tuple[int, int]
KEPT = 64
"""Indices of shards that are remembered."""
_CHECKSUM = 4
"""Bytes of a CRC-32C."""
_SAME_SIZE = frozenset({"shuffle"})
"""Filters of Zarr v2 that change no size."""


@dataclass(frozen=True)
class Form:
    """How a chunk is stored."""

    shape: tuple[int, ...]
    size: int | None
    """Bytes of it that are packed; None where that is not known."""
    codec: str | None
    """What it is packed with, as numcodecs calls it; empty where with nothing, None where with several or others."""
    behind: int = 0
    """Bytes of checksums behind it."""
    inner: Form | None = None
    """How the chunks in it are stored, of a shard."""
    index_behind: bool = True
    """Whether the index of a shard lies behind its chunks."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks of a shard along each axis."""
        return tuple(n // c for n, c in zip(self.shape, self.inner.shape if self.inner else self.shape, strict=True))


class Vetting:
    """Of the chunks of one array."""

    def __init__(self, array: zarr.Array) -> None:
        metadata = array.metadata
        self._itemsize = np.dtype(array.dtype).itemsize
        units = tuple(array.shards or array.chunks)
        self._form = (
            _form_v2(metadata, units, self._itemsize)
            if metadata.zarr_format == 2
            else _form_v3(metadata.codecs, units, self._itemsize)
        )
        self._most = 16 * prod(units) * max(self._itemsize, WIDEST) + HARMLESS
        """Bytes that no stored chunk of this array has."""
        self._indices: OrderedDict[str, tuple[tuple[int, ...], npt.NDArray[np.uint64]]] = OrderedDict()

    def check(self, place: str) -> os.stat_result:
        """Raises `OSError` where no file lies at `place`, and `ValueError` where it is far too long for a chunk."""
        found = check_file(place)
        if found.st_size > self._most:
            raise ValueError(f"it has {in_words(found.st_size)}, far more than a chunk of this array takes")
        return found

    def certain(self, place: str, part: Sequence[Span]) -> bool:
        """Whether the stored chunk at `place` unpacks to a chunk, as far as it lies in `part` (a span per axis).

        Raises what `check` raises, and `ValueError` where it is certain that it does not.
        """
        found = self.check(place)
        descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            return self._certain(_Stored(descriptor, 0, found.st_size), self._form, part, (place, stamp))
        finally:
            os.close(descriptor)

    def _certain(
        self, stored: _Stored, form: Form, part: Sequence[Span], name: tuple[str, tuple[int, ...]] | None
    ) -> bool:
        if form.inner:
            return self._certain_shard(stored, form, part, name)
        if form.codec is None or form.size is None:
            return False
        length = stored.length - form.behind
        if not form.codec:
            return length == form.size
        head = stored.read(0, min(HEAD, max(length, 0)))
        if form.codec == "gzip":
            return _certain_gzip(length, head, stored.read(max(length - TAIL, 0), TAIL), form.size)
        claimed = said(form.codec, head)
        if claimed is not None and claimed != form.size:
            raise too_much(claimed, form.size)
        return claimed is not None

    def _certain_shard(
        self, shard: _Stored, form: Form, part: Sequence[Span], name: tuple[str, tuple[int, ...]] | None
    ) -> bool:
        inner = form.inner
        if inner is None or form.codec is None:
            return False
        index = self._index(shard, form, name)
        ranges = [range(lo // c, -(-hi // c)) for (lo, hi), c in zip(part, inner.shape, strict=True)]
        spans = [
            [(max(lo - i * c, 0), min(hi - i * c, c)) for i in along]
            for (lo, hi), along, c in zip(part, ranges, inner.shape, strict=True)
        ]
        for at, within in zip(product(*ranges), product(*spans), strict=True):
            offset, length = map(int, index[at])
            if offset == shards.ABSENT:
                continue
            if not self._certain(_Stored(shard.descriptor, shard.start + offset, length), inner, within, None):
                return False
        return True

    def _index(self, shard: _Stored, form: Form, name: tuple[str, tuple[int, ...]] | None) -> npt.NDArray[np.uint64]:
        if name and (known := self._indices.get(name[0])) and known[0] == name[1]:
            return known[1]
        numbers = 2 * prod(form.grid)
        behind, length = form.behind, 8 * numbers + form.behind
        if shard.length < length:
            raise shards.too_short(shard.length, length)
        stored = shard.read(shard.length - length if form.index_behind else 0, length)
        if behind and google_crc32c.value(stored[:-behind]) != int.from_bytes(stored[-behind:], "little"):
            raise ValueError("the index of its shard does not have the checksum that it should")
        index = np.frombuffer(stored, "<u8", numbers).astype(np.uint64).reshape(*form.grid, 2)
        shards.check(index, shard.length - (length if form.index_behind else 0))
        if name:
            self._indices[name[0]] = (name[1], index)
            if len(self._indices) > KEPT:
                self._indices.popitem(last=False)
        return index


@dataclass(frozen=True)
class _Stored:
    """A stretch of an open file."""

    descriptor: int
    start: int
    length: int

    def read(self, at: int, length: int) -> bytes:
        return os.pread(self.descriptor, length, self.start + at)


def _certain_gzip(length: int, head: bytes, tail: bytes, size: int) -> bool:
    """The length at the end may be a lie, or that of the last of several streams: what that could cost must be
    little."""
    return said("gzip", head, tail) == size and length * DEFLATED <= HARMLESS + longest(size)


def _form_v2(metadata: Any, shape: tuple[int, ...], itemsize: int) -> Form:
    codec = metadata.compressor.codec_id if metadata.compressor else ""
    known = all(codec.codec_id in _SAME_SIZE for codec in metadata.filters or ())
    return Form(shape, prod(shape) * itemsize if known else None, codec)


def _form_v3(codecs: Sequence[Any], shape: tuple[int, ...], itemsize: int) -> Form:
    codecs = list(codecs)
    before = 0
    while not isinstance(codecs[before], BytesCodec | ShardingCodec) and before < len(codecs) - 1:
        before += 1
    first, packing = codecs[before], codecs[before + 1 :]
    behind = 0
    while packing and isinstance(packing[-1], Crc32cCodec):
        packing.pop()
        behind += _CHECKSUM
    if isinstance(first, ShardingCodec):
        # behind a transposition spans would be those of other axes
        known = len(codecs) == 1 and _is_plain_index(first)
        inner = _form_v3(first.codecs, tuple(first.chunk_shape), itemsize)
        checksum = _CHECKSUM * (len(first.index_codecs) - 1)
        return Form(shape, None, "" if known else None, checksum, inner, first.index_location.value == "end")
    known = isinstance(first, BytesCodec) and all(isinstance(codec, TransposeCodec) for codec in codecs[:before])
    codec = "" if not packing else name_of(packing[0]) if len(packing) == 1 else None
    return Form(shape, prod(shape) * itemsize if known else None, codec, behind)


def _is_plain_index(codec: ShardingCodec) -> bool:
    """Whether the index of a shard is numbers in little endian, and maybe their checksum."""
    first, *others = codec.index_codecs
    little = isinstance(first, BytesCodec) and getattr(first.endian, "value", None) == "little"
    return little and (not others or (len(others) == 1 and isinstance(others[0], Crc32cCodec)))
