"""What this machine has: cores, memory, GPUs. Asked of the system alone, no deep learning library needed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from unet_engine.units import size


def cpu_count() -> int:
    """Cores this process may use: those it may be put on, or as many as the control groups around it give the time of
    (``docker --cpus``, limits of Kubernetes), whichever are fewer. A part of a core counts as one."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([there, *_cores_of_groups()]))


def _cores_of_groups() -> Iterator[int]:
    """What the control groups that this process is in allow, from its own to the outermost."""
    for version, folder in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if version == 2:
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            else:
                quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0:
                yield -(-quota // period)


@cache  # on many cores the system takes a millisecond to tell
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
    """Bytes that can still be taken, within the limits of the container, the batch job and the process, where there are
    some."""
    return max(0, min([_free(), *_left_in_groups(), *_left_by_limits()]))


def _free() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    import psutil  # where there is no Linux: a hundredth of a run's start

    return int(psutil.virtual_memory().available)


def _left_in_groups() -> Iterator[int]:
    """What the control groups that this process is in leave, from its own to the outermost. Pages of files that were
    not used lately go where memory is short."""
    for version, folder in _groups("memory"):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        with contextlib.suppress(OSError, ValueError):
            limit, used = (int((folder / name).read_text()) for name in names)
            cached = "inactive_file" if version == 2 else "total_inactive_file"
            yield max(0, limit - used + _counted(folder / "memory.stat", cached))


def _groups(controller: str) -> Iterator[tuple[int, Path]]:
    """The control groups of this process that have to do with memory or cpu, from its own to the outermost, and of
    which version each is; there may be none."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _GROUPS / controller if controllers else _GROUPS
        group = root / place.strip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):
            yield (1 if controllers else 2), folder


_GROUPS = Path("/sys/fs/cgroup")


def _counted(place: Path, name: str) -> int:
    """A line of a group's statistics; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in place.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0


def _left_by_limits() -> Iterator[int]:
    """What the limits of this process leave (``ulimit -v``, ``ulimit -d``)."""
    limits = list(_limits())
    if limits:
        taken = taken_bytes()
        held = {"v": taken.addresses, "d": taken.data}
        yield from (max(0, limit - held[flag]) for flag, limit in limits)


def _limits() -> Iterator[tuple[str, int]]:
    """What limits of this process there are: how ``ulimit`` calls each, and bytes."""
    try:
        import resource
    except ImportError:  # on Windows
        return
    for flag, kind in (("v", "RLIMIT_AS"), ("d", "RLIMIT_DATA")):
        limit = resource.getrlimit(getattr(resource, kind))[0] if hasattr(resource, kind) else resource.RLIM_INFINITY
        if limit != resource.RLIM_INFINITY:
            yield flag, limit


def limits() -> str:
    """The limits of this process, as a message ends with them; empty where there are none."""
    said = [f"ulimit -{flag} allows {size(limit)}" for flag, limit in _limits()]
    return f" ({', '.join(said)})" if said else ""


class Taken(NamedTuple):
    """Bytes of this process."""

    addresses: int
    resident: int
    data: int
    """What ``ulimit -d`` counts; 0 where that is not told."""


def taken_bytes() -> Taken:
    """What this process takes now."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = [int(number) for number in Path("/proc/self/statm").read_text().split()]
        return Taken(*(pages[i] * os.sysconf("SC_PAGE_SIZE") for i in (0, 1, 5)))
    import psutil

    taken = psutil.Process().memory_info()
    return Taken(int(taken.vms), int(taken.rss), 0)


def resident_bytes() -> int:
    """Memory this process holds now."""
    return taken_bytes().resident


def proportional_bytes(process: int | None = None) -> int:
    """Memory that this process, or the one of a number, holds now, of pages that several share its part (on Linux; else
    all of them). 0 for one that is gone."""
    place = Path("/proc", "self" if process is None else str(process), "smaps_rollup")
    with contextlib.suppress(OSError, ValueError):
        for line in place.read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process).memory_info().rss)
    return 0


def peak_resident_bytes() -> int:
    """Most memory this process ever held.

    On Linux from the kernel's high-water mark of this program: the maximum in `getrusage` outlives an exec, so that it
    would be the parent's where that is larger.
    """
    if sys.platform == "win32":
        import psutil

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


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, Python looks for no garbage: imports make many objects, of which none is any. Later looks leave those
    out."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


def gpu_count() -> int:
    """NVIDIA GPUs that the driver shows; 0 without a driver."""
    driver, count = _driver(), ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_capabilities() -> tuple[tuple[int, int], ...]:
    """The compute capability of each NVIDIA GPU that the driver shows, major and minor; no context is made."""
    driver, found = _driver(), []
    for ordinal in range(gpu_count() if driver is not None else 0):
        assert driver is not None
        parts = ctypes.c_int(0), ctypes.c_int(0)
        if all(
            driver.cuDeviceGetAttribute(ctypes.byref(p), n, ordinal) == 0
            for p, n in zip(parts, _CAPABILITY, strict=True)
        ):
            found.append((parts[0].value, parts[1].value))
    return tuple(found)


_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def _driver() -> ctypes.CDLL | None:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None
