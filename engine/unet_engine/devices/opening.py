"""Which device a name means, whether it can be used here, and opening it."""

from __future__ import annotations

from importlib.util import find_spec

from packaging.version import Version

from unet_engine.devices.base import Device
from unet_engine.errors import BackendError
from unet_engine.machine import gpu_capabilities, gpu_count
from unet_engine.version import version_of

SIMULATED = "simulated"
"""Name of the device that NumPy stands in for; see `unet_engine.devices.simulated`."""


OLDEST_CUDA_CORE = "1.0"
"""Before it, names and signatures were experimental."""


def is_gpu(name: str) -> bool:
    """Whether `name` (``cpu``, ``cuda:N``, ``simulated``), or its part before the colon, means a GPU."""
    return name == SIMULATED or name.startswith("cuda")


def capabilities_of(name: str) -> tuple[tuple[int, int], ...]:
    """Compute capabilities of the GPUs that ``cuda``, ``cuda:N`` or ``cuda:N,M`` means, as far as they are known: of
    the simulated one none is."""
    found, numbers = gpu_capabilities(), name.partition(":")[2]
    if not name.startswith("cuda"):
        return ()
    chosen = [int(n) for n in numbers.split(",")] if numbers else range(len(found))
    return tuple(found[n] for n in chosen if n < len(found))


def is_pipelined(name: str) -> bool:
    """Whether work on the device called `name` goes through the device pipeline."""
    return name == SIMULATED or (is_gpu(name) and not missing())


def missing() -> str:
    """What the device pipeline lacks here to run on a GPU; empty if nothing."""
    if find_spec("unet_engine.devices._halo_cuda") is None:
        return "unet-engine was built without CUDA; reinstall it where nvcc is on PATH"
    return unreachable()


def unreachable() -> str:
    """What lacks here for a GPU to be used at all, be windows cut and stitched there or on the CPU; empty if
    nothing."""
    try:
        found = find_spec("cuda.core")
    except ModuleNotFoundError:
        found = None
    if not found:
        return "cuda-core is not installed; run: pip install 'unet-engine[cuda]'"
    there = version_of("cuda-core")
    if there is not None and Version(there) < Version(OLDEST_CUDA_CORE):
        return f"cuda-core {there} is older than {OLDEST_CUDA_CORE}; run: pip install -U 'unet-engine[cuda]'"
    return ""


def open_device(name: str) -> Device:
    """The device called `name`. Raises `BackendError` where it is not to be had."""
    if name == SIMULATED:
        from unet_engine.devices.simulated import SimulatedDevice

        return SimulatedDevice()
    number, found = int(name.partition(":")[2] or 0), gpu_count()
    if number >= found:
        raise BackendError(f"{name}: this machine shows {found} GPU(s), counted from 0; use --device cpu")
    if lacking := unreachable():
        raise BackendError(f"{name}: {lacking}, or use --device cpu")
    from unet_engine.devices.cuda import CudaDevice

    return CudaDevice(number)
