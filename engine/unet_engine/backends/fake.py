"""No network: for tests, for planning at scale and for measuring what everything but the network costs.

A file ``NAME.fake.toml`` has a table ``[spec]`` with the keys of `ModelSpec`, and optionally

    latency_ms            how long a window takes
    jitter                by what part of it windows differ: the deviation of a normal distribution, the same every time
    fail_at               number of the window, counted from 1, at which inference fails
    out_of_memory_above   windows at once that a device has memory for
    kill_at               number of the window at which the process is killed, as by a system that has no memory left
    hang_once             file; the first window of the first process that finds it missing makes it and waits until
                          something is in it

The network it stands for is the identity: output channel k is input channel ``k % channels_in``, cropped by the
margin. On the simulated device it computes as on the CPU, so that bytes can be compared.
"""

from __future__ import annotations

import os
import signal
import time
import tomllib
from pathlib import Path

import numpy as np

from unet_engine.backends.base import Array, Setup, ThreadedBackend
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.device_tensor import DeviceTensor
from unet_engine.devices.base import Device, Stream, host_array
from unet_engine.errors import BackendError


class FakeBackend(ThreadedBackend):
    name = "fake"
    version = "fake 1"

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        settings = tomllib.loads(setup.model.path.read_text())
        self._latency = float(settings.get("latency_ms", 0)) / 1000
        self._jitter = float(settings.get("jitter", 0))
        self._fail_at = int(settings.get("fail_at", 0))
        self._room = int(settings.get("out_of_memory_above", 0))
        self._kill_at = int(settings.get("kill_at", 0))
        self._hang = settings.get("hang_once")
        self._calls = 0
        self._failing, self._asked = [False] * self.slots, [0] * self.slots
        self._outputs = [np.zeros(setup.output_shape, np.float32) for _ in range(self.slots)]

    def start(self, slot: int) -> None:
        self._calls += 1
        if self._calls == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self._failing[slot], self._asked[slot] = self._calls == self._fail_at, self._calls
        super().start(slot)

    def _run(self, slot: int) -> Array:
        if self._failing[slot]:
            raise BackendError(
                f"take fail_at out of its file; the fake network fails at window {self._fail_at}, as its file asks"
            )
        if 0 < self._room < self.setup.threads * self.setup.batch:
            raise MemoryError(f"the fake device has memory for {self._room} windows at once")
        if self._hang:
            self._hang_once(Path(self._hang))
        begun = time.perf_counter()
        spec = self.setup.model.spec
        inside = tuple(slice(m, n - m) for m, n in zip(spec.margin, self.setup.window, strict=True))
        out = self._outputs[slot]
        for k in range(spec.channels_out):
            out[:, k] = self._inputs[slot][:, k % spec.channels_in][(slice(None), *inside)]
        wanted = self._latency
        if self._jitter:
            wanted *= max(0.0, np.random.default_rng(self._asked[slot]).normal(1.0, self._jitter))
        time.sleep(max(0.0, wanted - (time.perf_counter() - begun)))
        return out

    @staticmethod
    def _hang_once(mark: Path) -> None:
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        while not mark.stat().st_size:
            time.sleep(0.05)


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
            raise BackendError(
                f"take fail_at out of its file; the fake network fails at window {self._fail_at}, as its file asks"
            )
        if 0 < self._room < self.setup.batch:
            raise BackendError(f"out of memory: the fake device has memory for {self._room} windows at once")
        spec, source, target = self.setup.model.spec, values_of(self.input), values_of(self.output)
        inside = tuple(slice(m, n - m) for m, n in zip(spec.margin, self.setup.window, strict=True))
        for k in range(spec.channels_out):
            target[:, k] = source[:, k % spec.channels_in][(slice(None), *inside)]
        time.sleep(self._latency * self.setup.batch)

    def close(self) -> None:
        for memory in (self._in, self._out):
            self.device.free(memory)


def values_of(tensor: DeviceTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """What the tensor holds in memory of the simulated device, float32, of its shape; a view, which may be written."""
    flat = host_array(tensor.region.memory)[: tensor.region.size].view(np.float32)
    return flat.reshape(tensor.shape)
