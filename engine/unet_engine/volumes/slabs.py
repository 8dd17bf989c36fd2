"""Plain numbers that lie in several files, one after the other: which files a header means, and boxes of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.storage.plain_files import read_box
from unet_engine.units import brief
from unet_engine.volumes.base import Array, Selection
from unet_engine.volumes.files import FileVolume, Part
from unet_engine.volumes.linear import Linear

_MOST = 2**16
"""Files that one header may mean."""
_PATTERN = re.compile(r"(?P<name>(?:[^%]|%%)*%0?\d{0,3}[diu](?:[^%]|%%)*?)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(?:\s+(\d+))?")


def numbered(path: str, said: str) -> tuple[list[str], int | None] | None:
    """The names that ``slice%03d.raw 1 9 2`` means in the header at `path`, and the number of axes of each that may
    follow; None where `said` is no pattern. Raises `InputError` for one that means none, or far too many."""
    found = _PATTERN.fullmatch(said)
    if found is None:
        return None
    first, last, step = (int(found[k]) for k in (2, 3, 4))
    numbers = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    if not 0 < len(numbers) <= _MOST:
        raise InputError(
            f"{path} numbers its files {brief(said)}, which are none or too many ({_MOST} at most); correct first, last and step"
        )
    pattern = found["name"].replace("%i", "%d").replace("%u", "%d")
    return [pattern % number for number in numbers], int(found[5]) if found[5] else None


def cut_of(path: str, shape: Sequence[int], count: int, rank: int) -> int:
    """Along which axis of `shape` (the slowest first) `count` files follow one another, of which each has the `rank`
    fastest axes, or, where these are all, a part of the slowest. Raises `ValueError` where they cannot."""
    if not 1 <= rank <= len(shape):
        raise ValueError(f"{path}: its files cannot have {rank} of {len(shape)} axes")
    cut = max(0, len(shape) - rank - 1)
    steps = prod(shape[: cut + 1])
    if (steps != count) if rank < len(shape) else (not count or steps % count):
        raise ValueError(f"{count:,} files do not make up {steps:,} steps of its slowest axes")
    return cut


@dataclass(frozen=True, eq=False, kw_only=True)
class SlabsVolume(FileVolume):
    """Read anywhere: the numbers of each file follow, along one axis, those of the file before."""

    data: tuple[Part, ...]
    """The files with numbers, in order."""
    offset: int
    """Where they begin in each."""
    cut: int
    """The axis along which files follow one another, once those before it are counted through."""
    side: int
    """How many of it each has."""
    numbers: np.dtype[Any]
    """As they lie in the files."""
    linear: Linear

    def parts(self, box: Box) -> Iterable[Part]:
        spans = [range(*s.indices(n)) for s, n in zip(self._selection(box), self.stored_shape, strict=True)]
        return [self.data[number] for _, number, _, _ in self._meeting(spans)]

    def confirm(self) -> None:
        """The first and the last file stand for all: asked of every block, of thousands of files."""
        for part in (self.files[0], self.data[0], self.data[-1]):
            part.confirm(self.path)

    def stored(self, selection: Selection) -> Array:
        spans = [range(*part.indices(n)) for part, n in zip(selection, self.stored_shape, strict=True)]
        each = (self.side, *self.stored_shape[self.cut + 1 :])
        out = np.empty([len(span) for span in spans], self.numbers)
        for index, number, inside, place in self._meeting(spans):
            part = self.data[number]
            part.confirm(self.path)
            rest = [inside, *spans[self.cut + 1 :]]
            out[index][place] = read_box(part.path, self.offset, each, self.numbers, rest)
        return self.linear(out)

    def _meeting(self, spans: Sequence[range]) -> Iterable[tuple[tuple[int, ...], int, range, slice]]:
        """For each file that meets `spans`: where it goes along the axes before `cut`, its number, what of it is wanted
        along `cut`, and where that goes."""
        along, side = spans[self.cut], self.side
        per = self.stored_shape[self.cut] // side
        for index in itertools.product(*(enumerate(span) for span in spans[: self.cut])):
            before = 0
            for (_, i), n in zip(index, self.stored_shape, strict=False):
                before = before * n + i
            for slab in range(along.start // side, -(-along.stop // side)):
                lo, hi = max(along.start, slab * side), min(along.stop, (slab + 1) * side)
                place = slice(lo - along.start, hi - along.start)
                yield tuple(i for i, _ in index), before * per + slab, range(lo - slab * side, hi - slab * side), place
