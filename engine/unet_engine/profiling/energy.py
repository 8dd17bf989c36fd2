"""What a run took of the socket, as far as this machine's own counters tell: processors and their memory by RAPL, GPUs
by NVML.

The counters are of the whole machine: what else ran on it is in them. Of a cluster they are those of this machine
alone. No counter can be read in most virtual machines, and RAPL only by root on most Linux (since 2020, as it can leak
keys): then nothing is told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
EVERY = 30.0
"""Seconds between readings: RAPL counts to some hundred kilojoules and begins again, at 1 kW in four minutes."""
_COUNTED = ("package", "dram")
"""Domains of RAPL that share nothing. Cores and what is beside them are in the package, `psys` has the package."""

Counter = tuple[Callable[[], int], int]
"""Reads microjoules; and where they begin at zero again, 0 for never."""


def counters() -> dict[str, Counter]:
    """Those of this machine that can be read, by name."""
    return {**_rapl(POWERCAP), **_nvml()}


def _rapl(root: Path) -> dict[str, Counter]:
    found: dict[str, Counter] = {}
    with suppress(OSError):
        for zone in sorted(root.glob("intel-rapl:*")):
            with suppress(OSError, ValueError):
                name = (zone / "name").read_text().strip()
                if not name.startswith(_COUNTED):
                    continue
                file, end = zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())
                _number(file)
                socket = zone.name.removeprefix("intel-rapl:").partition(":")[0]
                counted = name if name.startswith("package") else f"{name} of package-{socket}"
                found[counted] = partial(_number, file), end
    return found


def _number(file: Path) -> int:
    return int(file.read_text())


def _nvml() -> dict[str, Counter]:
    """GPUs since Volta count millijoules since the driver was loaded."""
    with suppress(Exception):  # no driver, no permission, an old GPU: then it does not tell
        import pynvml

        pynvml.nvmlInit()
        found: dict[str, Counter] = {}
        for i in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            found[f"GPU {i}"] = partial(_microjoules, pynvml, handle), 0
        return found
    return {}


def _microjoules(nvml: Any, handle: Any) -> int:
    return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * 1000


@dataclass
class _Running:
    last: int
    sum: int = 0
    broken: bool = False


class Meter:
    """Adds up what counters tell between entering and leaving."""

    def __init__(self, found: Mapping[str, Counter] | None = None) -> None:
        self._counters = counters() if found is None else found
        self._running: dict[str, _Running] = {}
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Meter:
        for name, (read, _) in self._counters.items():
            with suppress(Exception):
                self._running[name] = _Running(read())
        if self._running:
            self._thread = threading.Thread(target=self._run, daemon=True, name="energy")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
            self.look()

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            self.look()

    def look(self) -> None:
        """Read all counters."""
        with self._lock:
            for name, running in self._running.items():
                read, end = self._counters[name]
                try:
                    now = read()
                except Exception:  # what it said before is no answer any more
                    running.broken = True
                    continue
                step = now - running.last
                if step < 0 and end:  # it began again at zero
                    step += end
                running.broken |= step < 0
                running.sum, running.last = running.sum + step, now

    @property
    def joules(self) -> dict[str, float]:
        """By counter; of those that could be read from beginning to end."""
        return {name: round(r.sum / 1e6, 3) for name, r in self._running.items() if not r.broken}
