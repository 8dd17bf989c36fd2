"""What `CudaDevice` asks of the driver, with a driver that puts down its calls."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unet_engine.devices.cuda import CudaDevice, CudaStream
from unet_engine.errors import BackendError


class Driver:
    """Every call succeeds but the one named; `calls` has function and arguments."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread")

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[tuple[Any, ...]] = []

    def cuGetErrorString(self, code: int) -> tuple[int, bytes]:  # the driver's own name
        return 0, b"no such luck"

    def __getattr__(self, name: str) -> Any:
        given = {"cuStreamEndCapture": ("graph",), "cuGraphInstantiate": ("executable",)}.get(name, ())

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return (1 if name == self.failing else 0, *given)

        return call


def opened(driver: Driver) -> tuple[CudaDevice, CudaStream]:
    device = CudaDevice.__new__(CudaDevice)
    device._driver, device.name, device.ordinal = driver, "cuda:0", 0
    device._core = SimpleNamespace(Device=lambda ordinal: SimpleNamespace(set_current=lambda: None))
    return device, CudaStream(SimpleNamespace(handle="stream"), 7)


def test_work_is_recorded_on_its_stream_and_launched_in_one_call() -> None:
    driver, put = Driver(), []
    device, stream = opened(driver)
    graph = device.capture(stream, "recording", put.append)
    assert put == [7]
    graph.launch(9)
    graph.close()
    assert driver.calls == [
        ("cuStreamBeginCapture", "stream", "thread"),
        ("cuStreamEndCapture", "stream"),
        ("cuGraphInstantiate", "graph", 0),
        ("cuGraphDestroy", "graph"),
        ("cuGraphLaunch", "executable", 9),
        ("cuGraphExecDestroy", "executable"),
    ]


def test_a_stream_is_not_left_recording_where_the_work_fails() -> None:
    driver = Driver()
    device, stream = opened(driver)

    def work(handle: int) -> None:
        raise RuntimeError("the library gives up")

    with pytest.raises(BackendError, match="cuda:0, recording: the library gives up"):
        device.capture(stream, "recording", work)
    assert [name for name, *_ in driver.calls] == ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphDestroy"]


def test_the_drivers_own_words_are_told() -> None:
    device, stream = opened(Driver("cuGraphInstantiate"))
    with pytest.raises(BackendError, match="cuda:0, recording: no such luck; use a smaller --window"):
        device.capture(stream, "recording", lambda handle: None)


class Machine:
    """cuda.core and its driver for two GPUs, as far as `CudaDevice` asks: memory of pools, and which GPU is current on
    which thread. `wrong` has the calls that were made on a thread where another one was."""

    def __init__(self) -> None:
        self.current = threading.local()
        self.wrong: list[str] = []
        self.kept: dict[str, int] = {}
        """By pool, bytes that were freed and not given back."""
        self.held = 0
        machine = self

        class Pool:
            def __init__(self, ordinal: int, options: object) -> None:
                self.handle, self.ordinal = f"pool of {ordinal}", ordinal

            def allocate(self, size: int, stream: object) -> Any:
                machine.on(self.ordinal, "allocate")
                machine.held += size

                def close() -> None:
                    machine.held -= size
                    machine.kept[self.handle] = machine.kept.get(self.handle, 0) + size

                return SimpleNamespace(handle=4096, close=close)

            def close(self) -> None:
                """Nothing is left."""

        class Device:
            def __init__(self, ordinal: int) -> None:
                self.ordinal, self.name, self.compute_capability = ordinal, "GPU", (9, 0)

            def set_current(self) -> None:
                machine.current.ordinal = self.ordinal

            def create_stream(self) -> Any:
                machine.on(self.ordinal, "create_stream")
                return SimpleNamespace(handle=self.ordinal, sync=lambda: None, close=lambda: None)

            def create_event(self, options: object) -> Any:
                machine.on(self.ordinal, "create_event")
                return SimpleNamespace()

            def sync(self) -> None:
                machine.on(self.ordinal, "sync")

        self.core = ModuleType("cuda.core")
        pinned = SimpleNamespace(allocate=lambda size: SimpleNamespace(handle=1, close=lambda: None))
        vars(self.core).update(
            Device=Device, DeviceMemoryResource=Pool, DeviceMemoryResourceOptions=lambda: None,
            LegacyPinnedMemoryResource=lambda: pinned, EventOptions=lambda **options: None,
        )  # fmt: skip

    def on(self, ordinal: int, what: str) -> None:
        if getattr(self.current, "ordinal", None) != ordinal:
            self.wrong.append(what)

    def driver(self) -> ModuleType:
        found = ModuleType("cuda.bindings.driver")

        def trim(pool: str, least: int) -> tuple[int]:
            self.kept[pool] = least
            return (0,)

        vars(found).update(
            CUmemPool_attribute=SimpleNamespace(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD="threshold"),
            CUstreamCaptureMode=Driver.CUstreamCaptureMode, cuuint64_t=int,
            cuMemPoolSetAttribute=lambda *given: (0,), cuMemPoolTrimTo=trim,
            cuMemGetInfo=lambda: (0, 2**30 - self.held - sum(self.kept.values()), 2**30),
        )  # fmt: skip
        return found


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    driver, bindings, cuda = machine.driver(), ModuleType("cuda.bindings"), ModuleType("cuda")
    vars(bindings)["driver"], vars(cuda)["core"] = driver, machine.core
    for name, module in (
        ("cuda", cuda), ("cuda.core", machine.core), ("cuda.bindings", bindings), ("cuda.bindings.driver", driver),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    return machine


def test_freed_memory_is_free(two_gpus: Machine) -> None:
    """What the process keeps for itself is no longer to be had by others, and is no measured peak."""
    device = CudaDevice(0)
    before = device.free_bytes()
    memory = device.allocate(2**20, "sums")
    assert device.free_bytes() == before - 2**20
    device.free(memory)
    assert device.free_bytes() == before
    device.close()


CALLS: dict[str, Callable[[CudaDevice], object]] = {
    "allocate": lambda device: device.allocate(8, "sums"), "stream": lambda device: device.stream("in"),
    "event": lambda device: device.event(), "timed event": lambda device: device.timed_event(),
    "drain": lambda device: device.drain(),
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
def test_the_gpu_is_current_on_every_thread_that_asks_it(two_gpus: Machine, what: str) -> None:
    """Also where a library made another one current there meanwhile."""
    second = CudaDevice(1)
    CudaDevice(0).use()
    CALLS[what](second)
    thread = threading.Thread(target=lambda: CALLS[what](second))
    thread.start()
    thread.join()
    assert not two_gpus.wrong


def test_an_old_cuda_core_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_engine.devices import opening

    monkeypatch.setattr(opening, "find_spec", lambda name: name)
    for version, said in (
        ("0.4.2", "cuda-core 0.4.2 is older than 1.0; run: pip install -U"),
        ("1.0.0", ""),
        ("1.2", ""),
    ):
        monkeypatch.setattr(opening, "version_of", lambda name, version=version: version)
        assert opening.unreachable().startswith(said)
        assert bool(opening.unreachable()) == bool(said)
