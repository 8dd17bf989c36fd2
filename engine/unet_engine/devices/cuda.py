"""An NVIDIA GPU through NVIDIA's own Python package (cuda.core), which imports without one. No PyTorch, no CuPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unet_engine.devices.base import Event, Graph, Memory, Region, Stream
from unet_engine.errors import BackendError, first_line
from unet_engine.units import size as shown


@dataclass(frozen=True, eq=False)
class CudaMemory:
    buffer: Any
    address: int
    size: int
    is_pinned: bool = False


@dataclass(frozen=True, eq=False)
class CudaStream:
    stream: Any
    handle: int


@dataclass(frozen=True, eq=False)
class CudaEvent:
    event: Any


@dataclass(frozen=True, eq=False)
class CudaGraph:
    device: CudaDevice
    executable: Any

    def launch(self, stream: int) -> None:
        self.device.call("launching a graph", "cuGraphLaunch", self.executable, stream)

    def close(self) -> None:
        self.device.call("giving a graph back", "cuGraphExecDestroy", self.executable)


class CudaDevice:
    """See `unet_engine.devices.base.Device`."""

    def __init__(self, ordinal: int) -> None:
        from cuda import core
        from cuda.bindings import driver

        self._core, self._driver = core, driver
        self.ordinal, self.name = ordinal, f"cuda:{ordinal}"
        self.use()
        with self._said("opening it"):
            # plain page-locked memory: pools of it need a newer driver
            self._pinned = core.LegacyPinnedMemoryResource()
            self._setup = self._device.create_stream()
            # the pool that all share keeps what was freed: nobody else could have it, and `free_bytes` would be wrong
            self._pool = core.DeviceMemoryResource(ordinal, core.DeviceMemoryResourceOptions())
        kept = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        self.call("keeping no freed memory", "cuMemPoolSetAttribute", self._pool.handle, kept, driver.cuuint64_t(0))

    @cached_property
    def kernels(self) -> Any:
        from unet_engine.devices import _halo_cuda

        return _halo_cuda

    @contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """Errors of CUDA in our words. The cause is kept: it says whether memory ran out."""
        try:
            yield
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(
                f"{self.name}, {what}: {first_line(error)}; use a smaller --window, another --device, or --device cpu"
            ) from error

    @property
    def _device(self) -> Any:
        return self._core.Device(self.ordinal)

    def use(self) -> None:
        # every time: libraries make other devices current on the threads that call them
        with self._said("making it current"):
            self._device.set_current()

    @property
    def capability(self) -> tuple[int, int] | None:
        major, minor = self._device.compute_capability
        return int(major), int(minor)

    def describe(self) -> str:
        return "{} ({}.{})".format(self._device.name, *self.capability or ())

    # --- memory ---

    def allocate(self, size: int, what: str) -> Memory:
        self.use()
        try:
            buffer = self._pool.allocate(max(1, size), stream=self._setup)
            self._setup.sync()
        except Exception as error:
            raise BackendError(
                f"out of memory on {self.name}: {what} needs {shown(size)} and {shown(self.free_bytes())} are free "
                f"({first_line(error)}); use a smaller --window, or end what else runs there"
            ) from error
        return CudaMemory(buffer, int(buffer.handle), size)

    def pinned(self, size: int, what: str) -> Memory:
        self.use()
        with self._said(f"page-locking {shown(size)} for {what}"):
            buffer = self._pinned.allocate(max(1, size))
        return CudaMemory(buffer, int(buffer.handle), size, is_pinned=True)

    def free(self, memory: Memory) -> None:
        assert isinstance(memory, CudaMemory)
        self.use()
        memory.buffer.close()
        if not memory.is_pinned:
            with self._said("giving memory back"):
                self._setup.sync()  # the buffer goes back in the order of this stream
            self.call("giving memory back", "cuMemPoolTrimTo", self._pool.handle, 0)

    def free_bytes(self) -> int:
        return self._memory()[0]

    def total_bytes(self) -> int:
        return self._memory()[1]

    def _memory(self) -> tuple[int, int]:
        self.use()
        code, free, total = self._driver.cuMemGetInfo()
        if int(code) != 0:
            raise BackendError(
                f"{self.name} does not say how much memory is free (CUDA error {int(code)}); check nvidia-smi"
            )
        return int(free), int(total)

    # --- order ---

    def stream(self, name: str) -> Stream:
        self.use()
        with self._said(f"making the stream {name}"):
            stream = self._device.create_stream()  # does not wait for the default stream
        return CudaStream(stream, int(stream.handle))

    def event(self) -> Event:
        self.use()
        with self._said("making an event"):
            # the host sleeps rather than spins while it waits: reading and decoding want its cores
            return CudaEvent(self._device.create_event(self._core.EventOptions(blocking_sync=True)))

    def timed_event(self) -> Event:
        self.use()
        with self._said("making an event"):
            return CudaEvent(self._device.create_event(self._core.EventOptions(timing_enabled=True)))

    def elapsed(self, first: Event, second: Event) -> float:
        assert isinstance(first, CudaEvent)
        assert isinstance(second, CudaEvent)
        with self._said("reading an event's time"):
            return float(second.event - first.event) / 1e3

    def record(self, event: Event, stream: Stream) -> None:
        assert isinstance(event, CudaEvent)
        assert isinstance(stream, CudaStream)
        with self._said("recording an event"):
            stream.stream.record(event.event)

    def wait(self, stream: Stream, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        assert isinstance(stream, CudaStream)
        with self._said("waiting for an event"):
            stream.stream.wait(event.event)

    def synchronize(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        with self._said("computing"):
            event.event.sync()

    def drain(self) -> None:
        self.use()
        with self._said("computing"):
            self._device.sync()

    # --- work ---

    def copy(self, stream: Stream, target: Region, source: Region) -> None:
        if target.size != source.size:
            raise ValueError(f"{source.size} bytes do not fit {target.size}")
        if target.size:
            self.call("copying", "cuMemcpyAsync", target.address, source.address, target.size, _handle(stream))

    def zero(self, stream: Stream, target: Region) -> None:
        if target.size:
            self.call("clearing memory", "cuMemsetD8Async", target.address, 0, target.size, _handle(stream))

    def call(self, what: str, function: str, *arguments: Any) -> Any:
        """A call of the driver and what it gives: parts of buffers need no objects of their own so."""
        code, *given = getattr(self._driver, function)(*arguments)
        if int(code):
            said = self._driver.cuGetErrorString(code)[1]
            words = said.decode() if isinstance(said, bytes) else str(said)
            raise BackendError(
                f"{self.name}, {what}: {words}; use a smaller --window, another --device, or --device cpu"
            )
        return given[0] if given else None

    def run(
        self, stream: Stream, what: str, work: Callable[[int], None], reads: Sequence[Region], writes: Sequence[Region]
    ) -> None:
        with self._said(what):
            work(stream.handle)

    def capture(self, stream: Stream, what: str, work: Callable[[int], None]) -> Graph:
        self.use()
        # of this thread alone: others go on allocating meanwhile
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call(what, "cuStreamBeginCapture", _handle(stream), mode)
        try:
            with self._said(what):
                work(stream.handle)
        except BaseException:
            with suppress(BackendError):  # the stream must not be left capturing; the first error is the one to tell
                self.call(what, "cuGraphDestroy", self.call(what, "cuStreamEndCapture", _handle(stream)))
            raise
        graph = self.call(what, "cuStreamEndCapture", _handle(stream))
        try:
            return CudaGraph(self, self.call(what, "cuGraphInstantiate", graph, 0))
        finally:
            self.call(what, "cuGraphDestroy", graph)

    def touch(self, region: Region, access: str) -> None:
        """Nobody watches."""

    def array(self, region: Region, shape: Sequence[int], dtype: str, strides: Sequence[int] | None = None) -> Any:
        return self.kernels.array(region.address, shape, dtype, strides, device=self.ordinal)

    def close(self) -> None:
        self.use()
        self._setup.close()
        self._pool.close()


def _handle(stream: Stream) -> Any:
    assert isinstance(stream, CudaStream)
    return stream.stream.handle
