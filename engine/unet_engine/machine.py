"""What this machine has: cores, memory, GPUs. Asked of the system alone, no deep learning library needed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path

import psutil


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Kind of processor as far as it decides which instructions a network runs with, and so its last bits: e.g.
    ``x86_64 avx2 avx512f``."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                found = set(line.partition(":")[2].split())
                return " ".join([platform.machine(), *(name for name in _INSTRUCTIONS if name in found)])
    return platform.machine()


_INSTRUCTIONS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "avx_vnni",
    "asimddp",
    "i8mm",
    "sve",
    "bf16",
)


def available_memory() -> int:
    """Bytes that can still be taken, within the limit of the container if there is one."""
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, max(0, limit - used))
    return free


def resident_bytes() -> int:
    """Memory this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Most memory this process ever held.

    On Linux from the kernel's high-water mark of this program: the maximum in `getrusage` outlives an exec, so that it
    would be the parent's where that is larger.
    """
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def return_freed_blocks() -> None:
    """Make glibc give arrays back to the system as soon as they are freed.

    By default it learns to keep blocks of up to 32 MiB, among which new ones of other sizes do not fit, and does so in
    a heap per thread: the process grows to 1.5 times what is alive, and goes on growing with every block. A no-op with
    other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**17)
        libc.mallopt(_M_ARENA_MAX, max(2, cpu_count() // 4))


_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def gpu_count() -> int:
    """NVIDIA GPUs that the driver shows; 0 without a driver."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
