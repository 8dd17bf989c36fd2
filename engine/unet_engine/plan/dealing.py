"""Dealing: which worker of a cluster gets which blocks of a volume behind a network, so that what neighbours share of it
is fetched by one of them. Pure: no Dask, no voxels.

Each worker has a share of every column: a part of each row of its blocks, the same from one end of the volume to the
other. Where rows cannot be parted evenly, the lower ones have walls further up.

    three workers, rows of 7 blocks     0 0 0 1 1 2 2        A block's share is no less than that of any block below it,
                                        0 0 1 1 1 2 2        along every axis: so each share may be a row ahead of the
                                        0 0 1 1 2 2 2        next one, and lower blocks still come first.

Bytes do not depend on who infers a block, so that whoever has nothing to do may take one of another share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.plan.plan import Column, Index, Plan
from unet_engine.plan.tubes import counted

AT_ONCE = 2
"""Bundles that a worker has to infer: the one in the network, and the one behind it."""


@dataclass(frozen=True)
class Dealing:
    """Shares of a plan's blocks for so many workers, see `dealing`."""

    plan: Plan
    workers: int
    place: int
    """Of the axis that rows are parted along, among the plan's axes from the slowest to the fastest."""

    @property
    def axis(self) -> int:
        return self.plan.order[self.place]

    @property
    def across(self) -> int:
        """The axis along which rows follow one another."""
        return self.plan.order[self.place - 1]

    def starts(self, span: tuple[int, int], row: int) -> list[int]:
        """Block indices at which shares begin but for the first, in a column of that span along `axis`, in the row of
        index `row` along `across`."""
        (lo, hi), first, end = span, self.plan.block_range.lo[self.across], self.plan.block_range.hi[self.across]
        rows, above = end - first, end - 1 - min(max(row, first), end - 1)
        # the length in proportion, and a part of a block that is more in lower rows, cut off: the mean is in proportion
        whole = 2 * rows * self.workers
        return [
            lo + ((hi - lo) * worker * 2 * rows + self.workers * (2 * above + 1)) // whole
            for worker in range(1, self.workers)
        ]

    def starts_in(self, column: Column, row: int) -> list[int]:
        return self.starts((column.blocks.lo[self.axis], column.blocks.hi[self.axis]), row)

    def share(self, column: Column, block: Index) -> int:
        """Whose a block is, from 0. Those of lower columns that reach in belong to the first one."""
        return bisect_right(self.starts_in(column, block[self.across]), block[self.axis])

    def steps(self, column: Column, length: int) -> Iterator[list[Box]]:
        """The blocks that a column looks at in the order in which they are dealt: boxes of them, of different shares,
        whose bundles of `length` blocks are dealt in turns."""
        blocks, apart = self.plan.looked_at(column), self._rows_apart(length)
        slower = self.plan.order[: self.place]
        rows = prod(blocks.shape[a] for a in slower)
        for step in range(rows + apart * (self.workers - 1)):
            shares = [share for share in range(self.workers) if 0 <= step - apart * share < rows]
            found = [self._part(column, blocks, step - apart * share, share) for share in shares]
            yield from [found] if apart else ([part] for part in found)

    def _part(self, column: Column, blocks: Box, number: int, share: int) -> Box:
        """The blocks of a share in the row of that number."""
        lo, hi = list(blocks.lo), list(blocks.hi)
        for a in reversed(self.plan.order[: self.place]):
            number, at = divmod(number, blocks.shape[a])
            lo[a], hi[a] = blocks.lo[a] + at, blocks.lo[a] + at + 1
        ends = [blocks.lo[self.axis], *self.starts_in(column, lo[self.across]), blocks.hi[self.axis]]
        lo[self.axis], hi[self.axis] = ends[share], ends[share + 1]
        return Box(tuple(lo), tuple(hi)) & blocks

    def _rows_apart(self, length: int) -> int:
        """Rows by which a share goes ahead of the next one: none, where that one's turn comes soon enough all the
        same."""
        first, *faster = (max(hi - lo for lo, hi in self._spans(a)) for a in self.plan.order[self.place :])
        along = [-(-first // self.workers), *faster]
        return int(prod(along[:-1]) * -(-along[-1] // length) > AT_ONCE)

    def _spans(self, a: int) -> list[tuple[int, int]]:
        return [span for box in self.plan.share for span in self.plan.column_spans(box)[a]]

    # --- what is fetched ---

    def reads(self, whole: Fetching, shares: tuple[int, int]) -> Fetching:
        """What blocks of these shares read, from the first to before the second, of what all do: no less, as walls lie
        where they do in the row in which the shares are widest."""
        ends = (self.plan.block_range.lo[self.across], self.plan.block_range.hi[self.across] - 1)
        return whole.only(
            self.axis,
            [any(shares[0] <= one < shares[1] for one in both)
             for both in zip(*(self._whose(whole, row) for row in ends), strict=True)],
        )  # fmt: skip

    def _whose(self, whole: Fetching, row: int) -> list[int]:
        """The share of each row of blocks along `axis`, where those across it are in the row `row`."""
        starts = [self.starts(span, row) for span in self._spans(self.axis)]
        return [
            bisect_right(starts[column], block)
            for column, block in zip(whole.columns[self.axis], whole.blocks[self.axis], strict=True)
        ]

    def fetches(self, whole: Fetching, kept: float) -> float:
        """How often a chunk is fetched in the mean where each worker has its share, and keeps so many of the chunks."""
        total = 0.0
        for share, chunks in enumerate(self._chunks_across(whole)):
            reads = self.reads(whole, (share, share + 1))
            widest = len(reads.rows[self.axis]) * len(reads.rows[self.across])
            total += counted(reads, kept) * reads.chunks * chunks / max(1, widest)
        return total / max(1, whole.chunks)

    def _chunks_across(self, whole: Fetching) -> list[int]:
        """For each share, the chunks that it reads in a plane through rows."""
        found: list[dict[int, int]] = [{} for _ in range(self.workers)]
        for (first, stop), row in zip(whole.spans[self.across], whole.blocks[self.across], strict=True):
            along = [0] * self.workers  # as bits
            for (lo, hi), share in zip(whole.spans[self.axis], self._whose(whole, row), strict=True):
                along[share] |= (1 << hi) - (1 << lo)
            for planes, bits in zip(found, along, strict=True):
                for chunk in range(first, stop):
                    planes[chunk] = planes.get(chunk, 0) | bits
        return [sum(bits.bit_count() for bits in planes.values()) for planes in found]


def dealing(plan: Plan, workers: int) -> Dealing | None:
    """Shares for so many workers, parts of rows along the fastest axis that has a block for each in every column; None
    where there is none, or one worker alone."""
    if workers < 2 or not plan.block_count or any(plan.walls):
        return None
    for place in range(len(plan.order) - 1, 0, -1):
        spans = (span for box in plan.share for span in plan.column_spans(box)[plan.order[place]])
        if min(hi - lo for lo, hi in spans) >= workers:
            return Dealing(plan, workers, place)
    return None
