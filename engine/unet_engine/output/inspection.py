"""Is what the markers stand for still there, as it was written?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain, islice

from unet_engine.output.chunks import NO_FILE, Chunk, Chunks
from unet_engine.output.journal import Journal
from unet_engine.output.stored import Stored
from unet_engine.plan.plan import Index

BLOCKS = 256
"""Looked at in one go, so that a remote store is asked for many chunks at once."""


class Look(Enum):
    """How closely committed blocks are looked at."""

    LENGTHS = "whether every chunk is there, and as long as it was"
    CONTENT = "the bytes of every chunk, too"


@dataclass(frozen=True)
class Fault:
    """A block with a marker that is not as it was written."""

    index: Index
    what: str
    chunks: tuple[Chunk, ...] = ()
    """What lies where nothing should, or is no chunk."""


def in_words(path: str, faults: Sequence[Fault]) -> str:
    """What people are told of faults, which are some."""
    many = "1 block of {} is" if len(faults) == 1 else f"{len(faults):,} blocks of {{}} are"
    first = f"block {faults[0].index}: {faults[0].what}"
    return f"{many.format(path)} not as written ({first if len(faults) == 1 else 'the first is ' + first})"


def inspect(
    journal: Journal,
    chunks: Chunks,
    blocks: Iterable[Index],
    look: Look,
    span: Callable[[Index], tuple[Chunk, tuple[int, ...]]] | None = None,
) -> Iterator[Fault]:
    """What is wrong with `blocks`, all of which have markers.

    Markers of older versions say nothing of their chunks: they are believed, but not where contents are to be compared.
    span: where the chunks of a block lie, where that is known, see `Chunks.span`
    """
    for some in _batched(blocks, BLOCKS):
        told: list[tuple[Index, Stored]] = []
        for index, marker in zip(some, journal.markers(some), strict=True):
            try:
                stored = Stored.decoded(index, marker)
            except ValueError as error:
                yield Fault(index, str(error))
                continue
            if stored is None:
                if look is Look.CONTENT:
                    yield Fault(index, "its marker is of an older version and has no checksums")
            elif span and span(index) != (stored.lo, stored.shape):
                yield Fault(index, "its marker is of chunks that are not the block's")
            else:
                told.append((index, stored))
        yield from _faults(chunks, told, look)


def _faults(chunks: Chunks, told: Sequence[tuple[Index, Stored]], look: Look) -> Iterator[Fault]:
    lengths = iter(chunks.lengths([chunk for _, stored in told for chunk in stored.chunks()]))
    whole: list[tuple[Index, Stored]] = []
    for index, stored in told:
        found = [(chunk, n, next(lengths)) for chunk, n in zip(stored.chunks(), stored.lengths, strict=True)]
        wrong = [(chunk, n, now) for chunk, n, now in found if n != now]
        if wrong:
            in_the_way = tuple(chunk for chunk, n, now in wrong if now == NO_FILE or n == 0)
            yield Fault(index, _said(chunks, *wrong[0]), in_the_way)
        else:
            whole.append((index, stored))
    if look is Look.CONTENT:
        yield from _changed(chunks, whole)


def _changed(chunks: Chunks, told: Sequence[tuple[Index, Stored]]) -> Iterator[Fault]:
    """Blocks whose chunks are as long as they should be, and have other contents."""
    present = [[chunk for chunk, n in zip(s.chunks(), s.lengths, strict=True) if n] for _, s in told]
    sums = iter(chunks.checksums(list(chain.from_iterable(present))))
    for (index, stored), here in zip(told, present, strict=True):
        wanted = [s for s, n in zip(stored.checksums, stored.lengths, strict=True) if n]
        wrong = [chunk for chunk, before in zip(here, wanted, strict=True) if next(sums) != before]
        if wrong:
            yield Fault(index, f"chunk {chunks.key(wrong[0])} has other contents than were written")


def _said(chunks: Chunks, chunk: Chunk, before: int, now: int) -> str:
    name = chunks.key(chunk)
    if now == NO_FILE:
        return f"chunk {name} is empty or no file"
    if now == 0:
        return f"chunk {name} is gone"
    return f"chunk {name} has {now:,} bytes and not {before:,}" if before else f"chunk {name} should not be there"


def _batched(blocks: Iterable[Index], size: int) -> Iterator[tuple[Index, ...]]:
    left = iter(blocks)
    while some := tuple(islice(left, size)):
        yield some
