"""The index of a shard says where in it each chunk lies. Codecs believe it: some then end the whole process, others
read what is somewhere else, or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ABSENT = 2**64 - 1
"""Offset and length of a chunk that is not stored (Zarr v3, sharding codec)."""
BIGGEST = 2**62


def check(index: npt.NDArray[Any], end: int | None = None) -> None:
    """Raises `ValueError` where an index says what cannot be.

    index: offset and length of each chunk, (…, 2), uint64; end: where the shard ends, in bytes, where that is known
    """
    offsets, lengths = index[..., 0].ravel(), index[..., 1].ravel()
    absent = (offsets == ABSENT) & (lengths == ABSENT)
    offsets, lengths = offsets[~absent], lengths[~absent]
    if not offsets.size:
        return
    # no sum of two of these overflows
    if int(offsets.max()) >= BIGGEST or int(lengths.max()) >= BIGGEST:
        raise ValueError("the index of its shard names a place that no file has")
    if not lengths.all():
        raise ValueError("the index of its shard names a chunk of no bytes")
    ends = offsets + lengths
    if end is not None and int(ends.max()) > end:
        raise ValueError(f"the index of its shard names bytes {int(ends.max()):,} of {end:,}")
    order = np.lexsort((lengths, offsets))
    first, last = offsets[order], ends[order]
    again = (first[1:] == first[:-1]) & (last[1:] == last[:-1])  # equal chunks may be stored once
    if ((first[1:] < last[:-1]) & ~again).any():
        raise ValueError("the index of its shard names places that overlap")


def too_short(length: int, index: int) -> ValueError:
    """The error for a shard of `length` bytes, whose index has `index`."""
    return ValueError(f"its shard has {length:,} bytes, and the index of one {index:,}")
