"""The fake network on a simulated device: see `unet_engine.backends.fake`, whose files it takes. It computes, so that bytes can be compared."""

from __future__ import annotations

import time
import tomllib

import numpy as np

from unet_engine.backends.base import Setup
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.device_tensor import DeviceTensor
from unet_engine.devices.base import Device, Stream, host_array
from unet_engine.errors import BackendError


class FakeDevice(DeviceBackend):
    name = "fake"
    version = "fake 1"

    def __init__(self, setup: Setup, device: Device, stream: Stream) -> None:
        super().__init__(setup, device, stream)
        settings = tomllib.loads(setup.model.path.read_text())
        self._fail_at = int(settings.get("fail_at", 0))
        self._room = int(settings.get("out_of_memory_above", 0))
        self._latency = float(settings.get("latency_ms", 0)) / 1000
        self._windows = 0
        self.input, self._in = self._allocated(setup.input_shape, "float32", "input of the network")
        self.output, self._out = self._allocated(setup.output_shape, "float32", "output of the network")
        self.recorded = True

    def run(self, stream: int) -> None:
        self._windows += self.setup.batch
        if 0 < self._fail_at <= self._windows:
            raise BackendError(f"the fake network fails at window {self._fail_at}, as its file asks")
        if 0 < self._room < self.setup.batch:
            raise BackendError(f"out of memory: the fake device has memory for {self._room} windows at once")
        spec, source, target = self.setup.model.spec, _values(self.input), _values(self.output)
        inside = tuple(slice(m, n - m) for m, n in zip(spec.margin, self.setup.window, strict=True))
        for k in range(spec.channels_out):
            target[:, k] = source[:, k % spec.channels_in][(slice(None), *inside)]
        time.sleep(self._latency * self.setup.batch)

    def close(self) -> None:
        for memory in (self._in, self._out):
            self.device.free(memory)


def _values(tensor: DeviceTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    flat = host_array(tensor.region.memory)[: tensor.region.size].view(np.float32)
    return flat.reshape(tensor.shape)
