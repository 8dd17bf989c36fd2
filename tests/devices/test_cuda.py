"""What `CudaDevice` asks of the driver to record a graph, with a driver that puts down its calls."""

from __future__ import annotations

from types import SimpleNamespace
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
    device._driver, device.name = driver, "cuda:0"
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
