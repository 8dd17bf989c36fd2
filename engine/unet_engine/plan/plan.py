"""The plan: which windows are inferred, in which blocks they are summed, who writes what. A frozen value, no I/O, no
voxels.

Along one axis, with blocks of three windows and chunks of c voxels:

    windows      [====]                     block 0: windows 0, 1, 2        sums  s0 ------------|
                   [====]
                     [====]
                       [====]               block 1: windows 3, 4, 5        sums        s1 ------------|
                         [====]
                           [====]
    write boxes  |----- 0 ---|----- 1 ...   edge 1: start of window 3, rounded down to a chunk

A block's sums reach past its write box only upwards: that part is its halo. All a block's write box needs comes from
itself and from lower blocks, so it is final as soon as those were predicted. Which windows a task infers follows from
one rule alone: those whose support meets a write box that this run still has to write. Column seams, regions of
interest and resumes need no rule of their own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd, prod
from typing import Any

from unet_engine.plan import shares
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.resampling import AxisResampling

Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Unit of work: a contiguous range of window indices per axis. Boxes are in voxels of the grid of windows, which is
    the volume's unless it is resampled."""

    index: Index
    windows: Box
    """Window indices, per axis half-open."""
    sums: Box
    """Where its sums lie: the supports of its windows, and its core."""
    write: Box
    """What it alone writes: whole chunks of the output; may be empty for a block that only spills upwards. In voxels of
    the output, which may be on another grid than the windows."""
    core: Box
    """The sums that it writes are made of: the write box, or where that is on another grid what its voxels are
    interpolated from. Cores of neighbours then overlap by a voxel or two."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one run has to do for one block. `predict` infers `windows` in this order; `commit` follows where
    `commits`."""

    block: Block
    commits: bool
    windows: tuple[Index, ...]
    read: Box
    """The part of the volume the windows are cut from."""
    halos: tuple[tuple[Index, Box], ...]
    """Upper block that waits for a halo, and the box of it: sums here, core there."""


@dataclass(frozen=True, slots=True)
class Column:
    """A box of block indices whose blocks exchange halos. Columns share nothing: each infers the windows on its lower
    seams itself."""

    number: int
    blocks: Box


@dataclass(frozen=True)
class HostMemory:
    """Predicted peak, in bytes. `base` is the process with its libraries and the network loaded; the rest grows with
    the block."""

    base: int
    raw: int
    sums: int
    halos: int
    commit: int
    under_way: int = 1
    """Blocks whose last windows may still be in the network while the next one is begun (no bytes)."""

    @property
    def total(self) -> int:
        return self.base + self.raw + self.sums + self.halos + self.commit


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first voxel is read. Blocks, shares, columns and tasks are derived when
    asked for."""

    names: str
    """Spatial axes, e.g. ``zyx``; all tuples follow this order."""
    axes: tuple[AxisGrid, ...]
    roi: Box
    block: tuple[int, ...]
    """Windows per block."""
    chunk: tuple[int, ...]
    """Voxels per chunk of the output; the chunk grid starts at the ROI's origin, or at its end, see `backwards`."""
    cuts: tuple[tuple[int, ...], ...]
    """Per axis the block indices at which columns part, those of all boxes of the share together."""
    padding: str
    memory: HostMemory
    facts: Mapping[str, Any] = field(compare=False)
    """What else decides the bytes of the result, as JSON values; see `identity`. Empty as long as the run has no
    name."""
    flops_per_window: int | None = None
    part: tuple[int, int] = (1, 1)
    """Which of how many parts this run does, counted from 1; see `share`."""
    image: tuple[AxisResampling, ...] = ()
    """From the voxels of the volume to those that windows are cut from; empty where they are the same."""
    back: tuple[AxisResampling, ...] = ()
    """From those to the voxels of the output; empty where they are the same."""
    calls: int = 1
    """How often each window is inferred: in so many poses, by so many networks."""
    backwards: tuple[bool, ...] = ()
    """Per axis, whether the output is stored backwards along it, so that its first chunk is at the ROI's end. Empty:
    along none."""
    walls: tuple[tuple[int, ...], ...] = ()
    """Per axis the block indices at which tubes part: blocks of a column come tube by tube, so that what they share of
    a volume behind a network can be kept until it is read again. Changes no byte. Empty: there are none."""
    stream: tuple[int, ...] = ()
    """Axes from slowest to fastest in which blocks come, where that is chosen by what is unpacked for them, see `order`.
    Changes no byte."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the bytes of the result, as JSON values: a run is resumed only by one of the same
        identity."""
        return {**self.facts, "block": list(self.block)}

    @cached_property
    def digest(self) -> str:
        """Names the run: sixteen hex digits over `identity`. Memory, columns, parts and workers are not in it: they
        change no byte."""
        text = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # --- blocks ---

    @cached_property
    def window_range(self) -> Box:
        """Indices of the windows that meet the ROI."""
        return self.meeting(self.roi)

    def meeting(self, written: Box) -> Box:
        """Indices of the windows that a box of the output is made of."""
        core = self.core_of(written)
        return _box(axis.meeting(lo, hi) for axis, lo, hi in zip(self.axes, core.lo, core.hi, strict=True))

    def core_of(self, written: Box) -> Box:
        """The sums that a box of the output is made of."""
        return _box(self.core_span(a, lo, hi) for a, (lo, hi) in enumerate(zip(written.lo, written.hi, strict=True)))

    def core_span(self, axis: int, lo: int, hi: int) -> range:
        """The sums along `axis` that the voxels [lo, hi) of the output are made of."""
        return range(*self.back[axis].reach(lo, hi)) if self.back else range(lo, hi)

    @cached_property
    def block_range(self) -> Box:
        """Indices of the blocks of these windows. The block grid is anchored at the volume's origin, whatever the
        ROI."""
        return self._blocks_of(self.window_range)

    def _blocks_of(self, windows: Box) -> Box:
        return Box(
            tuple(k // b for k, b in zip(windows.lo, self.block, strict=True)),
            tuple(-(-k // b) for k, b in zip(windows.hi, self.block, strict=True)),
        )

    def edge(self, axis: int, j: int) -> int:
        """Where on `axis` the write box of block j begins and that of block j - 1 ends."""
        lo, hi = self.roi.lo[axis], self.roi.hi[axis]
        if j <= self.block_range.lo[axis]:
            return lo
        if j >= self.block_range.hi[axis]:
            return hi
        reached = self.axes[axis].support(j * self.block[axis])[0]
        if self.back:
            reached = self.back[axis].settled(reached)
        whole = (hi - lo) // self.chunk[axis] * self.chunk[axis]
        begin = hi - whole if self.backwards and self.backwards[axis] else lo
        return min(hi, max(lo, begin + (reached - begin) // self.chunk[axis] * self.chunk[axis]))

    def write_box(self, index: Index) -> Box:
        return Box(
            tuple(self.edge(a, j) for a, j in enumerate(index)),
            tuple(self.edge(a, j + 1) for a, j in enumerate(index)),
        )

    def block_at(self, index: Index) -> Block:
        windows = (
            Box(
                tuple(j * b for j, b in zip(index, self.block, strict=True)),
                tuple((j + 1) * b for j, b in zip(index, self.block, strict=True)),
            )
            & self.window_range
        )
        write = self.write_box(index)
        core = self.core_of(write)
        sums = self.support(windows) & self.core_of(self.roi)
        if not write.is_empty:
            sums = Box(tuple(map(min, sums.lo, core.lo)), tuple(map(max, sums.hi, core.hi)))
        return Block(index, windows, sums, write, core)

    def blocks(self) -> Iterator[Block]:
        """All blocks, in index order. Lazy: a plan of a million blocks costs nothing until it is walked."""
        return map(self.block_at, self.block_range.points())

    @cached_property
    def writing(self) -> tuple[tuple[int, ...], ...]:
        """Per axis the indices of blocks that write something; blocks that do along every axis are those that get
        committed."""
        return tuple(tuple(filter(self._writes(a), range(lo, hi))) for a, (lo, hi) in enumerate(self._block_spans))

    def _writes(self, axis: int) -> Callable[[int], bool]:
        """Whether a block of an axis writes something."""
        looked_at = set(self._different(axis))
        step = self.block[axis] * self.axes[axis].stride
        if not self.back and self.chunk[axis] <= step:  # so a chunk begins between any two edges
            return lambda j: j not in looked_at or self.edge(axis, j) < self.edge(axis, j + 1)
        return lambda j: self.edge(axis, j) < self.edge(axis, j + 1)

    @cached_property
    def largest_write(self) -> tuple[int, ...]:
        """Per axis the longest write box: the last block's may be longer than others."""
        return tuple(
            max(self.edge(a, j + 1) - self.edge(a, j) for j in self._different(a)) for a in range(len(self.axes))
        )

    @property
    def _block_spans(self) -> Iterator[tuple[int, int]]:
        return zip(self.block_range.lo, self.block_range.hi, strict=True)

    def cut(self, cuts: tuple[tuple[int, ...], ...]) -> Plan:
        """The same with other columns. What does not depend on them is not found out again."""
        plan = replace(self, cuts=cuts)
        plan.__dict__.update({name: self.__dict__[name] for name in _WITHOUT_CUTS if name in self.__dict__})
        return plan

    @cached_property
    def share(self) -> tuple[Box, ...]:
        """The boxes of blocks that this run commits: all blocks in one, unless it is a part. Parts are a partition of
        the blocks.

        Follows from the block grid and the number of parts alone, never from memory or machine, so that all parts
        agree.
        """
        return shares.share(self.writing, self.block_range, self._windows_along, self.part)

    def _windows_along(self, axis: int, lo: int, hi: int) -> int:
        core = self.core_span(axis, self.edge(axis, lo), self.edge(axis, hi))
        return len(self.axes[axis].meeting(core.start, core.stop))

    @cached_property
    def block_count(self) -> int:
        """Blocks of this run's share that write something."""
        return sum(
            prod(sum(lo <= j < hi for j in w) for w, lo, hi in zip(self.writing, box.lo, box.hi, strict=True))
            for box in self.share
        )

    @property
    def voxel_count(self) -> int:
        """Voxels that this run's share writes."""
        return sum(self.region(box).size for box in self.share)

    def support(self, windows: Box) -> Box:
        """The voxels to which a box of windows contributes."""
        spans = [
            (axis.support(lo)[0], axis.support(hi - 1)[1])
            for axis, lo, hi in zip(self.axes, windows.lo, windows.hi, strict=True)
        ]
        return Box(*map(tuple, zip(*spans, strict=True)))

    @property
    def window_shape(self) -> tuple[int, ...]:
        """Output voxels of a window."""
        return tuple(axis.window for axis in self.axes)

    def write_read_box(self, index: Index) -> Box:
        """The part of the grid of windows that decides what lies in a block's write box."""
        core = self.core_of(self.write_box(index))
        spans = []
        for axis, lo, hi in zip(self.axes, core.lo, core.hi, strict=True):
            windows = axis.meeting(lo, hi)
            spans.append(read_span(axis, windows.start, windows.stop - 1, self.padding) if windows else (0, 0))
        return Box(*map(tuple, zip(*spans, strict=True)))

    @cached_property
    def reach(self) -> tuple[int, ...]:
        """Per axis, how many blocks up a halo can go: 1 unless windows overlap by more than a block."""
        return tuple(max(self._reach(a, j) for j in self._different(a)) for a in range(len(self.axes)))

    def _different(self, axis: int) -> Iterable[int]:
        """Blocks of an axis of which one is like any other: those at both ends, and as many in the middle as it takes
        until edges lie alike in their chunks again."""
        grid, lo, hi = self.axes[axis], self.block_range.lo[axis], self.block_range.hi[axis]
        if not grid.is_even:  # no two need lie alike
            return range(lo, hi)
        step, chunk = self.block[axis] * grid.stride, self.chunk[axis]
        period = chunk // gcd(step, chunk)
        if self.back:  # no two blocks need lie alike
            return range(lo, hi)
        # a window that begins before an end reaches so many blocks beyond it, and so do the halos of blocks below it
        ends = 2 * (grid.window // step + 3)
        if hi - lo <= 2 * ends + period:
            return range(lo, hi)
        return itertools.chain(range(lo, lo + ends + period), range(hi - ends, hi))

    def _reach(self, axis: int, j: int) -> int:
        last = min((j + 1) * self.block[axis], self.window_range.hi[axis]) - 1
        top = min(self.axes[axis].support(last)[1], self.core_span(axis, self.roi.lo[axis], self.roi.hi[axis]).stop)
        up = 0
        while j + up + 1 < self.block_range.hi[axis] and self._core_begins(axis, j + up + 1, top) < top:
            up += 1
        return up

    def _core_begins(self, axis: int, j: int, top: int) -> int:
        """Where the core of block j begins along `axis`; `top` where no later block writes."""
        edge = self.edge(axis, j)
        return self.core_span(axis, edge, edge + 1).start if edge < self.roi.hi[axis] else top

    # --- columns ---

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Axes from slowest to fastest: unless another order is chosen, blocks run along the longest axis last of all, so
        that few halos wait."""
        if self.stream:
            return self.stream
        counts = self.share_shape
        return tuple(sorted(range(len(counts)), key=lambda a: (-counts[a], a)))

    @property
    def share_shape(self) -> tuple[int, ...]:
        """Per axis, blocks of the longest box of the share."""
        return tuple(max((box.shape[a] for box in self.share), default=0) for a in range(len(self.axes)))

    def columns(self) -> Iterator[Column]:
        corners = (corner for box in self.share for corner in itertools.product(*self.column_spans(box)))
        for number, corner in enumerate(corners):
            yield Column(number, Box(*map(tuple, zip(*corner, strict=True))))

    def column_spans(self, box: Box) -> list[list[tuple[int, int]]]:
        """Per axis, the spans of block indices into which `cuts` part a box of the share."""
        return [
            list(itertools.pairwise((lo, *(c for c in cuts if lo < c < hi), hi)))
            for lo, hi, cuts in zip(box.lo, box.hi, self.cuts, strict=True)
        ]

    @property
    def column_count(self) -> int:
        return sum(prod(map(len, self.column_spans(box))) for box in self.share)

    def region(self, blocks: Box) -> Box:
        """The part of the output that a box of blocks writes."""
        return Box(
            tuple(self.edge(a, j) for a, j in enumerate(blocks.lo)),
            tuple(self.edge(a, j) for a, j in enumerate(blocks.hi)),
        )

    def column_windows(self, column: Column) -> Box:
        """The windows a column needs: its own and those of lower columns that reach in."""
        return self.meeting(self.region(column.blocks))

    @cached_property
    def window_count(self) -> int:
        """Windows all columns infer together: those on seams count once per column."""
        return sum(prod(map(sum, self._windows_per_span(box))) for box in self.share)

    @property
    def call_count(self) -> int:
        """Windows that are inferred, each counted as often as it is."""
        return self.window_count * self.calls

    def _windows_per_span(self, box: Box) -> list[list[int]]:
        """Per axis, the windows that each span of a box of the share needs: columns are the products of spans, so
        nobody has to walk them."""
        return [[self._windows_along(a, lo, hi) for lo, hi in spans] for a, spans in enumerate(self.column_spans(box))]

    @property
    def seam_factor(self) -> float:
        """Windows inferred over windows that begin in the share: 1 where neither parts nor columns have seams."""
        begun = sum(
            prod(
                self._reaching(a, hi) - self._reaching(a, lo) for a, (lo, hi) in enumerate(zip(r.lo, r.hi, strict=True))
            )
            for r in map(self.region, self.share)
        )
        return self.window_count / max(1, begun) if self.window_count else 1.0

    def _reaching(self, axis: int, x: int) -> int:
        """Windows of the plan that begin below x."""
        core = self.core_span(axis, self.roi.lo[axis], x)
        return len(self.axes[axis].meeting(core.start, core.stop))

    # --- tasks ---

    def tasks(self, column: Column, pending: Callable[[Index], bool]) -> Iterator[Task]:
        """What is left to do in a column, in an order in which a block's lower neighbours come first.

        `pending` tells which blocks are still to be committed. A committed block, or one of a lower column, appears
        only where one of its windows reaches a pending block, and then infers just those windows.
        """
        return self._tasks(self._walk(column), column, pending)

    def tasks_in(self, blocks: Box, column: Column, pending: Callable[[Index], bool]) -> Iterator[Task]:
        """The same of a box of the blocks that the column looks at."""
        return self._tasks(self._ordered(blocks), column, pending)

    def _tasks(self, indices: Iterable[Index], column: Column, pending: Callable[[Index], bool]) -> Iterator[Task]:
        return (task for index in indices if (task := self.task(index, column, pending)))

    def sums_in_order(self, column: Column) -> Iterator[int]:
        """Voxels of the sums of each block that a column looks at, in the order of its `tasks`."""
        return (self.block_at(index).sums.size for index in self._walk(column))

    def _walk(self, column: Column) -> Iterator[Index]:
        """Blocks that a column looks at, tube by tube. Along every axis the lower ones come first."""
        return self._ordered(self.looked_at(column))

    def looked_at(self, column: Column) -> Box:
        """The blocks of a column, with those below whose windows reach in; empty where it has no windows."""
        windows = self.column_windows(column)
        return Box(column.blocks.lo, column.blocks.lo) if windows.is_empty else self._blocks_of(windows)

    def _ordered(self, walk: Box) -> Iterator[Index]:
        if walk.is_empty:
            return
        for tube in itertools.product(*(self.tube_spans(a, walk.lo[a], walk.hi[a]) for a in self.order)):
            for place in itertools.product(*(range(lo, hi) for lo, hi in tube)):
                by_axis = dict(zip(self.order, place, strict=True))
                yield tuple(by_axis[a] for a in range(len(self.axes)))

    def tube_spans(self, axis: int, lo: int, hi: int) -> list[tuple[int, int]]:
        """The spans into which tubes part the blocks `lo` to `hi` of an axis."""
        walls = self.walls[axis] if self.walls else ()
        return list(itertools.pairwise((lo, *(wall for wall in walls if lo < wall < hi), hi)))

    def task(self, index: Index, column: Column, pending: Callable[[Index], bool]) -> Task | None:
        """What is left to do for one block in a column; None where nothing is."""
        targets: list[tuple[Index, Box]] = []
        for offset in itertools.product(*(range(r + 1) for r in self.reach)):
            up = tuple(i + o for i, o in zip(index, offset, strict=True))
            inside = all(l <= u < h for l, u, h in zip(column.blocks.lo, up, column.blocks.hi, strict=True))
            if inside and not (write := self.write_box(up)).is_empty and pending(up):
                targets.append((up, self.core_of(write)))
        block = self.block_at(index)
        commits = bool(targets) and targets[0][0] == index
        windows = tuple(k for k in block.windows.points() if any(self._supports(k, box) for _, box in targets))
        if not windows and not commits:
            return None
        halos = tuple((up, shared) for up, box in targets if up != index and not (shared := box & block.sums).is_empty)
        return Task(block, commits, windows, self._read_box(windows), halos)

    def _supports(self, window: Index, box: Box) -> bool:
        for axis, k, lo, hi in zip(self.axes, window, box.lo, box.hi, strict=True):
            first, stop = axis.support(k)
            if first >= hi or stop <= lo:
                return False
        return True

    def _read_box(self, windows: tuple[Index, ...]) -> Box:
        if not windows:
            return Box((0,) * len(self.axes), (0,) * len(self.axes))
        spans = []
        for a, axis in enumerate(self.axes):
            ks = [k[a] for k in windows]
            spans.append(read_span(axis, min(ks), max(ks), self.padding))
        return Box(*map(tuple, zip(*spans, strict=True)))


_WITHOUT_CUTS = ("window_range", "block_range", "writing", "largest_write", "share", "block_count", "reach", "order")
"""What a plan works out once, and columns have no say in."""


def read_span(axis: AxisGrid, first: int, last: int, padding: str) -> tuple[int, int]:
    """The interval of the volume that windows `first` to `last` read, with what their padding mirrors in."""
    lo, hi = axis.input(first)[0], axis.input(last)[1]
    inside = [x for x in axis.source(lo, min(hi, 0), padding) + axis.source(max(lo, axis.size), hi, padding) if x >= 0]
    lo, hi = max(lo, 0), min(hi, axis.size)
    return min([lo, *inside]), max([hi, *(x + 1 for x in inside)])


def middle_span(axis: AxisGrid, windows: int, padding: str) -> tuple[int, int]:
    """The interval of the volume that a block of so many windows reads in the middle of the axis, where blocks read
    most."""
    first = min(axis.count - 1, axis.count // 2 // windows * windows)
    return read_span(axis, first, min(axis.count - 1, first + windows - 1), padding)


def _box(ranges: Iterator[range]) -> Box:
    spans = [(r.start, r.stop) for r in ranges]
    return Box(*map(tuple, zip(*spans, strict=True)))
