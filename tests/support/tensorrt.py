"""TensorRT without its library: an engine that doubles, on a simulated device that remembers the order of things."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unet_engine.backends import tensorrt, tensorrt_api
from unet_engine.backends.base import Setup
from unet_engine.devices.simulated import SimulatedDevice
from unet_engine.model.file import open_model
from unet_engine.model.shipped import shipped_model


class Remembering(SimulatedDevice):
    """Puts down in `seen` when it was waited for, when something was recorded, and when that was launched."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def synchronize(self, event: Any) -> None:
        self.seen.append("wait")
        super().synchronize(event)

    def capture(self, stream: Any, what: str, work: Any) -> Any:
        self.seen.append("capture")

        def noted(handle: int) -> None:
            self.seen.append("launch")
            work(handle)

        return super().capture(stream, what, noted)


class DoublingContext:
    """An execution context of a network that doubles, on memory by address."""

    def __init__(self, shape: tuple[int, ...], device: Remembering) -> None:
        self.shape, self.device = shape, device
        self.addresses: dict[str, int] = {}
        self.scratch = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        assert shape == self.shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def update_device_memory_size_for_shapes(self) -> int:
        return 128

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = address

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch
        self.device.seen.append("enqueue")
        source, target = (
            np.from_dlpack(self.device.kernels.array(self.addresses[n], self.shape, "float32")) for n in ("in", "out")
        )
        np.multiply(source, 2, out=target)
        return True


class RuntimeCache:
    """What TensorRT-RTX compiled, as bytes."""

    def __init__(self) -> None:
        self.held = b""

    def deserialize(self, data: bytes) -> None:
        self.held = data

    def serialize(self) -> bytes:
        return self.held or b"compiled"


class RuntimeConfig:
    """Of TensorRT-RTX: remembers what it was given."""

    dynamic_shapes_kernel_specialization_strategy = "LAZY"
    strategy: Any = None
    cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache


def as_rtx(monkeypatch: pytest.MonkeyPatch) -> list[RuntimeConfig]:
    """After `doubling`: the same as TensorRT-RTX. Returns the configurations that contexts are made with."""
    fake = tensorrt_api.module()
    made: list[RuntimeConfig] = []
    engine = fake.Runtime(None).deserialize_cuda_engine(b"")
    plain = engine.create_execution_context

    def context(config: RuntimeConfig) -> DoublingContext:
        made.append(config)
        found: DoublingContext = plain(config.strategy)
        return found

    engine.create_execution_context, engine.create_runtime_config = context, RuntimeConfig
    fake.__name__ = "tensorrt_rtx"
    fake.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")
    return made


def doubling(monkeypatch: pytest.MonkeyPatch) -> tuple[Setup, list[DoublingContext], Remembering]:
    """What a TensorRT back end that doubles is opened with, its device, and the contexts that are made for it."""
    cells = open_model(shipped_model("cells_3d.onnx"))
    spec = cells.spec.model_copy(update={"channels_out": 1, "activation": "none", "classes": (), "empty": None})
    setup = Setup(replace(cells, spec=spec), (8, 8, 8), "simulated")
    contexts: list[DoublingContext] = []
    device = Remembering()

    def context(strategy: Any) -> DoublingContext:
        contexts.append(DoublingContext(setup.input_shape, device))
        return contexts[-1]

    engine = SimpleNamespace(
        create_execution_context=context,
        num_io_tensors=2,
        get_tensor_name=lambda i: ("out", "in")[i],
        get_tensor_mode=lambda name: name,
    )
    fake = SimpleNamespace(
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: engine),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        __version__="0",
        __name__="tensorrt",
    )
    monkeypatch.setattr(tensorrt_api, "module", lambda: fake)
    monkeypatch.setattr(tensorrt_api, "logger", lambda: SimpleNamespace(said=lambda: ""))
    monkeypatch.setattr(tensorrt, "engine_for", lambda *_: b"")
    monkeypatch.setattr("unet_engine.backends.libraries.open_device", lambda name: device)
    return setup, contexts, device
