"""What share of a run on a GPU is the network, by clocks for its streams: the order in which the pipeline queues the
work of each block, on the planner's own blocks, with bandwidths and costs that are given. A model, no measurement.

    python benchmarks/gpu_schedule.py

The host waits for a block's voxels, which readers bring in as long as its chunks take to decode, where that rate is given.
A stream begins a piece of work when the one before it is over, when what it waits for is over, and when the host has
queued it. The host waits for a block's halos once the next block is queued. ``before`` is what the pipeline was: all
halos through the host, up and down on one stream, and pinned memory locked where blocks are queued.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod

from gpu_counts import CLASSES, SHAPE, VOXEL_BYTES, WINDOWS_PER_SECOND, plan_of

from unet_engine.plan.device_memory import FLAG, SUMS_SLOTS, extents, shelves
from unet_engine.plan.kept_halos import Place, Shelves
from unet_engine.plan.memory import READERS, Sizes
from unet_engine.plan.pinned_memory import pieces_by_block
from unet_engine.plan.plan import Index, Plan, Task
from unet_engine.plan.sizing import default_block, default_chunk

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


def share(classes: int, way: Way, costs: Costs = Costs(), block: tuple[int, ...] | None = None) -> float:
    return shares(classes, way, costs, block).whole


def shares(classes: int, way: Way, costs: Costs = Costs(), block: tuple[int, ...] | None = None) -> Shares:
    """Of a run. block: windows of a block; the planner's own where none is given."""
    plan = plan_of(classes)
    if block is not None:
        plan = replace(plan, block=block, chunk=default_chunk(plan.axes, block))
    return shares_of(plan, classes, way, costs)


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
    reading = _Reading(tasks, way, costs)
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


class _Reading:
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


BEFORE = Way(own_streams=False, locked_ahead=False, kept=False)
THROUGH_HOST, AFTER = Way(kept=False), Way()
STEADY_BEFORE = Way(own_streams=False, locked_before=True, kept=False)
STEADY_THROUGH_HOST, STEADY = Way(locked_before=True, kept=False), Way(locked_before=True)
WAYS = (BEFORE, THROUGH_HOST, AFTER, STEADY_BEFORE, STEADY_THROUGH_HOST, STEADY)


def table(costs: Costs = Costs()) -> str:
    lines = [
        "| classes | whole run, before | halos through the host | whole run | once all is locked, before | "
        "halos through the host | once all is locked |",
        "|" + "---|" * (1 + len(WAYS)),
    ]
    for classes in CLASSES:
        cells = [f"{share(classes, way, costs):.2f}" for way in WAYS]
        lines.append(f"| {classes} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


BLOCKS, ROOMS = ((1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2)), (141, 48, 24)
"""Windows of a block; GB of device memory."""


def block_table(costs: Costs = Costs()) -> str:
    """Of 104 classes, for blocks of more windows than the planner's own single one."""
    lines = [
        "| windows a block | " + " | ".join(f"{room} GB: whole run, once all is locked" for room in ROOMS) + " |",
        "|" + "---|" * (1 + len(ROOMS)),
    ]
    for block in BLOCKS:
        cells = [
            ", ".join(f"{share(104, way, replace(costs, room=room * 10**9), block):.2f}" for way in (AFTER, STEADY))
            for room in ROOMS
        ]
        lines.append(f"| {prod(block)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


MEASURED = {3: 216.0, 16: 209.0, 104: 187.0}
"""Windows per second of the bare network on an H200, by classes."""
READING = Costs(decode=0.7e9, decode_all=16 * 0.86e9)
"""As one reading thread seems to have been on that machine: 2.9 GB in 3.6 s beside a network, and runs of many classes that
waited for nothing else. 16 cores, and what one decodes (`gpu_counts.py --decode`)."""


def reading_table(costs: Costs = READING) -> str:
    """With one reading thread and the blocks that were measured, with a GPU's blocks, and with several blocks read at
    once."""
    lines = [
        f"| classes | measured | one block read at a time, a CPU's blocks | a GPU's blocks | {READERS} blocks at a time |",
        "|---|---|---|---|---|",
    ]
    for classes, rate in MEASURED.items():
        cost, one = replace(costs, windows_per_second=rate), replace(AFTER, readers=1)
        found = (
            shares(classes, one, cost, default_block(plan_of(classes).axes, classes)), shares(classes, one, cost),
            shares(classes, AFTER, cost),
        )  # fmt: skip
        cells = [f"{one.whole:.2f}, {one.middle:.2f}" for one in found]
        lines.append(f"| {classes} | {SEEN[classes]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


SEEN = {3: "0.83, 0.80 to 0.91", 16: "0.47, 0.48", 104: "0.26, 0.27"}
"""Whole run and middle of it, as measured on the H200 with blocks of a CPU and one reading thread."""


if __name__ == "__main__":
    print(table())
    print(reading_table())
    print(block_table())
