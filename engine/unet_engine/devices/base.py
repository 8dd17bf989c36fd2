"""What the device pipeline asks of a device: memory, streams, events, copies, kernels. Everything but `synchronize`
returns at once.

host      --enqueue-->  stream "in"       copies from pinned memory
                        stream "compute"  kernels and network          events order what lies on different streams
                        stream "out"      kernels, copies to pinned memory
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Memory(Protocol):
    """A piece of device memory, or of page-locked host memory."""

    @property
    def address(self) -> int: ...

    @property
    def size(self) -> int:
        """Bytes."""


class Stream(Protocol):
    @property
    def handle(self) -> int:
        """``cudaStream_t`` as an integer."""


class Event(Protocol):
    """A point in the order of a stream."""


class Graph(Protocol):
    """Work that was recorded once, on memory of fixed addresses, to be put on a stream again and again in one call."""

    def launch(self, stream: int) -> None:
        """Put it on the stream of this handle. Raises `BackendError`."""

    def close(self) -> None:
        """Give it back. None of it may be under way."""


@dataclass(frozen=True, slots=True)
class Region:
    """Some bytes of a memory: what is copied, read or written."""

    memory: Memory
    start: int
    size: int

    @classmethod
    def of(cls, memory: Memory) -> Region:
        return cls(memory, 0, memory.size)

    @property
    def address(self) -> int:
        return self.memory.address + self.start

    def part(self, start: int, size: int) -> Region:
        """`size` bytes of it from `start` on. Raises `ValueError` where they leave it."""
        if start < 0 or size < 0 or start + size > self.size:
            raise ValueError(f"bytes {start}:{start + size} leave a region of {self.size}")
        return Region(self.memory, self.start + start, size)


class Device(Protocol):
    """One GPU. Methods may be called from several threads; a failing one raises `BackendError` with the device's own
    words."""

    name: str
    """``cuda:0``, or ``simulated``."""
    ordinal: int

    @property
    def kernels(self) -> Any:
        """Module with the functions of ``_halo_cuda.pyi``. Only the device pipeline asks for it: it is not built
        everywhere."""

    def describe(self) -> str:
        """Product and compute capability, e.g. ``NVIDIA H200 (9.0)``."""

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability, major and minor; None where it is no real GPU."""

    def use(self) -> None:
        """Make the device current on this thread; call before anything else on a new thread."""

    def allocate(self, size: int, what: str) -> Memory:
        """Device memory of `size` bytes. Raises `BackendError` saying "out of memory", what for, and how much is
        free."""

    def pinned(self, size: int, what: str) -> Memory:
        """Page-locked host memory of `size` bytes."""

    def free(self, memory: Memory) -> None:
        """Give memory of either kind back. Nothing may be under way in it."""

    def free_bytes(self) -> int:
        """Device memory that is free now."""

    def total_bytes(self) -> int: ...

    def stream(self, name: str) -> Stream: ...

    def event(self) -> Event: ...

    def timed_event(self) -> Event:
        """One that remembers when it happened, which costs the device a little more."""

    def elapsed(self, first: Event, second: Event) -> float:
        """Seconds from one timed event to another, on whatever streams; the host has waited for both."""

    def record(self, event: Event, stream: Stream) -> None:
        """`event` is now what was put on `stream` so far."""

    def wait(self, stream: Stream, event: Event) -> None:
        """What is put on `stream` from now on begins after `event`. One that was never recorded holds nothing up."""

    def synchronize(self, event: Event) -> None:
        """Wait on the host."""

    def drain(self) -> None:
        """Wait for everything; before memory is freed, and on the way out."""

    def copy(self, stream: Stream, target: Region, source: Region) -> None:
        """Bytes from pinned to device memory, back, or inside the device; both of one size."""

    def zero(self, stream: Stream, target: Region) -> None: ...

    def run(
        self, stream: Stream, what: str, work: Callable[[int], None], reads: Sequence[Region], writes: Sequence[Region]
    ) -> None:
        """Let `work` put a kernel or a network on the stream, whose handle it is given. `reads` and `writes` are for
        the simulation."""

    def capture(self, stream: Stream, what: str, work: Callable[[int], None]) -> Graph:
        """What `work` would put on the stream, whose handle it is given, recorded and not done."""

    def touch(self, region: Region, access: str) -> None:
        """The host is about to read (``r``) or write (``w``) pinned memory. Nothing but the simulation looks at it."""

    def array(self, region: Region, shape: Sequence[int], dtype: str, strides: Sequence[int] | None = None) -> Any:
        """The region as an array for `kernels`; strides in elements."""

    def close(self) -> None: ...


def host_array(memory: Memory, owner: object = None) -> npt.NDArray[np.uint8]:
    """Pinned memory as bytes. The array keeps `owner` alive, by default the memory."""
    return np.asarray(_Bytes(memory, owner))


class _Bytes:
    def __init__(self, memory: Memory, owner: object) -> None:
        self.owner = owner if owner is not None else memory
        self.__array_interface__ = {
            "version": 3,
            "shape": (memory.size,),
            "typestr": "|u1",
            "data": (memory.address, False),
        }
