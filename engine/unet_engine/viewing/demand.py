"""Which block is computed next, of those that somebody looks at. Geometry alone: no voxels, no viewer, no clock but the
one that is given."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import dist, floor, prod

from unet_engine.output.layout import Layout
from unet_engine.plan.box import Box, around
from unet_engine.plan.plan import Index, Plan
from unet_engine.volumes.base import Array

STALE = 3.0
"""Seconds after the viewer was told to ask again, from which on only what it did ask for again is looked at."""
SETTLING = 0.3
"""Seconds from the first piece that is asked for to the first choice: pieces come in no order, and the middle
counts."""
_NEAR = 12
"""Blocks along an axis, nearest to where people look, among which the next one is chosen."""


@dataclass(frozen=True)
class Sight:
    """Where people look, in voxels, z, y, x."""

    at: tuple[float, ...]
    planes: tuple[int, ...] = ()
    """The axes that planes which are shown stand on, each through `at`; none: it is not known what is shown."""


class Blocks:
    """The blocks of a plan, by where they lie in its own voxels and in those of the output."""

    def __init__(self, plan: Plan, layout: Layout) -> None:
        self.plan, self._turn = plan, layout.turn
        self._begin = layout.begin or (0,) * len(plan.axes)

    def seen(self, box: Box) -> Box:
        """Where a box of the output lies in the plan."""
        box = box.relative_to(self._begin)
        return (self._turn.seen_box(box) if self._turn else box).shift(self.plan.roi.lo)

    def stored(self, box: Box) -> Box:
        """The way back of `seen`."""
        box = box.relative_to(self.plan.roi.lo)
        return (self._turn.stored_box(box) if self._turn else box).shift(self._begin)

    def view(self, values: Array) -> Array:
        """Voxels of a box of the plan, as the output has them."""
        return self._turn.stored_view(values) if self._turn else values

    def sight(self, sight: Sight) -> Sight:
        """Of the output, as the plan has it."""
        there = self.seen(Box(tuple(map(floor, sight.at)), tuple(floor(x) + 1 for x in sight.at)))
        order = self._turn.order if self._turn else range(len(sight.at))
        return Sight(tuple(map(float, there.lo)), tuple(a for a, stored in enumerate(order) if stored in sight.planes))

    def span(self, axis: int, j: int) -> tuple[int, int]:
        """What block `j` of an axis writes along it."""
        return self.plan.edge(axis, j), self.plan.edge(axis, j + 1)

    def along(self, axis: int, lo: int, hi: int) -> tuple[int, ...]:
        """The blocks of an axis that write between `lo` and `hi`."""
        writing = self.plan.writing[axis]
        first = bisect_right(writing, lo, key=lambda j: self.span(axis, j)[1])
        stop = bisect_left(writing, hi, key=lambda j: self.span(axis, j)[0])
        return writing[first:stop]


class Demand:
    """What is asked for, from any thread."""

    def __init__(
        self, blocks: Blocks, pending: Callable[[Index], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """pending: which blocks were not committed before"""
        self._blocks, self._before, self._clock = blocks, pending, clock
        self._asked: dict[tuple[int, Box], float] = {}
        """By how many voxels one stands for, and where, when it was asked for last. Boxes here are the plan's."""
        self._renewed, self._first = float("-inf"), float("inf")
        self._done: set[Index] = set()
        self._sight: Sight | None = None
        self._changed = threading.Condition()

    def ask(self, box: Box, factors: Sequence[int]) -> None:
        """A piece of the output was asked for: `box` in voxels of its full resolution, of which one voxel of the piece
        spans `factors`."""
        with self._changed:
            self._first = min(self._first, self._clock())
            self._asked[prod(factors), self._blocks.seen(box)] = self._clock()
            self._changed.notify_all()

    def look(self, sight: Sight | None) -> None:
        """People look there now, in voxels of the output; None: nobody knows where."""
        with self._changed:
            self._sight = sight and self._blocks.sight(sight)
            self._changed.notify_all()

    def there(self, sight: Sight) -> Sight:
        """What is said in voxels of the output, in those of the plan."""
        return self._blocks.sight(sight)

    def renew(self) -> None:
        """The viewer was told to ask again for all that it shows: what it does not ask for soon is out of sight."""
        with self._changed:
            self._asked = {key: when for key, when in self._asked.items() if self._is_fresh(when)}
            self._renewed = self._clock()

    def pending(self, index: Index) -> bool:
        """Whether a block is still to be computed."""
        return index not in self._done and self._before(index)

    def committed(self, index: Index) -> None:
        with self._changed:
            self._done.add(index)

    def middle(self) -> Index | None:
        """The block that would be computed first if all were asked for; None where nobody knows where people look."""
        if self._sight is None:
            return None
        candidates = filter(self.pending, self._candidates(self._blocks.plan.roi))
        return min(candidates, key=lambda index: (self._away(index), index), default=None)

    def extent(self) -> Box | None:
        """Around all that is on the screen, in voxels of the plan; None where nothing is."""
        with self._changed:
            shown = self._shown()
        return around(shown) if shown else None

    @property
    def done(self) -> int:
        """Blocks that were committed since this began."""
        return len(self._done)

    def next(self, patience: float) -> Index | None:
        """The block to compute now; None where none is asked for within `patience` seconds."""
        with self._changed:
            found = self._chosen()
            if found is None and patience > 0:
                self._changed.wait(patience)
                found = self._chosen()
            return found

    # --- the order ---

    def _is_fresh(self, when: float) -> bool:
        return when >= self._renewed or self._clock() < self._renewed + STALE

    def _shown(self) -> list[Box]:
        """The pieces of the finest resolution that is asked for: that of the screen. Coarser ones reach beyond it; as
        long as no others were asked for, which is how every picture begins, they are what is shown."""
        fresh = [key for key, when in self._asked.items() if self._is_fresh(when)]
        finest = min((size for size, _ in fresh), default=0)
        return [box for size, box in fresh if size == finest]

    def _chosen(self) -> Index | None:
        """Of what is on the screen the block nearest to where people look; of several as near the first."""
        best: tuple[float, Index] | None = None
        for box in self._shown() if self._clock() >= self._first + SETTLING else ():
            for index in self._candidates(box):
                if self.pending(index):
                    found = (self._away(index), index)
                    best = found if best is None else min(best, found)
        return best[1] if best else None

    def _candidates(self, box: Box) -> Iterator[Index]:
        """Blocks in `box`, of many the nearest ones, that a plane which is shown goes through."""
        sight = self._sight
        if sight is None or not sight.planes:
            yield from product(*(self._nearest(a, box) for a in range(box.ndim)))
            return
        for plane in sight.planes:
            at = floor(sight.at[plane])
            cut = box & Box(
                tuple(at if a == plane else lo for a, lo in enumerate(box.lo)),
                tuple(at + 1 if a == plane else hi for a, hi in enumerate(box.hi)),
            )
            if not cut.is_empty:
                yield from product(*(self._nearest(a, cut) for a in range(box.ndim)))

    def _nearest(self, axis: int, box: Box) -> tuple[int, ...]:
        indices = self._blocks.along(axis, box.lo[axis], box.hi[axis])
        if self._sight is None or len(indices) <= _NEAR:
            return indices[:_NEAR]
        at = self._sight.at[axis]
        return tuple(sorted(indices, key=lambda j: abs(sum(self._blocks.span(axis, j)) / 2 - at))[:_NEAR])

    def _away(self, index: Index) -> float:
        if self._sight is None:
            return 0.0
        middle = [sum(self._blocks.span(a, j)) / 2 for a, j in enumerate(index)]
        return dist(middle, self._sight.at)
