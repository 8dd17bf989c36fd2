"""Signals that end a process which does not look up.

The first one is Python's: it interrupts between two of its instructions, and a run ends in order. A network that never
ends is one instruction. So all signals are seen by a thread as well, and after the second the process has some
seconds before it is ended as it is. What is committed stays, as after any kill.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time

from unet_engine.commands.telling import NOT_BEGUN
from unet_engine.threads.hanging import end

GRACE = 4.0
"""Seconds for ending in order after the second signal."""
ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
"""Signals that end a run."""

_outputs: list[str] = []
"""The output that is being written, where there is one."""


def writing(out: str | None) -> None:
    """Name the output that an interruption leaves resumable; None where there is none."""
    _outputs[:] = [out] if out else []


def said() -> str:
    """What an interrupted run says."""
    if not _outputs:
        return NOT_BEGUN
    return f"interrupted; what is committed in {_outputs[0]} stays: run the same command with --resume"


def watch(code: int) -> None:
    """End this process with `code`, soon after it was told to end for the second time. As Python itself ends, signals
    would have their plain meaning again, and the exit code would be lost: they have none then."""
    atexit.register(_ignore)
    reading, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    threading.Thread(target=_count, args=(reading, code), daemon=True, name="signals").start()


def _ignore() -> None:
    for name in ENDING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _count(reading: int, code: int) -> None:
    numbers = {getattr(signal, name) for name in ENDING if hasattr(signal, name)}
    asked = 0
    while asked < 2:
        asked += sum(number in numbers for number in os.read(reading, 64))
    time.sleep(GRACE)
    end(said(), code)
