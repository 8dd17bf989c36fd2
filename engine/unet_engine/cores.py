"""Cores as the system groups them: by NUMA node, and the threads of one core. Asked of ``/sys``; where it says nothing,
all cores are alike."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from pathlib import Path

from unet_engine import machine

NODES = Path("/sys/devices/system/node")
CORES = Path("/sys/devices/system/cpu")


def allowed() -> frozenset[int]:
    """The numbers of the cores that this process may be put on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def nodes() -> tuple[frozenset[int], ...]:
    """The cores of each NUMA node that this process may be put on; one node where the system names none."""
    mine = allowed()
    found = [mine & _listed(folder / "cpulist") for folder in sorted(NODES.glob("node[0-9]*"), key=_number)]
    there = tuple(node for node in found if node)
    return there if mine == frozenset().union(*there) else (mine,)


def whole() -> int:
    """As `machine.cpu_count`, but threads of one core (hyper-threading) count once."""
    mine = allowed()
    groups = {_listed(CORES / f"cpu{n}" / "topology" / "thread_siblings_list") or frozenset([n]) for n in mine}
    return max(1, min(len(groups), machine.cpu_count()))


def model_name() -> str:
    """The processor as its maker calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def fingerprint() -> dict[str, object]:
    """All that decides how fast several threads are here: what was measured holds where this is the same."""
    return {
        "processor": model_name(),
        "instructions": machine.processor(),
        "cores": machine.cpu_count(),
        "whole": whole(),
        "nodes": [len(node) for node in nodes()],
    }


def stay_on(cores: Iterable[int]) -> None:
    """Keep this process, with the threads it has and those it will start, on these cores. A no-op where the system
    knows no such thing."""
    if not hasattr(os, "sched_setaffinity"):
        return
    wanted = set(cores)
    with contextlib.suppress(OSError):
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread.name), wanted)


def keep_thread_on(cores: Iterable[int]) -> None:
    """The same for the calling thread alone."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, set(cores))


def node_of(number: int, count: int) -> frozenset[int]:
    """The cores for worker `number` of `count`: those of one node, where as many workers can be given to each; else all
    there are."""
    there = nodes()
    if len(there) < 2 or count % len(there):
        return allowed()
    return there[number * len(there) // count]


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("node"))


def _listed(place: Path) -> frozenset[int]:
    """The numbers of a list such as ``0-3,8``; none where it cannot be read."""
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError):
        for part in place.read_text().strip().split(","):
            first, _, last = part.partition("-")
            if first:
                found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
