"""Configurations measured in turn, each in a process of its own that stays until the search is over."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from unet_engine import machine
from unet_engine.backends.base import Setup
from unet_engine.commands.bench.child import Failed, Opened, Timed, hold, limits
from unet_engine.commands.bench.space import Configuration, Window

SLICE = 0.25
"""Seconds that one measurement takes at least, so that starting and stopping do not count."""
SPARED = 0.25
"""Part of the memory that was free at the beginning which is left free: nothing more is loaded beyond."""
PATIENCE = 300.0
"""Seconds after which a process that says nothing is given up."""


@dataclass
class Held:
    """One configuration in its process."""

    process: Any
    pipe: Connection
    opened: Opened | None = None
    peak_rss_bytes: int = 0

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


@dataclass
class Meter:
    """Measures configurations of one model. To be used in a ``with`` block, which ends the processes."""

    setup: Callable[[Configuration], Setup]
    least_rate: float
    """Windows per second: what is slower is not measured, since a run of it would have too few windows in the time
    there is."""
    own: Window = ()
    """The window that is measured however slow it is: there must be something to compare with."""
    held: dict[Configuration, Held] = field(default_factory=dict)
    failed: dict[Configuration, str] = field(default_factory=dict)
    """Why what was not measured was not."""
    peaks: dict[Configuration, int] = field(default_factory=dict)
    """Most memory of each process so far, in bytes."""
    versions: dict[Configuration, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._least_free = SPARED * machine.available_memory()

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, but: Iterable[Configuration] = ()) -> None:
        """End all processes but those of `but`."""
        for configuration in [c for c in self.held if c not in set(but)]:
            self.held.pop(configuration).end()

    # --- loading ---

    def load(self, configurations: Sequence[Configuration]) -> None:
        """Start what is not there yet, all at once, while nothing is measured. What fails is in `failed`."""
        waiting = [c for c in dict.fromkeys(configurations) if c not in self.held and c not in self.failed]
        for configuration in [c for c in waiting if self._start(c)]:
            self._opened(configuration)

    def _start(self, configuration: Configuration) -> bool:
        if machine.available_memory() < self._least_free:
            self.failed[configuration] = "not measured: memory is short"
            return False
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=hold, args=(theirs, configuration.group.backend, self.setup(configuration)), daemon=True
        )
        process.start()
        theirs.close()
        self.held[configuration] = Held(process, ours)
        return True

    def _opened(self, configuration: Configuration) -> None:
        said = self._heard(configuration)
        if not isinstance(said, Opened):
            return
        self.held[configuration].opened = said
        self.versions[configuration] = said.version
        if said.windows_per_second < self.least_rate and configuration.window != self.own:
            slow = 1 / said.windows_per_second
            self._give_up(
                configuration,
                f"not measured: {slow:.1f} s a window is too slow to be run in the time, give more --seconds",
            )

    def _heard(self, configuration: Configuration) -> Opened | Timed | None:
        held = self.held[configuration]
        try:
            said = held.pipe.recv() if held.pipe.poll(PATIENCE) else Failed("its process says nothing")
        except EOFError:
            said = Failed("its process died, most likely for lack of memory")
        if isinstance(said, Failed):
            self._give_up(configuration, said.why)
            return None
        heard: Opened | Timed = said
        return heard

    def _give_up(self, configuration: Configuration, why: str) -> None:
        self.failed[configuration] = why
        self.held.pop(configuration).end()

    # --- measuring ---

    def __call__(self, configuration: Configuration) -> float | None:
        """Windows per second of one measurement, None where the configuration cannot run here (see `failed`)."""
        self.load([configuration])
        held = self.held.get(configuration)
        if held is None or held.opened is None:
            return None
        held.pipe.send(max(1, round(SLICE * held.opened.windows_per_second)))
        said = self._heard(configuration)
        if not isinstance(said, Timed):
            return None
        self.peaks[configuration] = max(self.peaks.get(configuration, 0), said.peak_rss_bytes)
        return said.windows / said.seconds


def machine_limits(device: str, precisions: Sequence[str], threads: int) -> dict[str, Any]:
    """``flops``: operations per second of matrix products by precision, ``bytes``: of copying. ``why`` where they could
    not be measured."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=limits, args=(theirs, device, tuple(precisions), threads), daemon=True)
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv() if ours.poll(PATIENCE) else {"why": "its process says nothing"}
    except EOFError:
        found = {"why": "its process died"}
    finally:
        process.terminate()
        process.join()
    return {"flops": {}, "bytes": None, **found}
