"""A mask made of cells: boxes of some voxels that are inside or outside as a whole. Small enough to travel with a job
and to lie in an output's attributes."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.plan.box import Box
from unet_engine.profiling.recorder import PLAIN, Recorder
from unet_engine.volumes.resampled import AnyMask

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CellMask:
    """Boxes are in voxels of the grid of windows. May be read by any thread."""

    shape: tuple[int, ...]
    """Of the volume."""
    cell: tuple[int, ...]
    """Voxels of a cell; the last ones may stick out."""
    packed: bytes
    """Cells in C order, 1 for inside, eight to a byte, compressed by zlib."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (CellMask, (self.shape, self.cell, self.packed))  # not what was unpacked of it

    @classmethod
    def of(cls, inside: Array, shape: Sequence[int], cell: Sequence[int]) -> CellMask:
        """inside: (*cells) bool, as many along each axis as cover `shape`."""
        return cls(tuple(shape), tuple(cell), zlib.compress(np.packbits(inside).tobytes(), 9))

    @cached_property
    def inside(self) -> Array:
        """(*cells) bool."""
        counts = tuple(-(-n // c) for n, c in zip(self.shape, self.cell, strict=True))
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        return np.unpackbits(bits, count=prod(counts)).astype(bool).reshape(counts)

    @property
    def text(self) -> str:
        return base64.b64encode(self.packed).decode()

    @property
    def digest(self) -> str:
        """Of what it says, however that is compressed."""
        return hashlib.sha256(np.packbits(self.inside).tobytes()).hexdigest()

    @property
    def share(self) -> float:
        """Part of the volume's cells that are inside."""
        return float(self.inside.mean())

    def _over(self, box: Box) -> Array:
        """The cells that meet the box."""
        return self.inside[
            tuple(slice(lo // c, -(-hi // c)) for lo, hi, c in zip(box.lo, box.hi, self.cell, strict=True))
        ]

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        found = self._over(box)
        for a, (lo, hi, cell) in enumerate(zip(box.lo, box.hi, self.cell, strict=True)):
            found = found.take(np.arange(lo, hi) // cell - lo // cell, a)
        return found

    def may_hold(self, box: Box) -> bool:
        return bool(self._over(box).any())

    def changed(self, box: Box, since: float) -> str | None:
        return None

    def token(self, box: Box) -> tuple[str, str] | None:
        return None

    def confirm(self) -> None:
        """It is held in memory."""


@dataclass(frozen=True, eq=False)
class Both:
    """What two masks have in common."""

    first: AnyMask
    second: AnyMask

    def read(self, box: Box, recorder: Recorder = PLAIN) -> Array:
        inside: Array = (self.first.read(box, recorder) != 0) & (self.second.read(box, recorder) != 0)
        return inside

    def may_hold(self, box: Box) -> bool:
        return self.first.may_hold(box) and self.second.may_hold(box)

    def changed(self, box: Box, since: float) -> str | None:
        return self.first.changed(box, since) or self.second.changed(box, since)

    def token(self, box: Box) -> tuple[str, str] | None:
        return self.first.token(box) or self.second.token(box)

    def confirm(self) -> None:
        self.first.confirm()
        self.second.confirm()


def common(first: AnyMask | None, second: AnyMask | None) -> AnyMask | None:
    """What both have in common; None stands for all."""
    if first is None or second is None:
        return second if first is None else first
    return Both(first, second)


def parsed(text: str, shape: Sequence[int], cell: Sequence[int]) -> CellMask:
    """The mask of which `text` was made."""
    return CellMask(tuple(shape), tuple(cell), base64.b64decode(text))
