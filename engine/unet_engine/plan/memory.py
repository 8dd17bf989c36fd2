"""Peak memory of a plan, and the plan that fits a budget. Pure arithmetic on sizes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from unet_engine.errors import PlanError
from unet_engine.plan.kept_halos import waiting_on_host
from unet_engine.plan.plan import HostMemory, Plan, middle_span
from unet_engine.plan.sizing import LOOKED_AT, shrunk, sums_span
from unet_engine.plan.waiting import blocks_to_infer
from unet_engine.units import size

SUMS_IN_FLIGHT = 3
"""Blocks being inferred, being finished by the windows still in flight, and being written; where one block has windows
for every thread, else see `under_way`."""
WALKED = 64
"""Blocks of a run up to which the sums in flight are counted block by block. Of many blocks three of the largest come
one after the other; of a few, those at the ends are smaller, and three of the largest are as many as never are."""
RAW_IN_FLIGHT = 3
"""Raw blocks being cut, read ahead, and copied while they are decoded."""
READERS = 3
"""Blocks that are read at the same time where a GPU computes, if there is memory: each is two more in flight."""
RUN_BASE = 4 * 2**20
"""Bytes that a run takes once blocks are under way, whatever their size: threads, codecs, folders, what the C library
keeps of small things. Measured: 1 to 4 MiB."""
BASE_VARIES = 32
"""What the process and the network take differs by up to such a part of it from one start to the next."""
BUNDLES_IN_FLIGHT = 3
"""Bundles per worker of a cluster that are handed out and not yet committed: one in the network, one being read, one
being written."""
LEAST = 64 * 2**20
"""Bytes that a worker process takes before it does anything."""
WORKER_BASE = 20 * 2**20
"""Bytes that a worker process takes more once blocks are under way: connections, messages, logs. Measured: none to 23
MiB beside what the rest of the prediction leaves unused."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that the memory prediction needs, most of them per voxel."""

    raw: int
    """All input channels of one voxel, as stored."""
    sums: int
    """All output channels of one voxel in float32."""
    out: int
    """What is written per voxel."""
    source: int = 0
    """Of a volume that is resampled: what a voxel of it takes, stored and normalised, while its block is read."""
    scan: int = 0
    """Of a volume that a device resamples: what a voxel of it takes as it is stored, until its block is there; 0: the host
    does."""
    decoding: int = 0
    """Chunks that are decoded at once, whole, whatever part of them is wanted (not per voxel)."""
    meant: int = 0
    """What is kept with a raw block to say which of its voxels are meant."""
    looking: int = 0
    """What finding that out takes beside, of the block that is read."""
    outside: int = 0
    """What finding out where to overwrite takes, of the block that is written."""
    readers: int = 1
    """Blocks that are read at the same time (not per voxel)."""
    threads: int = 1
    """Windows that are inferred at once (no bytes)."""
    shelves: tuple[int, ...] = ()
    """For halos that stay on the device of a column, see `unet_engine.plan.kept_halos` (not per voxel)."""


@dataclass(frozen=True)
class ClusterShape:
    """What of a cluster decides memory: its workers share the blocks of each column between them."""

    workers: int
    """How many there will be."""
    present: int
    """How many are sure to be there: those that hold all halos that wait, however late the others come."""
    bundle_length: int
    """Blocks that are handed out together at most (see `unet_engine.plan.bundles`)."""


def under_way(plan: Plan, threads: int) -> int:
    """Blocks whose last windows may still be in the network while the next one is begun: one, where a block has windows
    for all threads; else as many as keep all of them at work."""
    return max(1, -(-threads // (prod(plan.block) * plan.calls)))


def predict_memory(
    plan: Plan, sizes: Sizes, base: int, devices: int, cluster: ClusterShape | None = None, ending: int = 1
) -> HostMemory:
    """Peak bytes of one process: of a column on each of `devices` devices at once, or, with a `cluster`, of one of its
    workers. ending: blocks whose last windows may be in the network at once.

    Workers of a cluster hold their share of the halos that wait, at most twice it for want of balance, and while they
    are sent.
    """
    reads = [middle_span(axis, windows, plan.padding) for axis, windows in zip(plan.axes, plan.block, strict=True)]
    halos = waiting_on_host(plan, sizes.sums, sizes.shelves)
    in_flight, blocks = SUMS_IN_FLIGHT - 1 + ending, blocks_to_infer(plan)
    if cluster:
        halos = min(halos, halos * 2 // cluster.present)
        # a bundle more than the average, and in a commit the copy that is finished and the halos that came for it
        in_flight = (BUNDLES_IN_FLIGHT + 1) * cluster.bundle_length + ending
        base += WORKER_BASE
    # of each reader more a block that is being read, and one that it read
    held, source = RAW_IN_FLIGHT + 2 * (sizes.readers - 1), _source_size(plan, reads)
    looked_at = _size(reads) * (held * sizes.meant + sizes.readers * sizes.looking)
    voxels = held * max(_size(reads) * sizes.raw, source * sizes.scan)
    return HostMemory(
        base=base + RUN_BASE,
        raw=devices * (looked_at + voxels + sizes.readers * (source * sizes.source + sizes.decoding)),
        sums=sizes.sums
        * (
            _walked(plan, in_flight)
            if not cluster and devices == plan.column_count == 1 and blocks <= WALKED
            else devices * min(in_flight, blocks + (cluster is not None)) * _largest_sums(plan)
        ),
        halos=devices * halos,
        commit=devices * prod(plan.largest_write) * (2 * sizes.out + sizes.outside),
        under_way=ending,
    )


def _size(spans: Sequence[tuple[int, int]]) -> int:
    return prod(hi - lo for lo, hi in spans)


def _source_size(plan: Plan, reads: Sequence[tuple[int, int]]) -> int:
    """Voxels of the volume that those of `reads` are made of; none where nothing is resampled."""
    return _size([axis.reach(*span) for axis, span in zip(plan.image, reads, strict=True)]) if plan.image else 0


def _largest_sums(plan: Plan) -> int:
    """Voxels of the sums of the largest block, or more."""
    return prod(_sums_along(plan, a, n) for a, n in enumerate(plan.core_of(plan.roi).shape))


def _walked(plan: Plan, in_flight: int) -> int:
    """The most voxels of sums that are in memory at once in a plan of one column, of so many blocks. That of a block that is done is used
    again by the next one that fits into it; where none does, the largest goes for a new one."""
    used, free = deque[int](), list[int]()
    most = 0
    for need in plan.sums_in_order(next(plan.columns())):
        if len(used) == in_flight:
            free.append(used.popleft())
        fitting = min((piece for piece in free if piece >= need), default=0)
        if free:
            free.remove(fitting or max(free))
        used.append(fitting or need)
        most = max(most, sum(used) + sum(free))
    return most


def _sums_along(plan: Plan, a: int, whole: int) -> int:
    """Sums along axis `a` of the longest block; `whole`: of all blocks together."""
    axis, windows, chunk = plan.axes[a], plan.block[a], plan.chunk[a]
    if not plan.back:
        # an edge that was rounded down to a chunk makes the sums begin up to a chunk earlier
        even = (
            (windows * axis.stride) % chunk == 0 and axis.is_even and axis.blend != "crop" and not any(plan.backwards)
        )
        return min(whole, sums_span(axis, windows) + (0 if even else chunk - 1))
    lo, hi = plan.block_range.lo[a], plan.block_range.hi[a]
    looked_at = range(lo, hi) if hi - lo <= 2 * LOOKED_AT else (*range(lo, lo + LOOKED_AT), *range(hi - LOOKED_AT, hi))
    earlier = 0
    for j in looked_at:
        own, begins = plan.core_span(a, plan.edge(a, j), plan.edge(a, j + 1)), axis.support(j * windows)[0]
        earlier = max(earlier, begins - own.start if own else 0)
    return min(whole, sums_span(axis, windows) + earlier)


class NoRoom(PlanError):
    """Not even the smallest plan fits."""

    def __init__(self, enough: int, need: int, base: int, budget: int) -> None:
        self.enough = enough
        """Bytes that are enough, however much more the process takes another time."""
        self.need = need
        self._figures = enough, need, base, budget
        super().__init__(
            f"the smallest plan needs {size(need)} and --memory allows {size(budget)} "
            f"({size(base)} of it for the process and the network); give more memory or a smaller --window: "
            f"--memory {-(-enough // 2**20)}MiB is enough"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return NoRoom, self._figures


def fit(plan: Plan, sizes: Sizes, base: int, budget: int, devices: int, cluster: ClusterShape | None = None) -> Plan:
    """The plan with as few columns as fit `budget` bytes (at least one per device), shrinking blocks only where they
    must: sooner, fewer of them are under way than would keep all threads at work.

    Raises `NoRoom` where one column of the smallest blocks needs more than the budget.
    """
    while (fitting := _fitting(plan, sizes, base, budget, devices, cluster)) is None:
        smaller = shrunk(plan)
        if smaller is None:
            need = predict_memory(cut_columns(plan, plan.share_shape), sizes, base, devices, cluster).total
            raise NoRoom(need + base // BASE_VARIES, need, base, budget)
        plan = smaller
    return fitting


def _fitting(
    plan: Plan, sizes: Sizes, base: int, budget: int, devices: int, cluster: ClusterShape | None
) -> Plan | None:
    """With these blocks, as many under way as are wanted, or half as many, and so on."""
    ending = under_way(plan, sizes.threads)
    while True:
        found = _columns_that_fit(plan, sizes, base, budget, devices, cluster, ending)
        if found is not None or ending == 1:
            return found
        ending //= 2


def _columns_that_fit(
    plan: Plan, sizes: Sizes, base: int, budget: int, devices: int, cluster: ClusterShape | None, ending: int
) -> Plan | None:
    counts = [1] * len(plan.axes)
    blocks = plan.share_shape
    while True:
        cut = cut_columns(plan, counts)
        memory = predict_memory(cut, sizes, base, devices, cluster, ending)
        if memory.total - memory.halos > budget:
            return None  # columns make halos fewer, and nothing else
        if cut.column_count >= min(devices, sum(box.size for box in plan.share)) and memory.total <= budget:
            return replace(cut, memory=memory)
        fits = memory.total <= budget
        # cut across the stream, where halos wait; along it to give every device a column, or as the last resort
        wide = [a for a in plan.order[1:] if counts[a] < blocks[a]] or [plan.order[0]]
        wide = [a for a in wide if counts[a] < blocks[a]]
        if not wide:
            return None
        if not fits and wide == [plan.order[0]]:
            counts[plan.order[0]] = blocks[plan.order[0]]  # a block at a time: of the next one nothing waits yet
            continue
        widest = max(wide, key=lambda a: blocks[a] / counts[a])
        counts[widest] += 1


def readers_that_fit(plan: Plan, sizes: Sizes, base: int, budget: int, devices: int, most: int) -> int:
    """Blocks that may be read at the same time, of `most`, in what `budget` leaves: reading ahead costs neither columns
    nor smaller blocks."""
    fitting = (
        n for n in range(most, 1, -1) if predict_memory(plan, replace(sizes, readers=n), base, devices).total <= budget
    )
    return next(fitting, 1)


def cut_columns(plan: Plan, counts: Sequence[int]) -> Plan:
    """The plan with up to `counts` columns per axis in each box of its share, of as equal width as blocks allow.

    Boxes of one share have the same span along an axis, or spans that do not meet, so the cuts of one leave the others
    alone.
    """
    cuts = []
    for a, c in enumerate(counts):
        found = {box.lo[a] + box.shape[a] * i // c for box in plan.share for i in range(1, c)}
        cuts.append(tuple(sorted(found - {end for box in plan.share for end in (box.lo[a], box.hi[a])})))
    return plan.cut(tuple(cuts))
