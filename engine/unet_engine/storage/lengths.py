"""How long what a remote store keeps as a chunk may be: more is never asked for, and what comes all the same is an
error."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import WrapperStore

from unet_engine.storage.bounded import WIDEST
from unet_engine.storage.remote import is_metadata
from unet_engine.storage.unpacking import longest
from unet_engine.units import size as in_words

_PER_CHUNK = 2**10
"""Bytes that a chunk in a shard may take besides its voxels: its place in the index, headers, checksums."""


def longest_stored(array: zarr.Array) -> int:
    """Bytes that no stored chunk of `array`, or shard, has more than: codecs do not make data twice as long."""
    unit, metadata = prod(array.shards or array.chunks), array.metadata
    filters = metadata.zarr_format == 2 and metadata.filters
    inner = prod(array.shards) // prod(array.chunks) if array.shards else 1
    return longest(unit * (WIDEST if filters else np.dtype(array.dtype).itemsize)) + inner * _PER_CHUNK


class Lengths(WrapperStore[Any]):  # type: ignore[misc]
    """A store whose values, but for metadata, have `most` bytes at most."""

    def __init__(self, store: Any, most: int) -> None:
        super().__init__(store)
        self.most = most

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if is_metadata(key):
            return await self._store.get(key, prototype, byte_range)
        span, most = byte_range, self.most
        if byte_range is None:
            span = RangeByteRequest(0, self.most + 1)
        elif isinstance(byte_range, RangeByteRequest):
            most = byte_range.end - byte_range.start
        elif isinstance(byte_range, SuffixByteRequest):
            most = byte_range.suffix
        found = await self._store.get(key, prototype, span)
        if found is not None and len(found) > most:
            raise self._too_long(most)
        return found

    def _too_long(self, most: int) -> ValueError:
        return ValueError(f"it has more than {in_words(most)}, far more than a chunk of this array takes")

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Any]:
        return [await self.get(key, prototype, span) for key, span in key_ranges]
