"""The contract between the device pipeline and a library that runs networks on a GPU: device memory in, device memory
out.

A batch is put into `input`, `run` queues the network on the stream that the back end was opened with, and the answer
lies in `output` once the stream has come that far. Nothing passes through the host, and nothing is waited for.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any

from unet_engine.backends.base import NO_TRIAL, ONE_BY_ONE, Network, Setup, Trial, check_output
from unet_engine.backends.batch_probe import answers
from unet_engine.backends.device_tensor import DeviceTensor, contiguous
from unet_engine.backends.device_trial import fill, rows
from unet_engine.devices.base import Device, Memory, Region, Stream
from unet_engine.plan.device_memory import DeviceMemory, device_memory, fit_device, shelves
from unet_engine.plan.memory import Sizes
from unet_engine.plan.plan import Plan


class DeviceBackend(Network):
    """Runs one network on windows of one size on one device. `run` may be called from one thread at a time."""

    input: DeviceTensor
    output: DeviceTensor
    recorded: bool = False
    """Whether a batch is one CUDA graph."""

    def __init__(self, setup: Setup, device: Device, stream: Stream) -> None:
        super().__init__(setup)
        self.device, self.stream = device, stream
        self.free_before = device.free_bytes()
        """Device memory that was free before the network was loaded."""

    @abstractmethod
    def run(self, stream: int) -> None:
        """Queue the network on `stream`, the handle of the one it was opened with. Raises `BackendError`."""

    @property
    def taken(self) -> int:
        """Bytes of device memory that opening and warming up took."""
        return max(0, self.free_before - self.device.free_bytes())

    def warm_up(self, trial: Trial = NO_TRIAL) -> float:
        """The first batch loads kernels and takes memory; the second is timed."""
        device, seconds = self.device, 0.0
        device.use()  # this thread need not be the one that opened it
        windows = trial.cut(self.setup.window)
        if windows:
            fill(device, self.stream, self.input, windows)
        for _ in range(2):
            begun, done = time.perf_counter(), device.event()
            device.run(self.stream, "warm-up", self.run, [self.input.region], [self.output.region])
            device.record(done, self.stream)
            device.synchronize(done)
            seconds = time.perf_counter() - begun
        if windows:
            for answer in rows(device, self.stream, self.output, min(self.setup.batch, len(windows))):
                trial.look(answer)
        return seconds / self.setup.batch

    def identity(self) -> dict[str, Any]:
        return {"batch": self.setup.batch}

    def answers(self) -> frozenset[str]:
        if self.setup.batch == 1:
            return ONE_BY_ONE
        return answers(self.device, self.stream, self.run, (self.input, self.output), self.setup.batch)

    def fitted(self, plan: Plan, sizes: Sizes) -> Plan:
        return fit_device(plan, sizes, self.taken, self.device.free_bytes() + self.taken)

    def device_memory(self, plan: Plan, sizes: Sizes) -> DeviceMemory:
        return device_memory(plan, sizes, self.taken)

    def shelves(self, plan: Plan, sizes: Sizes) -> tuple[int, ...]:
        return shelves(plan, sizes, self.taken, self.device.free_bytes() + self.taken)

    def _check_output(self, shape: tuple[int, ...]) -> None:
        check_output(self.setup, shape)

    def _allocated(self, shape: tuple[int, ...], dtype: str, what: str) -> tuple[DeviceTensor, Memory]:
        """A batch in C order in memory of the device, cleared."""
        count = {"float32": 4}.get(dtype, 2)
        for n in shape:
            count *= n
        memory = self.device.allocate(count, what)
        self.device.zero(self.stream, Region.of(memory))
        return DeviceTensor(Region.of(memory), shape, contiguous(shape), dtype), memory
