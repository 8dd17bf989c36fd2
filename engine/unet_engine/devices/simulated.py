"""A device of NumPy that knows what comes before what. For tests: it computes real results and refuses what would be a
race on a GPU.

Work is done as soon as it is put on a stream, so results are those of a correct order. Whether that order is
*guaranteed* is kept in vector clocks: every stream has a clock, an event remembers the clocks of its stream when it was
recorded, waiting takes the larger of both. An operation may read bytes only if every write to them lies in the past
that its stream knows of, and write them only if every read does, too. The host is one more clock, which learns from
`synchronize` alone.

`RaceError` names the operation, the memory and what it races with. After `seal`, memory of the device is allocated no
more.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unet_engine.devices.base import Event, Graph, Memory, Region, Stream, host_array
from unet_engine.errors import BackendError

Clock = dict[str, int]
"""Per stream, how many of its operations are known to be over."""


class RaceError(AssertionError):
    """Two accesses whose order nothing guarantees, or an allocation on the hot path."""


@dataclass
class _Access:
    """One operation's use of some bytes: the place of it in its stream's order."""

    stream: str
    tick: int
    start: int
    stop: int
    what: str


@dataclass
class SimulatedMemory:
    data: Any
    what: str
    kind: str
    freed: bool = False
    writes: list[_Access] = field(default_factory=list)
    reads: list[_Access] = field(default_factory=list)

    @property
    def address(self) -> int:
        return int(self.data.ctypes.data)

    @property
    def size(self) -> int:
        return int(self.data.size)


@dataclass
class SimulatedStream:
    name: str
    handle: int
    clock: Clock = field(default_factory=dict)


@dataclass
class SimulatedEvent:
    clock: Clock | None = None
    at: int | None = None
    """When it happened, in nanoseconds; only of a timed one."""


@dataclass(eq=False)
class SimulatedGraph:
    """Does the work whenever it is launched: what it reads is looked up then, as on a GPU."""

    device: SimulatedDevice
    what: str
    work: Callable[[int], None]

    def launch(self, stream: int) -> None:
        if self not in self.device.graphs:
            raise RaceError(f"{self.what} is launched after it was given back")
        self.device.counts["launch"] += 1
        self.work(stream)

    def close(self) -> None:
        self.device.graphs.remove(self)


HOST = "host"


class SimulatedDevice:
    """See above. `room` bytes of device memory; `counts` says how often each method was called."""

    name = "simulated"
    ordinal = 0
    capability: tuple[int, int] | None = None

    def __init__(self, room: int = 2**34) -> None:
        from unet_engine.devices import _halo_loop

        self.kernels = _halo_loop
        self.room, self.used, self.peak = room, 0, 0
        self.counts: Counter[str] = Counter()
        self.order: list[tuple[str, str]] = []
        """Stream and name of every operation, in the order they were put there."""
        self._lock = threading.RLock()
        self._sealed = False
        self._host = SimulatedStream(HOST, 0)
        self._known_streams: list[SimulatedStream] = []
        self._living: dict[int, SimulatedMemory] = {}
        self.graphs: list[SimulatedGraph] = []
        self._foreign: dict[int, SimulatedMemory] = {}

    def describe(self) -> str:
        return "simulated GPU"

    def use(self) -> None:
        """There is but one."""

    def seal(self) -> None:
        """From now on memory of the device must be that which is there."""
        self._sealed = True

    # --- memory ---

    def allocate(self, size: int, what: str) -> Memory:
        with self._lock:
            if self._sealed:
                raise RaceError(f"device memory allocated after warm-up: {size} bytes for {what}")
            if size > self.room - self.used:
                raise BackendError(
                    f"out of memory on {self.name}: {what} needs {size} bytes and {self.room - self.used} are free"
                )
            self.used += size
            self.peak = max(self.peak, self.used)
            return self._new(size, what, "device")

    def pinned(self, size: int, what: str) -> Memory:
        with self._lock:
            self.counts["pinned"] += 1
            return self._new(size, what, "pinned")

    def _new(self, size: int, what: str, kind: str) -> SimulatedMemory:
        # 0xA5 rather than zeros: what is read before it was written should show
        memory = SimulatedMemory(np.full(max(1, size), 0xA5, np.uint8), what, kind)
        self._living[memory.address] = memory
        return memory

    def free(self, memory: Memory) -> None:
        assert isinstance(memory, SimulatedMemory)
        with self._lock:
            if memory.freed:
                raise RaceError(f"{memory.what} is freed twice")
            memory.freed = True
            del self._living[memory.address]
            if memory.kind == "device":
                self.used -= memory.size

    def free_bytes(self) -> int:
        return self.room - self.used

    def total_bytes(self) -> int:
        return self.room

    @property
    def living(self) -> list[str]:
        """What memory and graphs are for that were not given back."""
        return sorted([memory.what for memory in self._living.values()] + [graph.what for graph in self.graphs])

    # --- order ---

    def stream(self, name: str) -> Stream:
        with self._lock:
            number = len(self._known_streams) + 1
            self._known_streams.append(SimulatedStream(f"{name}#{number}", number))
            return self._known_streams[-1]

    def event(self) -> Event:
        with self._lock:
            self.counts["event"] += 1
            return SimulatedEvent()

    def timed_event(self) -> Event:
        with self._lock:
            self.counts["timed event"] += 1
            return SimulatedEvent(at=0)

    def elapsed(self, first: Event, second: Event) -> float:
        assert isinstance(first, SimulatedEvent)
        assert isinstance(second, SimulatedEvent)
        with self._lock:
            for event in (first, second):
                if event.at is None or event.clock is None:
                    raise RaceError("the time of an event that is not timed, or was never recorded")
                if any(self._host.clock.get(name, 0) < tick for name, tick in event.clock.items()):
                    raise RaceError("the time of an event that may not have happened yet")
            assert first.at is not None
            assert second.at is not None
            return (second.at - first.at) / 1e9

    def record(self, event: Event, stream: Stream) -> None:
        assert isinstance(event, SimulatedEvent)
        assert isinstance(stream, SimulatedStream)
        with self._lock:
            event.clock = dict(stream.clock)
            if event.at is not None:
                self.counts["timed"] += 1
                event.at = time.perf_counter_ns()

    def wait(self, stream: Stream, event: Event) -> None:
        assert isinstance(event, SimulatedEvent)
        assert isinstance(stream, SimulatedStream)
        with self._lock:
            _learn(stream.clock, event.clock)

    def synchronize(self, event: Event) -> None:
        assert isinstance(event, SimulatedEvent)
        with self._lock:
            self.counts["synchronize"] += 1
            _learn(self._host.clock, event.clock)

    def drain(self) -> None:
        with self._lock:
            self.counts["drain"] += 1
            for stream in self._known_streams:
                _learn(self._host.clock, stream.clock)

    # --- work ---

    def copy(self, stream: Stream, target: Region, source: Region) -> None:
        if target.size != source.size:
            raise ValueError(f"{source.size} bytes do not fit {target.size}")
        with self._begun(stream, "copy", [source], [target]):
            _bytes(target)[...] = _bytes(source)

    def zero(self, stream: Stream, target: Region) -> None:
        with self._begun(stream, "zero", [], [target]):
            _bytes(target)[...] = 0

    def run(
        self, stream: Stream, what: str, work: Callable[[int], None], reads: Sequence[Region], writes: Sequence[Region]
    ) -> None:
        assert isinstance(stream, SimulatedStream)
        with self._begun(stream, what, reads, writes):
            work(stream.handle)

    def capture(self, stream: Stream, what: str, work: Callable[[int], None]) -> Graph:
        with self._lock:
            self.counts["capture"] += 1
            self.graphs.append(SimulatedGraph(self, what, work))
            return self.graphs[-1]

    def touch(self, region: Region, access: str) -> None:
        with self._lock:
            self._use(self._host, "the host", [region] if access == "r" else [], [region] if access == "w" else [])

    @contextmanager
    def _begun(self, stream: Stream, what: str, reads: Sequence[Region], writes: Sequence[Region]) -> Iterator[None]:
        """Check and note what an operation uses, then let it be done."""
        assert isinstance(stream, SimulatedStream)
        with self._lock:
            self.counts[what] += 1
            self.order.append((stream.name.partition("#")[0], what))
            _learn(stream.clock, self._host.clock)  # what the host knows to be over was over when it put this here
            self._use(stream, what, reads, writes)
            yield

    def _use(self, stream: SimulatedStream, what: str, reads: Sequence[Region], writes: Sequence[Region]) -> None:
        tick = stream.clock[stream.name] = stream.clock.get(stream.name, 0) + 1
        for region in (*reads, *writes):
            memory = self._known(region.memory)
            if memory.freed:
                raise RaceError(f"{what} uses {memory.what} after it was freed")
            self._check(stream.clock, what, "reads", memory.writes, region)
        for region in writes:
            self._check(stream.clock, what, "writes", self._known(region.memory).reads, region)
        # what this comes after needs no more checking: whoever comes after this comes after that
        for region in reads:
            memory = self._known(region.memory)
            memory.reads = [a for a in memory.reads if a.stream != stream.name or not _within(a, region)]
            memory.reads.append(_Access(stream.name, tick, region.start, region.start + region.size, what))
        for region in writes:
            memory = self._known(region.memory)
            memory.reads = [a for a in memory.reads if not _within(a, region)]
            memory.writes = [a for a in memory.writes if not _within(a, region)]
            memory.writes.append(_Access(stream.name, tick, region.start, region.start + region.size, what))

    def _known(self, memory: Memory) -> SimulatedMemory:
        """What is noted of it; memory that a library allocated is known from its first use on."""
        if isinstance(memory, SimulatedMemory):
            return memory
        return self._foreign.setdefault(memory.address, SimulatedMemory(None, "memory of a library", "foreign"))

    @staticmethod
    def _check(clock: Clock, what: str, verb: str, earlier: list[_Access], region: Region) -> None:
        for access in earlier:
            meets = access.start < region.start + region.size and region.start < access.stop
            if meets and clock.get(access.stream, 0) < access.tick:
                raise RaceError(
                    f"{what} {verb} bytes {region.start}:{region.start + region.size} of "
                    f"{getattr(region.memory, 'what', 'a library')} "
                    f"while {access.what} on {access.stream} may not be over"
                )

    def array(self, region: Region, shape: Sequence[int], dtype: str, strides: Sequence[int] | None = None) -> Any:
        return self.kernels.array(region.address, shape, dtype, strides)

    def close(self) -> None:
        """Nothing is left but what was not freed."""


def _bytes(region: Region) -> Any:
    data = host_array(region.memory)
    return data[region.start : region.start + region.size]


def _within(access: _Access, region: Region) -> bool:
    return region.start <= access.start and access.stop <= region.start + region.size


def _learn(clock: Clock, other: Clock | None) -> None:
    for name, tick in (other or {}).items():
        clock[name] = max(clock.get(name, 0), tick)
