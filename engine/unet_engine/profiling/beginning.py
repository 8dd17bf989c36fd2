"""The way to the first window: how long each part of it took."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

IMPORTS = "imports"
"""Of the command line: from the start of its process until it knows what to do."""
SURVEY = "survey"
"""Opening volume and model, and checking that they fit."""
SAMPLES = "samples"
"""Reading what normalisation and the fingerprint are made of, and windows to try the network on."""
OPINION = "second opinion"
"""Asking a process of its own whether the library computes what the file says, once per model."""
COMPILING = "compiling"
"""Loading the library and the network."""
WARMING = "warming up"
"""The first windows, which take the memory that inference takes and tell its time. Most are windows of the run."""
PLANNING = "planning"
"""Windows, blocks and columns that fit the memory; with ``auto``, finding out which windows."""
OUTPUT = "output"
"""Opening the output, and reading the first block."""
ALL = "to the first window"
"""Until the first window of the run goes into the network: as it is warmed up, where what it answers is taken up."""
RUNNING = "to the run"
"""Until all of these parts are done."""

_PROCESS: list[float] = []
"""When the process began, by `time.perf_counter`, until somebody takes it for the beginning of a run."""


class Beginning:
    """Takes the times, one part after the other."""

    def __init__(self) -> None:
        whole = bool(_PROCESS)
        self._begun = self._last = _PROCESS.pop() if whole else time.perf_counter()
        self.seconds: dict[str, float] = {}
        if whole:
            self.done(IMPORTS)

    def done(self, part: str) -> None:
        """All since the last part was this one."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def facts(self, first: float | None, ahead: float | None = None) -> dict[str, float]:
        """Seconds by part, and of all of them together, until windows followed one another into the network at `first`;
        without that where none did. ahead: when the first of them went in to warm it up."""
        found = dict(self.seconds)
        if first is not None:
            found[OUTPUT] = max(0.0, first - self._last)
            found[RUNNING] = first - self._begun
            found[ALL] = found[RUNNING] if ahead is None else ahead - self._begun
        return {part: round(seconds, 3) for part, seconds in found.items()}


def of_this_process() -> None:
    """The next run began with its process."""
    age = _age()
    if age is not None:
        _PROCESS[:] = [time.perf_counter() - age]


def _age() -> float | None:
    """Seconds since this process began; None where the system does not tell."""
    with suppress(OSError, ValueError, AttributeError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return None
