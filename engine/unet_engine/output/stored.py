"""What a marker says of the chunks that it stands for: how long each is, and its checksum."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from unet_engine.plan.plan import Index

UNTOLD = b"done\n"
"""A marker that says nothing of its chunks, as older versions wrote them."""


@dataclass(frozen=True)
class Stored:
    """The chunks of one block. Tuples per axis are in stored order, with the channels."""

    lo: tuple[int, ...]
    """The first of them in the array's grid of chunks."""
    shape: tuple[int, ...]
    """How many there are along each axis."""
    lengths: tuple[int, ...]
    """Bytes of each, the last axis fastest; 0 for one of nothing but the fill value, which is not stored."""
    checksums: tuple[int, ...]
    """CRC-32 of each; 0 for one that is not stored."""

    def chunks(self) -> Iterator[tuple[int, ...]]:
        """Where they are in the grid, in the order of `lengths`."""
        for offset in np.ndindex(self.shape):
            yield tuple(l + o for l, o in zip(self.lo, offset, strict=True))

    def encoded(self, index: Index) -> bytes:
        """The content of the marker of block `index`."""
        facts = {"block": index, "from": self.lo, "chunks": self.shape, "bytes": self.lengths, "crc32": self.checksums}
        return json.dumps(facts, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decoded(cls, index: Index, marker: bytes) -> Stored | None:
        """What the `marker` of block `index` says; None for one that says nothing. Raises `ValueError` where it is none
        of that block."""
        if marker == UNTOLD:
            return None
        try:
            facts = json.loads(marker)
            block, lo, shape, lengths, checksums = (
                _numbers(facts[key]) for key in ("block", "from", "chunks", "bytes", "crc32")
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError("its marker is not readable") from None
        if block != index:
            raise ValueError(f"its marker is that of block {block}")
        if len(lo) != len(shape) or not prod(shape) == len(lengths) == len(checksums):
            raise ValueError("its marker is not readable")
        return cls(lo, shape, lengths, checksums)


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 2**63 for v in values):
        raise ValueError
    return tuple(values)


def grid(target: tuple[slice, ...], shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """First chunk and number of chunks, per axis, of a part of an array that begins and ends where chunks or it do."""
    spans = [t.indices(n) for t, n in zip(target, shape, strict=True)]
    lo = tuple(start // c for (start, _, _), c in zip(spans, chunks, strict=True))
    return lo, tuple(-(-stop // c) - l for (_, stop, _), l, c in zip(spans, lo, chunks, strict=True))
