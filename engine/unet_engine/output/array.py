"""The array of an output: what its metadata must be, and what they are. The header keeps them as they were written, so
that whoever reads or goes on with the output knows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import MemoryStore, StorePath

from unet_engine.output.layout import Layout
from unet_engine.storage import stores
from unet_engine.storage.codecs import own_codecs
from unet_engine.storage.durability import Durability

METADATA = "zarr.json"
_FREE = ("attributes", "dimension_names")
"""What people may add or rename: it decides no voxel."""


def metadata_of(layout: Layout) -> dict[str, Any]:
    """The metadata of a new array, as JSON values."""
    channel = layout.channels is not None
    shape = ((layout.channels,) if layout.channels is not None else ()) + layout.in_stored_order(layout.shape)
    chunks = ((1,) if channel else ()) + layout.in_stored_order(layout.chunk)
    return described(shape, chunks, layout.dtype, (["c"] if channel else []) + list(layout.stored))


def described(
    shape: Sequence[int], chunks: Sequence[int], dtype: Any, names: Sequence[str], fill_value: Any = 0
) -> dict[str, Any]:
    """The metadata of a new array with axes called `names`, in chunks no longer than it, as JSON values."""
    with own_codecs():
        array = zarr.create_array(
            MemoryStore(),
            zarr_format=3,
            shape=tuple(shape),
            chunks=tuple(map(min, chunks, shape)),
            dtype=dtype,
            compressors=zarr.codecs.ZstdCodec(level=1),
            fill_value=fill_value,
            dimension_names=list(names),
        )
    return _document(array.metadata.to_buffer_dict(default_buffer_prototype())[METADATA].to_bytes())


def make(place: StorePath, metadata: Mapping[str, Any], durability: Durability) -> None:
    """Store the metadata of an array at `place`, unless somebody did before."""
    stores.write_new(place / METADATA, _text(metadata), durability)


def restore(place: StorePath, metadata: Mapping[str, Any], durability: Durability) -> None:
    """Store the metadata of the array at `place` instead of what is there."""
    stores.write(place / METADATA, _text(metadata), durability)


def exists(place: StorePath) -> bool:
    return stores.read(place / METADATA) is not None


def difference(place: StorePath, metadata: Mapping[str, Any]) -> str | None:
    """What people are told of how the metadata of the array at `place` differ from `metadata`; None where chunks are
    stored and read alike."""
    found = stores.read(place / METADATA)
    if found is None:
        return "are gone"
    try:
        now = ArrayV3Metadata.from_dict(_document(found)).to_dict()
    except Exception:  # whatever it is, it is no array of ours
        return "cannot be read"
    wanted = ArrayV3Metadata.from_dict(dict(metadata)).to_dict()
    other = [key for key in wanted if key not in _FREE and now.get(key) != wanted[key]]
    return f"say another {other[0]} than it was made with" if other else None


def _text(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, indent=2).encode()


def _document(text: bytes) -> dict[str, Any]:
    return dict(json.loads(text))
