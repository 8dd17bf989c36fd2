"""Opening a network for a run, and what to do where memory runs out: half the batch, then a smaller window, then the figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from unet_engine.backends import Backend, DeviceBackend, Setup, open_backend, open_on_device
from unet_engine.device_plan import default_batch, smaller_window
from unet_engine.devices import is_pipelined
from unet_engine.errors import PlanError, UnetEngineError, first_line
from unet_engine.units import times

Network = Backend | DeviceBackend


def open_network(name: str, setup: Setup) -> Network:
    """The network on the device that `setup` names: for the device pipeline where that runs, for the host otherwise."""
    return open_on_device(name, setup) if is_pipelined(setup.device) else open_backend(name, setup)


def open_fitting(
    name: str, setup: Setup, windows: int, note: Callable[[str], None] | None, limit: int | None = None
) -> tuple[Network, float]:
    """The network with the largest batch that the device has memory for, warm, and its seconds per window. Blocks have `windows` windows.
    No batch is larger than `limit`.

    Where not even one window fits, the next smaller admissible window is tried if there is a `note` to tell the user by; it is None where
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
        window = smaller_window(setup.model.spec, setup.window) if note else None
        if note is None or window is None:
            raise PlanError(
                f"one window of {times(setup.window)} does not fit the memory of {setup.device} ({said}); use a smaller --window, "
                "another --precision, or another --device"
            )
        note(f"windows of {times(setup.window)} do not fit the memory of {setup.device}: running with {times(window)}")
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


# --- when memory runs out at run time ---


def smaller(setup: Setup) -> Setup | None:
    """Half the windows at once, rounded up; None where there is but one."""
    if setup.batch > 1:
        return replace(setup, batch=-(-setup.batch // 2))
    return replace(setup, threads=setup.threads // 2) if setup.threads > 1 else None


_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "failed to allocate", "cannot allocate memory", "out_of_memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error` or what caused it says that memory ran out: libraries have no type in common for that."""
    while error is not None:
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False


def no_memory(error: BaseException, setup: Setup, where: str, *, retried: bool) -> UnetEngineError:
    """The figures, for an error that ends the run."""
    again = ", after one try with fewer" if retried else ""
    return PlanError(
        f"out of memory {where} with {setup.threads} window(s) of batch {setup.batch} at once{again} ({first_line(error)}); "
        "use a smaller --window, fewer --workers, or a machine with more memory"
    )


def other_bits(error: BaseException, before: Setup, fewer: Setup, where: str) -> UnetEngineError:
    """Half the batch would do, but windows that went through the whole one got other last bits: an output is made with one of them."""
    return PlanError(
        f"out of memory {where} with batch {before.batch} ({first_line(error)}), and batch {fewer.batch} gives other last bits on "
        f"{before.device}, so the output would have both; free its memory and use --resume, or begin again with "
        f"--batch {fewer.batch} --overwrite"
    )
