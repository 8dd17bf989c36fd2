"""Opening a network for a run, and what to do where memory runs out: half the batch, then a smaller window, then the figures."""

from __future__ import annotations

import time
from dataclasses import replace

from unet_engine.backends.base import Backend, Setup
from unet_engine.backends.device import DeviceBackend
from unet_engine.backends.libraries import open_backend, open_on_device
from unet_engine.backends.out_of_memory import is_out_of_memory
from unet_engine.devices.opening import is_pipelined
from unet_engine.errors import PlanError, first_line
from unet_engine.plan.device_memory import default_batch
from unet_engine.units import Tell, times

Network = Backend | DeviceBackend


def open_network(name: str, setup: Setup) -> Network:
    """The network on the device that `setup` names: for the device pipeline where that runs, for the host otherwise."""
    return open_on_device(name, setup) if is_pipelined(setup.device) else open_backend(name, setup)


def open_fitting(
    name: str, setup: Setup, windows: int, tell: Tell | None, limit: int | None = None
) -> tuple[Network, float]:
    """The network with the largest batch that the device has memory for, warm, and its seconds per window. Blocks have `windows` windows.
    No batch is larger than `limit`.

    Where not even one window fits, the next smaller admissible window is tried if there is a `tell`; it is None where
    the user chose the window. Raises `PlanError` with the figures where nothing fits.
    """
    if not is_pipelined(setup.device):
        backend: Network = open_backend(name, setup)
        return backend, warm_up(backend)
    setup = replace(setup, batch=default_batch(setup.window, windows, limit))
    while True:
        opened: DeviceBackend | None = None
        try:
            opened = open_on_device(name, setup)
            return opened, warm_up(opened)
        except Exception as error:
            if opened:
                opened.close()
            if not is_out_of_memory(error):
                raise
            said = first_line(error)
        if setup.batch > 1:
            setup = replace(setup, batch=-(-setup.batch // 2))
            continue
        window = setup.model.spec.smaller_window(setup.window) if tell else None
        if tell is None or window is None:
            raise PlanError(
                f"one window of {times(setup.window)} does not fit the memory of {setup.device} ({said}); use a smaller --window, "
                "another --precision, or another --device"
            )
        tell(f"windows of {times(setup.window)} do not fit the memory of {setup.device}: running with {times(window)}")
        setup = replace(setup, window=window, batch=default_batch(window, windows, limit))


def network_bytes(backend: DeviceBackend) -> int:
    """Device memory that opening and warming up the network took."""
    return max(0, backend.free_before - backend.device.free_bytes())


def warm_up(backend: Network) -> float:
    """A batch on every thread, all at once, and the other slots touched, so that the memory the network takes is taken; and the seconds per
    window.

    With hundreds of classes the outputs of slots that were never used would be missing from the memory that is measured.
    """
    if isinstance(backend, DeviceBackend):
        return _warm_up_device(backend)
    begun = time.perf_counter()
    busy = range(min(backend.slots, backend.setup.threads))
    for slot in range(backend.slots):
        backend.input(slot)[...] = 0
    for slot in busy:
        backend.start(slot)
    for slot in busy:
        backend.result(slot)
    seconds = (time.perf_counter() - begun) / (len(busy) * backend.setup.batch)
    for slot in range(len(busy), backend.slots):
        backend.touch(slot)
    return seconds


def _warm_up_device(backend: DeviceBackend) -> float:
    """The first batch loads kernels and takes memory; the second is timed."""
    device, seconds = backend.device, 0.0
    device.use()
    for _ in range(2):
        begun, done = time.perf_counter(), device.event()
        device.run(backend.stream, "warm-up", backend.run, [backend.input.region], [backend.output.region])
        device.record(done, backend.stream)
        device.synchronize(done)
        seconds = time.perf_counter() - begun
    return seconds / backend.setup.batch
