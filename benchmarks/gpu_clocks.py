"""Clocks for the streams of a GPU and the threads beside it: when each is through with the work of each block, in the
order in which the pipeline queues it. A model, no measurement; `gpu_schedule.py` makes tables by it.

The host waits for a block's voxels, which readers bring in as long as its chunks take to decode, where that rate is given.
A stream begins a piece of work when the one before it is over, when what it waits for is over, and when the host has
queued it. The host waits for a block's halos once the next block is queued.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod

from gpu_counts import SHAPE, VOXEL_BYTES, WINDOWS_PER_SECOND

from unet_engine.plan.device_memory import FLAG, SUMS_SLOTS, extents, shelves
from unet_engine.plan.kept_halos import Place, Shelves
from unet_engine.plan.memory import READERS, Sizes
from unet_engine.plan.pinned_memory import pieces_by_block
from unet_engine.plan.plan import Index, Plan, Task

CHUNK = 128
"""Voxels along each side of a stored chunk."""


@dataclass(frozen=True)
class Costs:
    windows_per_second: float = WINDOWS_PER_SECOND
    memory: float = 0.8 * 4.8e12
    """Bytes per second of kernels."""
    wire: float = 50e9
    """Bytes per second of each way between host and device."""
    launch: float = 5e-6
    """Seconds that a launch takes the host."""
    lock: float = 1.4e9
    """Bytes of memory that are page-locked per second."""
    write: float = 2e9
    """Bytes of finished voxels that the host writes per second."""
    room: int = 141 * 10**9
    """Bytes of device memory."""
    network: int = 8 * 10**9
    """Bytes of it that the network and its library take."""
    decode: float = float("inf")
    """Bytes of decoded voxels per second that one block is read with, in whole chunks of `CHUNK` a side; infinite: reading
    takes no time."""
    decode_all: float = float("inf")
    """The same of all blocks that are read at the same time, together."""


@dataclass(frozen=True)
class Feed:
    """What windows are cut from, for each of its voxels that a block reads."""

    sent: float = VOXEL_BYTES
    """Bytes that go over."""
    read: float = 0.0
    """Seconds of the thread that reads it, beside decoding."""
    made: float = 0.0
    """Seconds of the device."""


@dataclass(frozen=True)
class Way:
    """How the work is queued."""

    own_streams: bool = True
    """Halos go up and down on streams of their own."""
    locked_ahead: bool = True
    """Pinned memory is locked by a thread of its own."""
    locked_before: bool = False
    """All of it before the first block: what remains once every piece is there."""
    kept: bool = True
    """Halos stay on the device, as many as there is room for."""
    readers: int = READERS
    """Blocks that are read at the same time, ahead of the one that is queued."""
    feed: Feed = Feed()
    finish: Finish | None = None
    """What is done with a block whose windows are added; None: halos are merged and voxels finished on the device."""


@dataclass
class Clocks:
    """When each stream and thread is through with what it was given, in seconds."""

    at: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def do(self, where: str, seconds: float, *after: float) -> float:
        """Work on a stream that waits for `after`; when it is over."""
        self.at[where] = max((self.at[where], *after)) + seconds
        return self.at[where]


@dataclass(frozen=True)
class Shares:
    """The time of the network alone over all of it."""

    whole: float
    middle: float
    """From where a tenth of the windows is inferred to where nine tenths are: without the first block's reading and the
    last one's writing."""


def shares_of(plan: Plan, classes: int, way: Way, costs: Costs) -> Shares:
    total, inferred = 0.0, [(0.0, 0)]
    for column in plan.columns():
        tasks = list(plan.tasks(column, lambda _: True))
        table_bytes, sizes = extents(plan).table_bytes, Sizes(VOXEL_BYTES, 4 * classes, 1)
        given = shelves(plan, sizes, costs.network, costs.room) if way.kept else ()
        locked = _locked(tasks, sizes, table_bytes, Shelves(plan.order, given))
        ended, computed = _seconds(tasks, classes, locked, Shelves(plan.order, given), way, costs)
        for task, at in zip(tasks, computed, strict=True):
            inferred.append((total + at, inferred[-1][1] + len(task.windows)))
        total += ended
    windows = inferred[-1][1]
    begins, ends = (next(one for one in inferred if one[1] >= part * windows) for part in (0.1, 0.9))
    middle = (ends[1] - begins[1]) / costs.windows_per_second / max(1e-12, ends[0] - begins[0])
    return Shares(windows / costs.windows_per_second / total, middle)


def _locked(tasks: Sequence[Task], sizes: Sizes, table_bytes: int, kept: Shelves) -> list[int]:
    """Bytes of the pieces that each block is the first to need."""
    bytes_of = [0] * len(tasks)
    for n, _, size in pieces_by_block(tasks, sizes, table_bytes, FLAG, kept):
        bytes_of[n] += size
    return bytes_of


def _seconds(
    tasks: Sequence[Task], classes: int, locked: Sequence[int], kept: Shelves, way: Way, costs: Costs
) -> tuple[float, list[float]]:
    """When all is written, and when the windows of each block are added."""
    finish = way.finish or _finish
    clocks, up, down = Clocks(), *(("up", "down") if way.own_streams else ("out", "out"))
    through = list[float]()
    ready_ahead = list(accumulate(size / costs.lock for size in locked))
    slots, sent = deque([0.0] * SUMS_SLOTS), defaultdict[Index, Came](Came)
    free = defaultdict[str, float](float)
    before: tuple[Task, float, float] | None = None
    reading = Reading(tasks, way, costs)
    for n, (task, size, ahead) in enumerate(zip(tasks, locked, ready_ahead, strict=True)):
        clocks.at["host"] = reading.there(n, clocks.at["host"])
        if not way.locked_before:
            clocks.at["host"] = (
                max(clocks.at["host"], ahead) if way.locked_ahead else clocks.at["host"] + size / costs.lock
            )
        clocks.at["host"] += 3 * len(task.windows) * costs.launch
        queued = clocks.at["host"]
        copied = clocks.do("in", task.read.size * way.feed.sent / costs.wire, queued)
        network = len(task.windows) / costs.windows_per_second
        added = len(task.windows) * 10 * task_window(task) * classes / costs.memory
        made = task.read.size * way.feed.made
        computed = clocks.do("compute", made + network + added, queued, copied, slots.popleft())
        through.append(computed)
        count = sum(box.size for _, box in task.halos) * 4 * classes
        going = 0
        for target, box in task.halos:
            halo = box.size * 4 * classes
            place = kept.take(task.block.index, target, halo)
            sent[target].add(halo, place)
            going += 0 if place else halo
        packed = clocks.do("out", 2 * count / costs.memory, computed, free["packed"] if going else 0.0)
        done = clocks.do(down, going / costs.wire, packed)
        free["packed"] = done if going else free["packed"]
        if before is not None:
            came = sent.pop(before[0].block.index, Came())
            slots.append(finish(before, came, classes, clocks, (up, down), free, costs))
            for place in came.places:
                kept.give(place)
        before = task, packed, done
    assert before is not None
    came = sent.pop(before[0].block.index, Came())
    finish(before, came, classes, clocks, (up, down), free, costs)
    return max(clocks.at.values()), through


class Reading:
    """When voxels are there: block n + `readers` is handed to the readers as the host asks for block n."""

    def __init__(self, tasks: Sequence[Task], way: Way, costs: Costs) -> None:
        readers = way.readers
        rate = min(costs.decode, costs.decode_all / readers)
        self._seconds = [decoded(task) / rate + task.read.size * way.feed.read for task in tasks]
        self._free, self._ahead, self._there = [0.0] * readers, readers, list[float]()

    def there(self, n: int, asked: float) -> float:
        """When the host has block `n`, which it asks for at `asked`."""
        for seconds in self._seconds[len(self._there) : n + self._ahead + 1]:
            first = min(range(self._ahead), key=self._free.__getitem__)
            self._free[first] = max(asked, self._free[first]) + seconds
            self._there.append(self._free[first])
        return max(asked, self._there[n])


def decoded(task: Task) -> int:
    """Bytes that reading a block decodes."""
    spans = zip(task.read.lo, task.read.hi, SHAPE, strict=True)
    return prod(min(size, -(-hi // CHUNK) * CHUNK) - lo // CHUNK * CHUNK for lo, hi, size in spans) * VOXEL_BYTES


@dataclass
class Came:
    """Bytes of halos for one block, and where those on the device lie."""

    all: int = 0
    by_host: int = 0
    places: list[Place] = field(default_factory=list)

    def add(self, size: int, place: Place | None) -> None:
        self.all += size
        if place:
            self.places.append(place)
        else:
            self.by_host += size


Finish = Callable[
    [tuple[Task, float, float], Came, int, Clocks, tuple[str, str], dict[str, float], Costs], float
]  # fmt: skip
"""A block, when its halos were packed and when those that leave were on the host; what came for it, classes, clocks, the
streams up and down, since when what is shared is free, costs. Gives when the block's sums are free."""


def _finish(
    of: tuple[Task, float, float], came: Came, classes: int, clocks: Clocks, ways: tuple[str, str],
    free: dict[str, float], costs: Costs,
) -> float:  # fmt: skip
    """The host waits for the block's halos; another thread then has it finished and writes it. When its sums are
    free."""
    task, packed, done = of
    clocks.at["host"] = max(clocks.at["host"], done)
    begun = max(clocks.at["write"], done)
    core = task.block.write.size
    there = clocks.do(ways[0], came.by_host / costs.wire, begun, free["halos"]) if came.by_host else begun
    merged = clocks.do("out", (came.all + 4 * core * classes + core) / costs.memory, there, packed, free["out"])
    free["halos"] = merged
    free["out"] = clocks.do(ways[1], core / costs.wire, merged)
    clocks.at["write"] = free["out"] + core / costs.write
    return merged


def task_window(task: Task) -> int:
    """Voxels of a window."""
    return 128 ** len(task.block.write.shape)
