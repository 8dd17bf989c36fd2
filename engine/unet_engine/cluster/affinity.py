"""Cores next to a GPU: a worker process stays on them, so that its pinned memory lies on the GPU's own NUMA node. Asked
of NVML."""

from __future__ import annotations

import os

from unet_engine.machine import cpu_count

BITS = 64
"""Cores per word of NVML's mask."""


def cores_near(gpu: str) -> frozenset[int]:
    """The cores next to the GPU of this number or UUID; empty where NVML is not there or does not know."""
    try:
        import pynvml
    except ImportError:
        return frozenset()
    try:
        pynvml.nvmlInit()
        try:
            handle = (
                pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(gpu)
            )
            words = pynvml.nvmlDeviceGetCpuAffinity(handle, -(-(os.cpu_count() or 1) // BITS))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return frozenset()
    return frozenset(BITS * i + b for i, word in enumerate(words) for b in range(BITS) if int(word) >> b & 1)


def stay_near(gpu: str) -> int:
    """Keep this process on the cores next to `gpu`, among those that it may use at all. Returns how many it has
    then."""
    if hasattr(os, "sched_setaffinity") and (near := cores_near(gpu) & os.sched_getaffinity(0)):
        os.sched_setaffinity(0, near)
    return cpu_count()
