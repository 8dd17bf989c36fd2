"""Which pieces of page-locked memory a run on a GPU takes, found out by going through a column as the pipeline will.
Pure arithmetic on sizes.

Page-locking is slow (1.2 to 1.6 GB/s), so it is done beforehand, by a thread of its own, and not where blocks are
queued.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod

from unet_engine.plan.kept_halos import Place, Shelves
from unet_engine.plan.memory import Sizes
from unet_engine.plan.plan import Index, Plan, Task
from unet_engine.plan.resampling import AxisResampling

RAW, TABLES, HALOS, FINISHED = "raw voxels", "tables", "halos", "finished voxels"
"""Kinds of pieces."""
GRAIN = 2**16
"""Pieces are multiples of so many bytes, so that halos of nearly one size share them."""
LOOKED_AT = 1024
"""Blocks of a column that are gone through; what comes after them takes pieces that were given back."""
HELD = {RAW: 2, TABLES: 2, HALOS: 3, FINISHED: 4}
"""For how many blocks more a piece is held: one block is in flight while the next is queued, and raw voxels are read
ahead, for which those of each reader come on top; halos from when their block is queued until it is written; finished
voxels until then as well."""


def fits(size: int, piece: int) -> bool:
    """Whether a piece serves for `size` bytes: large enough, and no more than twice as large."""
    return size <= piece <= max(2 * size, GRAIN)


def rounded(size: int) -> int:
    return -(-size // GRAIN) * GRAIN


@dataclass
class _Pool:
    free: list[int] = field(default_factory=list)

    def take(self, size: int) -> tuple[int, bool]:
        """The piece for `size` bytes, and whether it had to be made."""
        fitting = [piece for piece in self.free if fits(size, piece)]
        if not fitting:
            return rounded(size), True
        self.free.remove(min(fitting))
        return min(fitting), False


def pinned_pieces(
    plan: Plan, sizes: Sizes, table_bytes: int, flag: int, shelves: Sequence[int] = ()
) -> tuple[tuple[str, int], ...]:
    """Kind and bytes of every piece that is held at once, in the order in which they are needed.

    table_bytes: of the tables of a block; flag: bytes before finished voxels; shelves: for the halos that stay on the
    device, see `shelf_sizes`.
    """
    column = max(plan.columns(), key=lambda found: found.blocks.size, default=None)
    if column is None:
        return ()
    tasks = islice(plan.tasks(column, lambda _: True), LOOKED_AT)
    kept = Shelves(plan.order, shelves)
    return tuple((kind, size) for _, kind, size in pieces_by_block(tasks, sizes, table_bytes, flag, kept, plan.image))


def pieces_by_block(
    tasks: Iterable[Task],
    sizes: Sizes,
    table_bytes: int,
    flag: int,
    kept: Shelves,
    image: Sequence[AxisResampling] = (),
) -> Iterator[tuple[int, str, int]]:
    """The same of these blocks, each with the number of the block that needs it first. image: see `Plan.image`."""
    on_device = _OnDevice(kept)
    pools: dict[str, _Pool] = defaultdict(_Pool)
    given_back: dict[int, list[tuple[str, int]]] = defaultdict(list)
    waiting: dict[Index, list[int]] = defaultdict(list)
    for n, task in enumerate(tasks):
        for kind, piece in given_back.pop(n, ()):
            pools[kind].free.append(piece)
        on_device.block(n)
        for kind, size, target in _taken(task, sizes, table_bytes, flag, image):
            if target is not None and on_device.takes(task.block.index, target, size):
                continue
            piece, is_new = pools[kind].take(size)
            if is_new:
                yield n, kind, piece
            if target is None:
                given_back[n + HELD[kind] + (sizes.readers if kind == RAW else 0)].append((kind, piece))
            else:
                waiting[target].append(piece)
        given_back[n + HELD[HALOS]] += [(HALOS, piece) for piece in waiting.pop(task.block.index, ())]
        on_device.over(n, task.block.index)


class _OnDevice:
    """The halos that stay there, as blocks go by."""

    def __init__(self, kept: Shelves) -> None:
        self._kept = kept
        self._waiting: dict[Index, list[Place]] = defaultdict(list)
        self._ending: dict[int, list[Place]] = {}

    def block(self, n: int) -> None:
        """Block `n` is queued."""
        for place in self._ending.pop(n, ()):
            self._kept.give(place)

    def takes(self, source: Index, target: Index, size: int) -> bool:
        place = self._kept.take(source, target, size)
        if place:
            self._waiting[target].append(place)
        return place is not None

    def over(self, n: int, index: Index) -> None:
        """What waits for block `n` goes with it."""
        self._ending[n + HELD[HALOS]] = self._waiting.pop(index, [])


def _taken(
    task: Task, sizes: Sizes, table_bytes: int, flag: int, image: Sequence[AxisResampling]
) -> Iterator[tuple[str, int, Index | None]]:
    """Kind, bytes and who waits for it of each piece that a block takes."""
    raw = prod(task.read.shape) * sizes.raw
    if sizes.scan:
        spans = [axis.reach(lo, hi) for axis, lo, hi in zip(image, task.read.lo, task.read.hi, strict=True)]
        raw = prod(hi - lo for lo, hi in spans) * sizes.scan
    yield RAW, raw, None
    yield TABLES, table_bytes, None
    for target, box in task.halos:
        yield HALOS, box.size * sizes.sums, target
    if task.commits:
        yield FINISHED, flag + task.block.write.size * sizes.out, None
