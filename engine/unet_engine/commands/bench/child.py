"""A process that holds one configuration, so that its peak of memory is its own, and times windows through it when
asked.

The windows go through the ring of slots as in a run, but for what a run does with them: nothing is cut and nothing
added. So what is timed is the network alone, in the back end's asynchronous mode.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from unet_engine import machine
from unet_engine.backends.base import Backend, Setup
from unet_engine.backends.libraries import open_backend
from unet_engine.commands.bench import peak
from unet_engine.errors import UnetEngineError, first_line


@dataclass(frozen=True)
class Opened:
    version: str
    windows_per_second: float
    """Of the warm-up: good for choosing how many windows to time."""


@dataclass(frozen=True)
class Timed:
    windows: int
    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Failed:
    why: str


def hold(pipe: Connection, backend: str, setup: Setup) -> None:
    """Open the network, tell `Opened`, and then time as many windows as each message says, until there is none.
    `Failed` ends it."""
    machine.return_freed_blocks()
    try:
        opened = open_backend(backend, setup)
        flow(opened, 1)  # takes the memory the network takes, and compiles what is compiled at the first call
        pipe.send(Opened(opened.version, 1 / flow(opened, 1)))
        while windows := pipe.recv():
            seconds = flow(opened, -(-windows // (setup.threads * setup.batch)))
            done = windows_of(setup, windows)
            pipe.send(Timed(done, seconds * done, machine.peak_resident_bytes()))
        opened.close()
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except (UnetEngineError, MemoryError) as error:
        pipe.send(Failed(first_line(error)))
    except Exception as error:
        pipe.send(Failed(f"{type(error).__name__}: {first_line(error)}"))


def windows_of(setup: Setup, windows: int) -> int:
    """`windows` rounded up to what keeps every thread as busy as every other."""
    at_once = setup.threads * setup.batch
    return -(-windows // at_once) * at_once


def flow(backend: Backend, rounds: int) -> float:
    """Seconds per window of `rounds` batches on every thread, with all slots in use."""
    setup = backend.setup
    for slot in range(backend.slots):
        backend.input(slot)[...] = 0.5  # neither denormal nor sparse
    total = rounds * setup.threads
    begun = time.perf_counter()
    for k in range(total):
        if k >= backend.slots:
            backend.result(k % backend.slots)
        backend.start(k % backend.slots)
    for k in range(max(0, total - backend.slots), total):
        backend.result(k % backend.slots)
    return (time.perf_counter() - begun) / (total * setup.batch)


def limits(pipe: Connection, device: str, precisions: tuple[str, ...], threads: int) -> None:
    """What the machine can do at best, for `Meter.limits`."""
    found: dict[str, Any] = {}
    try:
        found["flops"] = {p: rate for p in precisions if (rate := peak.product_rate(device, p, threads)) is not None}
        found["bytes"] = peak.copy_rate(threads)
    except (KeyboardInterrupt, BrokenPipeError):
        return
    except Exception as error:
        found["why"] = f"{type(error).__name__}: {first_line(error)}"
    pipe.send(found)
