"""A pass over a finished volume, and the one driver of all passes: it looks at boxes, reduces what it found to
something small, and writes boxes by that.

What was found of a box is kept beside what the pass writes, and a box counts as written by a marker after its data. So
a pass that was killed goes on where it was, in this process or on a cluster, and its result is the same: what a pass
finds and writes depends on voxels alone.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, product
from math import prod
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from numcodecs import Zstd

from unet_engine.errors import DataError, writing
from unet_engine.output.header import Header
from unet_engine.output.journal import Journal
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index
from unet_engine.storage.durability import WHENEVER

Array = npt.NDArray[Any]
Found = Mapping[str, Array]
"""What is found of one box: arrays by name, none of objects."""
T = TypeVar("T")


@dataclass(frozen=True)
class Boxes:
    """All boxes of a volume of `shape`: whole blocks but for the last along each axis."""

    shape: tuple[int, ...]
    block: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Boxes along each axis."""
        return tuple(-(-n // b) for n, b in zip(self.shape, self.block, strict=True))

    @property
    def number(self) -> int:
        return prod(self.counts)

    def __iter__(self) -> Iterator[tuple[Index, Box]]:
        """In C order of their indices."""
        for index in product(*map(range, self.counts)):
            yield index, self.at(index)

    def at(self, index: Index) -> Box:
        lo = tuple(i * b for i, b in zip(index, self.block, strict=True))
        return Box(lo, tuple(min(l + b, n) for l, b, n in zip(lo, self.block, self.shape, strict=True)))


class Parts(Protocol):
    """What a pass knows once all boxes were looked at."""

    def of(self, index: Index) -> Any:
        """As far as it is needed to write box `index`; small, and goes to workers."""


class Pass(Protocol):
    """Goes to workers as it is: small, and opens what it reads by itself. Methods may be called anywhere, again and at
    the same time. Boxes follow the spatial axes z, y, x, in voxels."""

    @property
    def boxes(self) -> Boxes: ...

    def look(self, index: Index, box: Box) -> Found:
        """What there is in one box. Raises `DataError` where it cannot be read."""

    def changed(self, box: Box, since: float) -> str | None:
        """What that `look` reads of the box was changed after `since` (seconds since the epoch), as people are told;
        None where nothing was, or nothing tells."""

    def reduce(self, found: Iterable[tuple[Index, Found]]) -> Any:
        """What all boxes come to, given in index order; `Parts` where the pass writes boxes."""


class WritingPass(Pass, Protocol):
    """A pass that writes boxes of an array."""

    def values(self, index: Index, box: Box, part: Any) -> Array:
        """The voxels of `box`, by what `Parts.of` says of it."""


class Crew(Protocol):
    """Who does a pass: this process, or a cluster."""

    def each(self, do: Callable[[T], None], items: Iterable[T]) -> None:
        """Do it for all items, at the same time as far as possible, few of them under way at once. The first error ends
        it; what is done stays done."""


class Steps(Generic[T]):
    """What a crew is to do, counted as it is done: None in `items` for each that was done earlier."""

    def __init__(self, what: str, total: int, items: Iterable[T | None]) -> None:
        """what: is done with boxes, as people are told; total: of items."""
        self.what, self.total, self._items = what, total, items
        self.count: Callable[[int], None] = lambda _: None
        self._done = 0

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            if item is None:
                self.one_done()
            else:
                yield item

    def one_done(self) -> None:
        self._done += 1
        self.count(self._done)


def one_done(items: Iterable[Any]) -> None:
    """A crew has done one of `items`; said by the thread that iterates."""
    if isinstance(items, Steps):
        items.one_done()


class Watched:
    """A crew whose steps are told as they go: `begun` hears of what, and how many there are, and takes their count."""

    def __init__(self, crew: Crew, begun: Callable[[str, int], Callable[[int], None]]) -> None:
        self._crew, self._begun = crew, begun

    def each(self, do: Callable[[T], None], items: Iterable[T]) -> None:
        if isinstance(items, Steps):
            items.count = self._begun(items.what, items.total)
        self._crew.each(do, items)


class Alone:
    """This process, one after the other."""

    def each(self, do: Callable[[T], None], items: Iterable[T]) -> None:
        for item in items:
            do(item)
            one_done(items)


ALONE: Crew = Alone()


class Target(Protocol):
    """An array that boxes are written to; goes to workers as it is."""

    def put(self, index: Index, box: Box, values: Array) -> None:
        """Write a box, and mark it once its data are there."""


@dataclass(frozen=True)
class Keep:
    """Where a pass keeps what it finds: the journal of the output at `path`, or of a folder that is to become one.

    The disk is not waited for. What a power cut spoils is seen by its checksum, and looked for again.
    """

    path: str
    digest: str

    @cached_property
    def journal(self) -> Journal:
        return Header(self.path, self.digest, WHENEVER).journal

    def since(self) -> float:
        """When the pass first began, in seconds since the epoch."""
        with writing(self.path, "noting when it began"):
            noted = self.journal.get(_BEGUN)
            if noted is None:
                self.journal.put(_BEGUN, noted := repr(time.time()).encode())
        try:
            return float(noted)
        except ValueError:  # a power cut spoiled it
            return 0.0

    def put(self, index: Index, found: Found) -> None:
        with writing(self.path, "keeping what was found"):
            self.journal.put(_name(index), packed(found))

    def there(self) -> set[str]:
        with writing(self.path, "looking for what was found"):
            return {name for name in self.journal.names() if name.startswith(LOOK)}

    def got(self, indices: Sequence[Index]) -> list[Found | None]:
        """What is kept of boxes; None where that is nothing, or not whole."""
        with writing(self.path, "reading what was found"):
            return [unpacked(data) for data in self.journal.contents([_name(index) for index in indices])]


LOOK = "look."
_BEGUN = "begun"
AT_ONCE = 32
"""Boxes whose finds are read at once."""


def _name(index: Index) -> str:
    return LOOK + ".".join(map(str, index))


def packed(found: Found) -> bytes:
    """Arrays as bytes with a checksum; the same arrays are the same bytes."""
    facts = {name: [array.dtype.str, list(array.shape)] for name, array in found.items()}
    head = json.dumps(facts).encode()
    body = b"".join(
        [len(head).to_bytes(4, "little"), head, *(np.ascontiguousarray(a).tobytes() for a in found.values())]
    )
    data = bytes(Zstd(level=1).encode(body))
    return zlib.crc32(data).to_bytes(4, "little") + data


def unpacked(data: bytes) -> Found | None:
    """What `packed` made; None where that is not whole."""
    if len(data) < 4 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        return None
    body = bytes(Zstd().decode(data[4:]))
    at = 4 + int.from_bytes(body[:4], "little")
    found = {}
    for name, (dtype, shape) in json.loads(body[4:at]).items():
        size = prod(shape)
        found[name] = np.frombuffer(body, dtype, size, at).reshape(shape)
        at += size * np.dtype(dtype).itemsize
    return found


@dataclass(frozen=True)
class _Look:
    work: Pass
    keep: Keep

    def __call__(self, item: tuple[Index, Box]) -> None:
        self.keep.put(item[0], self.work.look(*item))


@dataclass(frozen=True)
class _Write:
    work: WritingPass
    target: Target

    def __call__(self, item: tuple[Index, Box, Any]) -> None:
        index, box, part = item
        self.target.put(index, box, self.work.values(index, box, part))


def known_of(work: Pass, keep: Keep, crew: Crew) -> Any:
    """What `work` comes to: its boxes looked at as far as that was not done yet, and reduced."""
    since, there = keep.since(), keep.there()
    left = ((i, box) if _name(i) not in there or work.changed(box, since) else None for i, box in work.boxes)
    crew.each(_Look(work, keep), Steps("read", work.boxes.number, left))
    return work.reduce(_found(work, keep))


def refuse_changed(work: Pass, since: float) -> None:
    """Raises `DataError` where something that `work` has read was changed after `since`."""
    for _, box in work.boxes:
        if what := work.changed(box, since):
            raise DataError(f"{what} was changed while it was read; run again once nothing writes to it")


def _found(work: Pass, keep: Keep) -> Iterator[tuple[Index, Found]]:
    boxes = iter(work.boxes)
    while some := list(islice(boxes, AT_ONCE)):
        for (index, box), kept in zip(some, keep.got([index for index, _ in some]), strict=True):
            if kept is not None:
                yield index, kept
                continue
            again = work.look(index, box)  # a power cut spoiled it
            keep.put(index, again)
            yield index, again


def write_boxes(work: WritingPass, parts: Parts, target: Target, crew: Crew, pending: Callable[[Index], bool]) -> None:
    """Have all boxes written that are `pending`."""
    items = ((index, box, parts.of(index)) if pending(index) else None for index, box in work.boxes)
    crew.each(_Write(work, target), Steps("written", work.boxes.number, items))


def digest(identity: Mapping[str, Any]) -> str:
    """Names a pass: sixteen hex digits over all that decides its bytes."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


VOXELS = 2**24
"""Of a block, at most: larger ones gain nothing."""


def block_of(shape: Sequence[int], chunk: Sequence[int], voxels: int = VOXELS) -> tuple[int, ...]:
    """A block of whole chunks of about `voxels` voxels, as long along all axes as can be; one chunk at the least."""
    block = [min(c, n) for c, n in zip(chunk, shape, strict=True)]
    growing = set(range(len(block)))
    while growing:
        a = min(growing, key=lambda i: (block[i], i))
        larger = min(block[a] + chunk[a], shape[a])
        if block[a] >= shape[a] or prod(block) // block[a] * larger > voxels:
            growing.remove(a)
        else:
            block[a] = larger
    return tuple(-(-b // c) * c for b, c in zip(block, chunk, strict=True))
