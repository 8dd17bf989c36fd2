"""A volume in pieces that are read one after the other, where all of it is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from unet_engine.plan.box import Box
from unet_engine.volumes.base import Volume

PIECE = 2**21
"""Voxels that are read at once, about."""


def pieces(volume: Volume, box: Box) -> Iterator[Box]:
    """`box` in pieces of whole chunks."""
    size = [min(c, n) for c, n in zip(volume.chunks, volume.shape, strict=True)]
    for a in reversed(range(len(size))):
        more = max(1, PIECE // prod(size))
        size[a] = min(-(-volume.shape[a] // size[a]), more) * size[a]
    yield from box.cells(tuple(size))
