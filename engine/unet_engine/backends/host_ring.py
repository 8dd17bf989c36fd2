"""A network on a GPU as a back end of the host: a ring of page-locked memory around any `DeviceBackend`.

    start(slot):  host --copy--> staged --copy--> input, network, output --copy--> staged --copy--> host
    streams:             "in"             "compute"                                         "out"

`result(slot)` waits for the last copy. One network computes slot after slot, while the copies of other slots go on.
Events order the streams; what a slot holds is used again once the host has waited for it. The gate judges, `bench`
times and `doctor` tries through it the very network that the device pipeline runs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from unet_engine.backends.base import Array, Backend
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.device_tensor import DeviceTensor
from unet_engine.devices.base import Event, Memory, Region, host_array
from unet_engine.errors import BackendError

SLOTS = 4
"""Batches in flight: one computes, one is copied in, one out, one is filled."""


@dataclass
class _End:
    """What a slot has of the network's input, or of its output."""

    pinned: Region
    staged: Region
    raw: Array
    """The pinned memory as the network has it: its type and its order in memory."""
    values: Array
    """The batch as the caller has it: `raw` itself, or beside it where that is of another type or order."""


@dataclass
class _Slot:
    input: _End
    output: _End
    copied: Event
    computed: Event
    done: Event
    started: bool = False
    failed: BackendError | None = None


class HostRing(Backend):
    """Takes over the network and closes it. Memory is all there from the beginning; nothing is allocated per batch, and
    nothing converted where the network takes and gives float32 in C order."""

    def __init__(self, network: DeviceBackend, slots: int = SLOTS) -> None:
        super().__init__(network.setup)
        self.name, self.version, self.note, self.slots = network.name, network.version, network.note, slots
        self._network, self._device = network, network.device
        self._memory: list[Memory] = []
        self._inward, self._out = self._device.stream("in"), self._device.stream("out")
        try:
            self._ring = [self._slot() for _ in range(self.slots)]
        except BaseException:
            self.close()
            raise

    def _slot(self) -> _Slot:
        given, answer = self._end(self._network.input, "input"), self._end(self._network.output, "output")
        if given.raw.dtype != np.float32 or not given.raw.flags.c_contiguous:
            given.values = np.zeros(given.raw.shape, np.float32)
        if not answer.raw.flags.c_contiguous:  # channels last: sums are added up along rows
            answer.values = np.zeros(answer.raw.shape, answer.raw.dtype)
        event = self._device.event
        return _Slot(given, answer, event(), event(), event())

    def _end(self, tensor: DeviceTensor, what: str) -> _End:
        pinned = self._kept(self._device.pinned(tensor.region.size, f"{what} of a slot"))
        staged = self._kept(self._device.allocate(tensor.region.size, f"{what} of a slot"))
        flat = host_array(pinned.memory)[: pinned.size]
        flat[...] = 0
        dtype = _dtype(tensor.dtype)
        strides = tuple(dtype.itemsize * s for s in tensor.strides)
        whole = flat[: flat.size // dtype.itemsize * dtype.itemsize].view(dtype)
        raw = np.lib.stride_tricks.as_strided(whole, tensor.shape, strides)
        return _End(pinned, staged, raw, raw)

    def _kept(self, memory: Memory) -> Region:
        self._memory.append(memory)
        return Region.of(memory)

    def input(self, slot: int) -> Array:
        return self._ring[slot].input.values

    def start(self, slot: int) -> None:
        s, device = self._ring[slot], self._device
        device.use()  # the thread that fills slots need not be the one that opened them
        s.started, s.failed = True, None
        device.touch(s.input.pinned, "w")
        if s.input.values is not s.input.raw:
            np.copyto(s.input.raw, s.input.values, casting="unsafe")
        try:
            self._queue(s)
        except BackendError as error:
            s.failed = error

    def _queue(self, s: _Slot) -> None:
        """Put a batch on the streams; nothing is waited for."""
        device, network, compute = self._device, self._network, self._network.stream
        device.copy(self._inward, s.input.staged, s.input.pinned)
        device.record(s.copied, self._inward)
        device.wait(compute, s.copied)
        device.copy(compute, network.input.region, s.input.staged)
        device.run(compute, f"{self.name} network", network.run, [network.input.region], [network.output.region])
        device.copy(compute, s.output.staged, network.output.region)
        device.record(s.computed, compute)
        device.wait(self._out, s.computed)
        device.copy(self._out, s.output.pinned, s.output.staged)
        device.record(s.done, self._out)

    def result(self, slot: int) -> Array:
        s = self._ring[slot]
        if not s.started:
            raise BackendError(f"slot {slot} was not started")
        if s.failed is not None:
            self._device.drain()  # of what was queued before it failed
            raise s.failed
        self._device.synchronize(s.done)
        self._device.touch(s.output.pinned, "r")
        if s.output.values is not s.output.raw:
            s.output.values[...] = s.output.raw
        return s.output.values

    def touch(self, slot: int) -> None:
        """It is all there: page-locked memory is never put off."""

    def leave(self) -> None:
        """Give back what is the ring's own; the network stays open."""
        self._device.use()
        with contextlib.suppress(BackendError):  # of a device that failed, nothing is to be had but its memory
            self._device.drain()
        self._ring = []
        for memory in self._memory:
            self._device.free(memory)
        self._memory = []

    def close(self) -> None:
        self.leave()
        self._network.close()


def _dtype(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # NumPy has none

    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found
