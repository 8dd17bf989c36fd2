"""The contract between the device pipeline and a library that runs networks on a GPU: device memory in, device memory out.

A batch is put into `input`, `run` queues the network on the stream that the back end was opened with, and the answer lies in `output` once
the stream has come that far. Nothing passes through the host, and nothing is waited for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from unet_engine.backends.base import Setup, check_output
from unet_engine.devices.base import Device, Memory, Region, Stream


@dataclass(frozen=True)
class DeviceTensor:
    """A batch in device memory: (batch, channels, *spatial), of any memory order."""

    region: Region
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements."""
    dtype: str
    """``float32``, ``float16`` or ``bfloat16``."""


@dataclass(frozen=True)
class Borrowed:
    """Memory that a library allocated and keeps."""

    address: int
    size: int


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an array in C order, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


class DeviceBackend(ABC):
    """Runs one network on windows of one size on one device. `run` may be called from one thread at a time."""

    name: str
    version: str
    input: DeviceTensor
    output: DeviceTensor
    recorded: bool = False
    """Whether a batch is one CUDA graph."""
    note: str = ""
    """What the user should know of how it runs."""

    def __init__(self, setup: Setup, device: Device, stream: Stream) -> None:
        self.setup, self.device, self.stream = setup, device, stream
        self.free_before = device.free_bytes()
        """Device memory that was free before the network was loaded."""

    @abstractmethod
    def run(self, stream: int) -> None:
        """Queue the network on `stream`, the handle of the one it was opened with. Raises `BackendError`."""

    @abstractmethod
    def close(self) -> None:
        """Give back memory. Nothing may be under way."""

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
