"""How often the chunks of a volume are read by a plan, and what has to be kept of them so that each is fetched once.

Blocks come in the order of their indices, so what a chunk is kept for is the next block, the next row of blocks, or the
next layer of them; and where they come tube by tube, the next tube. Pure arithmetic on sizes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress, groupby, pairwise, product
from math import inf, prod
from operator import itemgetter
from typing import TypeVar

from unet_engine.plan.plan import Plan, read_span

T = TypeVar("T")

MOST = 2**30
"""Bytes that are kept at most."""
SEVERAL = 1.3
"""How often a chunk is fetched in the mean at most, where nothing is to be kept beyond what a run takes for its
blocks."""


def reads_along(plan: Plan, a: int, lo: int, hi: int) -> list[tuple[int, int]]:
    """What blocks `lo` to `hi` of one column read along axis `a` of the volume, each in its turn."""
    return [span for _, span in rows_along(plan, a, lo, hi)]


def rows_along(plan: Plan, a: int, lo: int, hi: int) -> list[tuple[int, tuple[int, int]]]:
    """The same with the block that reads it: those below `lo` whose windows reach in come first."""
    axis, step = plan.axes[a], plan.block[a]
    core = plan.core_span(a, plan.edge(a, lo), plan.edge(a, hi))
    windows = axis.meeting(core.start, core.stop)
    found = []
    for begin in range(windows.start // step * step, windows.stop, step):
        first, last = max(windows.start, begin), min(windows.stop, begin + step) - 1
        span = read_span(axis, first, last, plan.padding)
        # what those voxels are made of
        found.append((begin // step, plan.image[a].reach(*span) if plan.image else span))
    return found


@dataclass(frozen=True)
class Fetching:
    """Per axis, in chunks: what each row of blocks reads, in order. Of one box of blocks."""

    spans: tuple[tuple[tuple[int, int], ...], ...]
    order: tuple[int, ...]
    """Axes, the one along which blocks go on last first."""
    columns: tuple[tuple[int, ...], ...] = ()
    """Per axis, which column each row of blocks belongs to: columns come one after the other. Empty: there is one."""
    tubes: tuple[tuple[int, ...], ...] = ()
    """Per axis, which tube: so do tubes inside a column. Empty: there is one."""
    blocks: tuple[tuple[int, ...], ...] = ()
    """Per axis, which block each row is, where that is known."""
    axes: tuple[int, ...] = ()
    """Per axis, which of a chunk's it is; empty: they are in order."""
    abreast: bool = False
    """Whether columns go on at the same time, so that blocks in the same place of theirs come together."""
    shared: bool = False
    """Whether others read, too, so that a chunk may be read less often than is said here."""

    @classmethod
    def of(cls, plan: Plan, chunks: Sequence[int], begins: Sequence[int] = ()) -> Fetching:
        """chunks: their shape, on the grid of the volume; begins: per axis, how far before it the first one begins."""
        along, columns, blocks = [], [], []
        for a, (chunk, before) in enumerate(zip(chunks, begins or (0,) * len(chunks), strict=True)):
            spans = [span for box in plan.share for span in plan.column_spans(box)[a]]
            rows = [(n, *row) for n, (lo, hi) in enumerate(spans) for row in rows_along(plan, a, lo, hi)]
            along.append(
                tuple(((start + before) // chunk, -(-(stop + before) // chunk)) for _, _, (start, stop) in rows)
            )
            columns.append(tuple(n for n, _, _ in rows))
            blocks.append(tuple(j for _, j, _ in rows))
        whole = cls(tuple(along), tuple(plan.order), tuple(columns), blocks=tuple(blocks))
        return whole.in_tubes(plan.walls) if plan.walls else whole

    def in_tubes(self, walls: Sequence[Sequence[int]]) -> Fetching:
        """The same tube by tube; walls: per axis, the blocks at which tubes part."""
        parted = zip(self.blocks, walls, strict=True)
        return replace(self, tubes=tuple(tuple(bisect_right(at, j) for j in blocks) for blocks, at in parted))

    def turned(self, order: Sequence[int], backwards: Sequence[int]) -> Fetching:
        """The same by the chunks of a volume whose axis ``order[a]`` is the axis `a` here; of one that runs backwards,
        how many chunks it has, else 0."""
        mirrored = [
            tuple((n - hi, n - lo) for lo, hi in spans) if n else spans
            for spans, n in zip(self.spans, self._seen(backwards), strict=True)
        ]
        return replace(self, spans=tuple(mirrored), axes=tuple(self._seen(order)))

    def only(self, a: int, which: Sequence[bool]) -> Fetching:
        """What some of the rows of blocks along axis `a` read, where others are left to other workers, which may take
        one of these, too."""

        def kept(along: tuple[tuple[T, ...], ...]) -> tuple[tuple[T, ...], ...]:
            return tuple(tuple(compress(rows, which)) if b == a else rows for b, rows in enumerate(along))

        return replace(
            self, spans=kept(self.spans), columns=kept(self.columns), tubes=kept(self.tubes), blocks=kept(self.blocks),
            shared=True,
        )  # fmt: skip

    def moved(self, by: Sequence[int]) -> Fetching:
        """The same by the chunks of a volume that begins so many chunks earlier."""
        moved = zip(self.spans, self._seen(by), strict=True)
        return replace(self, spans=tuple(tuple((lo + n, hi + n) for lo, hi in spans) for spans, n in moved))

    @cached_property
    def rows(self) -> tuple[dict[int, list[int]], ...]:
        """Per axis, which rows of blocks read each chunk."""
        found: tuple[dict[int, list[int]], ...] = tuple({} for _ in self.spans)
        for rows, spans in zip(found, self.spans, strict=True):
            for row, (lo, hi) in enumerate(spans):
                for chunk in range(lo, hi):
                    rows.setdefault(chunk, []).append(row)
        return found

    def by_each(self, workers: int) -> float:
        """How often a chunk is fetched at most, in the mean, where so many workers fetch it once each that read it:
        which worker gets a block is not known before."""
        along = [Counter(map(len, rows.values())).items() for rows in self.rows]
        each = ([prod(found) for found in zip(*axes, strict=True)] for axes in product(*along))
        found: int = sum(count * min(workers, uses) for uses, count in each)
        return found / max(1, self.chunks)

    def uses(self, chunk: Sequence[int]) -> int:
        """How often a chunk is read."""
        return prod(len(rows.get(i, ())) for rows, i in zip(self.rows, self._seen(chunk), strict=True))

    def _seen(self, chunk: Sequence[int]) -> Sequence[int]:
        return [chunk[a] for a in self.axes] if self.axes else chunk

    def due(self, chunk: Sequence[int], use: int) -> int:
        """When a chunk is read for the time `use`, from 0, as the number of a block in their order."""
        rows = [found[i] for found, i in zip(self.rows, self._seen(chunk), strict=True)]
        if any(parts[r[0]] != parts[r[-1]] for parts, r in zip(self._parts, rows, strict=True)):
            return sorted(map(self._moment, product(*rows)))[use]
        block = [0] * len(rows)
        for a in reversed(self.order):  # of one tube: what goes on first is counted off first
            use, at = divmod(use, len(rows[a]))
            block[a] = rows[a][at]
        return self._moment(block)

    def now(self, chunks: Sequence[Sequence[int]], left: Mapping[tuple[int, ...], int]) -> int:
        """When the block is read that reads `chunks` together, some of which others may have read before; `left`: how
        often some are to be read, this time included."""
        moments = [0]
        for chunk in map(tuple, chunks):
            uses = self.uses(chunk)
            if (still := left.get(chunk, uses)) > 0:
                moments.append(self.due(chunk, uses - still))
        return max(moments)

    def in_order(self) -> list[tuple[int, ...]]:
        """Blocks in the order in which they read, as rows along each axis."""
        return sorted(product(*(range(len(spans)) for spans in self.spans)), key=self._moment)

    def _moment(self, block: Sequence[int]) -> int:
        """The number of a block, by its row along each axis: that of its column counts first, then that of its tube."""
        number = 0
        for a, among, parts in self._digits:
            number = number * among + parts[block[a]]
        return number

    @cached_property
    def _digits(self) -> list[tuple[int, int, Sequence[int]]]:
        """What numbers of blocks are made of, the highest digit first: axis, how many there are, that of each row.
        Where there is one column or tube alone, it is none."""
        columns = [] if self.abreast else [(a, self._columns[a]) for a in range(len(self.spans))]
        found: list[tuple[int, Sequence[int]]] = [
            *columns,
            *((a, self._tubes[a]) for a in self.order),
            *((a, self._places(a) if self.abreast else range(len(self.spans[a]))) for a in self.order),
        ]
        counted = [(a, max(parts, default=0) + 1, parts) for a, parts in found]
        return [digit for digit in counted if digit[1] > 1]

    def _places(self, a: int) -> list[int]:
        """Of each row of blocks along axis `a`, its number in its column."""
        return [at - self._columns[a].index(column) for at, column in enumerate(self._columns[a])]

    @cached_property
    def _columns(self) -> tuple[tuple[int, ...], ...]:
        return self.columns or tuple((0,) * len(spans) for spans in self.spans)

    @cached_property
    def _tubes(self) -> tuple[tuple[int, ...], ...]:
        return self.tubes or tuple((0,) * len(spans) for spans in self.spans)

    @cached_property
    def _parts(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Per axis, of each row the column and the tube."""
        return tuple(tuple(zip(*both, strict=True)) for both in zip(self._columns, self._tubes, strict=True))

    @cached_property
    def chunks(self) -> int:
        """Chunks that are read at all."""
        return prod(map(len, self.rows))

    @cached_property
    def _along(self) -> list[list[_Along]]:
        """What there is to know of the tubes along each axis, from the slowest axis to the fastest."""
        return [
            [_Along.of([span for _, span in rows])
             for _, rows in groupby(zip(self._parts[a], self.spans[a], strict=True), itemgetter(0))]
            for a in self.order
        ]  # fmt: skip

    @property
    def _in_one_column(self) -> bool:
        return all(columns[0] == columns[-1] for columns in self._columns if columns)

    def fetches(self, kept: float) -> float:
        """Chunks that are fetched where so many are kept, what is being read included. No less than are needed, as
        those that are kept of a layer may be the same in all of it: what goes last is better by a few hundredths.

        What the next block needs is kept first, then what the next row does, the next layer, the next tube, as far as
        there is room beside the most that the ones before take.
        """
        found, most = 0.0, 0
        for tube in product(*self._along):
            inside, taken = _inside(tube, kept)
            found, most = found + inside, max(most, taken)
        return found - (self._walls(kept - most) if self._in_one_column else 0.0)

    def _walls(self, room: float) -> float:
        """Chunks at walls between tubes that are fetched once less, as there is room to keep them for the next tube."""
        spared = 0.0
        for a in reversed(range(len(self.order))):
            shared = [max(0, one.stop - other.start) for one, other in pairwise(self._along[a])]
            across = prod(sum(t.whole for t in along) - sum(max(0, one.stop - other.start) for one, other in pairwise(along))
                          for along in self._along[a + 1 :])  # fmt: skip
            for outer in product(*self._along[:a]):
                face = prod(tube.whole for tube in outer) * across
                spared += sum(min(thick * face, max(0.0, room)) for thick in shared)
            room -= (
                max(shared, default=0)
                * prod(max((t.whole for t in along), default=0) for along in self._along[:a])
                * across
            )
        return spared

    def again(self, kept: float) -> tuple[int, float]:
        """Where what was read last is kept, whatever is read next: how many chunks, of `kept` at most, it takes to spare
        as much as it can, and how often a chunk is then read in the mean.

        Between a block and the next one along an axis lies what both read along it, of all of the axes that go faster
        and of one block along those that go slower. Where that is not kept to its end, nothing of it is."""
        found, most = 0, 0
        for tube in product(*self._along):
            read, taken = 1, min(int(kept), prod(along.longest for along in tube))
            for a, along in enumerate(tube):
                needed = prod(t.longest for t in tube[:a]) * along.beside * prod(t.whole for t in tube[a + 1 :])
                spared = needed <= kept
                read *= along.whole if spared else along.read
                taken = max(taken, needed if spared and along.read > along.whole else 0)
            found, most = found + read, max(most, taken)
        return most, found / max(1, self.chunks)

    def steps(self) -> list[int]:
        """Numbers of chunks from which on keeping those that were read last spares more, the least first; see `again`."""
        found = set[int]()
        for tube in product(*self._along):
            for a, along in enumerate(tube):
                if along.read > along.whole:
                    found.add(prod(t.longest for t in tube[:a]) * along.beside * prod(t.whole for t in tube[a + 1 :]))
        return sorted(found)

    @cached_property
    def _needed(self) -> int:
        """Chunks to keep so that more would spare nothing."""
        most = max((_inside(tube, inf)[1] for tube in product(*self._along)), default=0)
        if not self._in_one_column:
            return most
        for a in reversed(range(len(self.order))):
            thick = max((max(0, one.stop - other.start) for one, other in pairwise(self._along[a])), default=0)
            most += (
                thick
                * prod(max((t.whole for t in along), default=0) for along in self._along[:a])
                * prod(len(self.rows[b]) for b in self.order[a + 1 :])
            )
        return most

    def wanted(self, chunk_bytes: int, most: int = MOST) -> int:
        """Bytes to keep, of `most`, chunks being no longer than they are unpacked: more would spare nothing."""
        return min(most, self._needed * chunk_bytes)

    def enough(self, chunk_bytes: int, factor: float = SEVERAL) -> int:
        """Bytes to keep so that a chunk is fetched `factor` times in the mean; where columns have it fetched more often
        whatever is kept, as many as spare anything."""
        if self.factor(0, chunk_bytes) <= factor:
            return 0
        less, more = 0, self._needed
        while more - less > 1:
            middle = (less + more) // 2
            less, more = (less, middle) if self.fetches(middle) <= factor * self.chunks else (middle, more)
        return more * chunk_bytes

    def factor(self, kept: int, chunk_bytes: float) -> float:
        """How often a chunk is fetched in the mean, where `kept` bytes are kept."""
        return self.fetches(kept / chunk_bytes) / max(1, self.chunks)


@dataclass(frozen=True)
class _Along:
    """Along one axis of one tube, in chunks."""

    start: int
    stop: int
    longest: int
    """What a row of blocks reads at most."""
    beside: int
    """What two rows read together that come one after the other, at most."""
    read: int
    """What all of them read, each for itself."""
    whole: int
    """What they read together."""
    shared: tuple[int, ...]
    """What each row reads again of what the one before it read."""

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int]]) -> _Along:
        lengths, shared = [hi - lo for lo, hi in rows], [max(0, hi - lo) for (_, hi), (lo, _) in pairwise(rows)]
        beside = max([hi - lo for (lo, _), (_, hi) in pairwise(rows)], default=max(lengths))
        whole = sum(lengths) - sum(shared)
        return cls(rows[0][0], rows[-1][1], max(lengths), beside, sum(lengths), whole, tuple(shared))


def _inside(tube: Sequence[_Along], kept: float) -> tuple[float, int]:
    """Chunks that one tube fetches where so many are kept, and how many could be; axes from the slowest."""
    found, taken = float(prod(along.whole for along in tube)), prod(along.longest for along in tube)
    for a in reversed(range(len(tube))):
        across = prod(along.whole for along in tube[a + 1 :])
        beside, layers = (
            (prod(one) for one in zip(*((t.longest, t.read) for t in tube[:a]), strict=True)) if a else (1, 1)
        )
        for thick in tube[a].shared:
            needed = beside * thick * across
            missing = max(0.0, needed - max(0.0, kept - taken))
            found += missing / max(1, needed) * thick * across * layers
        taken += beside * max(tube[a].shared, default=0) * across
    return found, taken
