"""Halos that stay in the memory of a device until their block is committed: how much of it they get, and where each
lies. Pure arithmetic.

A halo for a block further up along the fastest axis of the stream waits for a block or two, one along the slowest for a
whole cross-section of the column. So the fast ones pass through a byte of memory most often, and get theirs first:
there is a shelf for each axis. What finds no room on its shelf waits on the host.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from unet_engine.plan.plan import Index, Plan
from unet_engine.plan.waiting import waiting_by_axis, waiting_halos

GRAIN = 256
"""Bytes at whose multiples halos begin, as CUDA's own allocations do."""
LOST, LOST_SLOWEST, ROUNDED = 1 / 2, 1 / 8, 64 * GRAIN
"""A shelf is larger than what waits on it by such a part, for what is lost between halos of different sizes (few wait
on the fast ones), and by so many bytes, as small halos are rounded up."""
SHARE = 0.75
"""Of the device memory that nothing else takes; libraries take some as they run."""


def shelf_sizes(plan: Plan, voxel_bytes: int, spare: int) -> tuple[int, ...]:
    """Bytes of the shelves, from the fastest axis of the stream to the slowest, where `spare` bytes of device memory
    are taken by nothing else. voxel_bytes: of the sums of one voxel."""
    left, found = int(SHARE * max(0, spare)), list[int]()
    for wanted in _larger(waiting_by_axis(plan), voxel_bytes):
        found.append(min(-(-wanted // GRAIN), left // GRAIN) * GRAIN)
        left -= found[-1]
    return tuple(found)


def _larger(waiting: Sequence[int], voxel_bytes: int) -> list[int]:
    """Bytes of shelves for so many voxels."""
    lost = [LOST] * (len(waiting) - 1) + [LOST_SLOWEST]
    return [int(voxels * voxel_bytes * (1 + part)) + (voxels > 0) * ROUNDED
            for voxels, part in zip(waiting, lost, strict=True)]  # fmt: skip


def waiting_on_host(plan: Plan, voxel_bytes: int, shelves: Sequence[int]) -> int:
    """Bytes of halos that wait on the host at once in any column, beside such shelves."""
    most = waiting_halos(plan) * voxel_bytes
    if not shelves:
        return most
    waiting = waiting_by_axis(plan)
    room = zip(waiting, _larger(waiting, voxel_bytes), shelves, strict=True)
    # of a shelf that is smaller than it should be, as large a part is lost
    left = sum(int(voxels * voxel_bytes * max(0.0, 1 - size / wanted)) for voxels, wanted, size in room if wanted)
    return min(most, left)


@dataclass(frozen=True)
class Place:
    """Where a halo lies."""

    shelf: int
    start: int
    """In the memory of all shelves, one behind the other."""
    size: int


class Shelves:
    """What is free of the memory of all shelves. A halo takes the first gap of its shelf that is large enough."""

    def __init__(self, order: Sequence[int], sizes: Sequence[int]) -> None:
        """order: the axes of the stream, slowest first (`Plan.order`). sizes: see `shelf_sizes`."""
        self._order = tuple(order)
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        self._gaps = [[(start, start + size)] for start, size in zip(starts, sizes, strict=True)]

    def take(self, source: Index, target: Index, size: int) -> Place | None:
        """Room for `size` bytes from block `source` for block `target`; None where there is none."""
        number = self._number(source, target)
        if number >= len(self._gaps):
            return None
        size, gaps = -(-size // GRAIN) * GRAIN, self._gaps[number]
        for i, (start, stop) in enumerate(gaps):
            if stop - start >= size:
                gaps[i : i + 1] = [(start + size, stop)] if stop - start > size else []
                return Place(number, start, size)
        return None

    def give(self, place: Place) -> None:
        """The halo is not needed any more."""
        gaps, gap = self._gaps[place.shelf], (place.start, place.start + place.size)
        insort(gaps, gap)
        i = gaps.index(gap)
        for j in (i, i - 1):
            if 0 <= j < len(gaps) - 1 and gaps[j][1] == gaps[j + 1][0]:
                gaps[j : j + 2] = [(gaps[j][0], gaps[j + 1][1])]

    def _number(self, source: Index, target: Index) -> int:
        slowest = next(n for n, a in enumerate(self._order) if source[a] != target[a])
        return len(self._order) - 1 - slowest
