"""How often the chunks of a volume are read by a plan, and what has to be kept of them so that each is fetched once.

Blocks come in the order of their indices, so what a chunk is kept for is the next block, the next row of blocks, or the
next layer of them. Pure arithmetic on sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise, product
from math import ceil, prod
from operator import itemgetter

from unet_engine.plan.plan import Plan, read_span

MOST = 2**30
"""Bytes that are kept at most."""
SEVERAL = 1.3
"""How often a chunk is fetched in the mean at most, where nothing is to be kept beyond what a run takes for its
blocks."""


def reads_along(plan: Plan, a: int, lo: int, hi: int) -> list[tuple[int, int]]:
    """What blocks `lo` to `hi` of one column read along axis `a` of the volume, each in its turn."""
    axis, step = plan.axes[a], plan.block[a]
    core = plan.core_span(a, plan.edge(a, lo), plan.edge(a, hi))
    windows = axis.meeting(core.start, core.stop)
    found = []
    for begin in range(windows.start // step * step, windows.stop, step):
        first, last = max(windows.start, begin), min(windows.stop, begin + step) - 1
        span = read_span(axis, first, last, plan.padding)
        found.append(plan.image[a].reach(*span) if plan.image else span)  # what those voxels are made of
    return found


@dataclass(frozen=True)
class Fetching:
    """Per axis, in chunks: what each row of blocks reads, in order. Of one box of blocks."""

    spans: tuple[tuple[tuple[int, int], ...], ...]
    order: tuple[int, ...]
    """Axes, the one along which blocks go on last first."""
    columns: tuple[tuple[int, ...], ...] = ()
    """Per axis, which column each row of blocks belongs to: columns come one after the other. Empty: there is one."""

    @classmethod
    def of(cls, plan: Plan, chunks: Sequence[int]) -> Fetching:
        """chunks: their shape, on the grid of the volume"""
        along, columns = [], []
        for a, chunk in enumerate(chunks):
            spans = [span for box in plan.share for span in plan.column_spans(box)[a]]
            rows = [(n, read) for n, (lo, hi) in enumerate(spans) for read in reads_along(plan, a, lo, hi)]
            along.append(tuple((start // chunk, -(-stop // chunk)) for _, (start, stop) in rows))
            columns.append(tuple(n for n, _ in rows))
        return cls(tuple(along), tuple(plan.order), tuple(columns))

    @cached_property
    def rows(self) -> tuple[dict[int, list[int]], ...]:
        """Per axis, which rows of blocks read each chunk."""
        found: tuple[dict[int, list[int]], ...] = tuple({} for _ in self.spans)
        for rows, spans in zip(found, self.spans, strict=True):
            for row, (lo, hi) in enumerate(spans):
                for chunk in range(lo, hi):
                    rows.setdefault(chunk, []).append(row)
        return found

    def uses(self, chunk: Sequence[int]) -> int:
        """How often a chunk is read."""
        return prod(len(rows.get(i, ())) for rows, i in zip(self.rows, chunk, strict=True))

    def due(self, chunk: Sequence[int], use: int) -> int:
        """When a chunk is read for the time `use`, from 0, as the number of a block in their order."""
        rows = [found[i] for found, i in zip(self.rows, chunk, strict=True)]
        if any(columns[r[0]] != columns[r[-1]] for columns, r in zip(self._columns, rows, strict=True)):
            return sorted(map(self._moment, product(*rows)))[use]
        block = [0] * len(rows)
        for a in reversed(self.order):  # of one column: what goes on first is counted off first
            use, at = divmod(use, len(rows[a]))
            block[a] = rows[a][at]
        return self._moment(block)

    def _moment(self, block: Sequence[int]) -> int:
        """The number of a block, by its row along each axis: that of its column counts first."""
        number = 0
        for rows, row in zip(self._columns, block, strict=True):
            number = number * (rows[-1] + 1) + rows[row]
        for a in self.order:
            number = number * len(self.spans[a]) + block[a]
        return number

    @cached_property
    def _columns(self) -> tuple[tuple[int, ...], ...]:
        return self.columns or tuple((0,) * len(spans) for spans in self.spans)

    def _inside(self, a: int) -> list[list[tuple[int, int]]]:
        """What the rows of each column along an axis read."""
        return [
            [span for _, span in rows]
            for _, rows in groupby(zip(self._columns[a], self.spans[a], strict=True), itemgetter(0))
        ]

    @cached_property
    def _levels(self) -> list[tuple[int, float]]:
        """What has to be kept, in chunks, and how often a chunk is then fetched in the mean: first what is being read,
        then what the next block needs, then the next row of blocks, at last the next layer. In between it is so much
        less often as more is kept, since what is needed last goes first. What two columns read, both fetch."""
        often = [sum(map(len, self.rows[a].values())) / max(1, len(self.rows[a])) for a in self.order]
        longest = [max((hi - lo for lo, hi in self.spans[a]), default=0) for a in self.order]
        columns = [self._inside(a) for a in self.order]
        wholes = [[len({i for span in rows for i in range(*span)}) for rows in found] for found in columns]
        whole = [max(found, default=0) for found in wholes]
        again = [sum(found) / max(1, len(self.rows[a])) for a, found in zip(self.order, wholes, strict=True)]
        shared = [
            max((max(0, h - l) for rows in found for (_, h), (l, _) in pairwise(rows)), default=0) for found in columns
        ]
        kept = prod(longest)
        levels = [(kept, prod(often))]
        for n in range(len(often) - 1, -1, -1):
            kept += prod(longest[:n]) * shared[n] * prod(whole[n + 1 :])
            levels.append((kept, prod(often[:n]) * prod(again[n:])))
        return levels

    def wanted(self, chunk_bytes: int, most: int = MOST) -> int:
        """Bytes to keep, of `most`, chunks being no longer than they are unpacked: more would spare nothing."""
        return min(most, self._levels[-1][0] * chunk_bytes)

    def enough(self, chunk_bytes: int, factor: float = SEVERAL) -> int:
        """Bytes to keep so that a chunk is fetched `factor` times in the mean."""
        if self._levels[0][1] <= factor:
            return 0
        for (less, more_often), (more, less_often) in pairwise(self._levels):
            if less_often <= factor:
                part = (more_often - factor) / (more_often - less_often)
                return ceil((less + part * (more - less)) * chunk_bytes)
        return self.wanted(chunk_bytes)

    def factor(self, kept: int, chunk_bytes: int) -> float:
        """How often a chunk is fetched in the mean, where `kept` bytes are kept."""
        chunks = kept / chunk_bytes
        for (less, more_often), (more, less_often) in reversed(list(pairwise(self._levels))):
            if chunks >= more:
                return less_often
            if chunks > less:
                return more_often - (more_often - less_often) * (chunks - less) / (more - less)
        return self._levels[0][1]
