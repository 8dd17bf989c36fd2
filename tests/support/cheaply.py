"""What makes thousands of small tests cheap: folders in memory, and a garbage collector that leaves alone what
stays."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import psutil

MEMORY = Path("/dev/shm")
LEAST = 6 * 2**30
"""Bytes that must be free in it; and twice as many in the machine's memory."""


def _in_memory() -> bool:
    """Whether temporary folders can lie in memory: there, the thousands of files that runs make and wait for cost half
    as much as on a disk. ``TMPDIR`` says otherwise."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK | os.X_OK):
        return False
    known = os.statvfs(MEMORY)
    programs = not known.f_flag & getattr(os, "ST_NOEXEC", 0)
    return programs and known.f_bavail * known.f_frsize >= LEAST and psutil.virtual_memory().available >= 2 * LEAST


if _in_memory():
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


# Threads of PyTorch sleep while there is nothing to do, where they else keep a processor from the other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

gc.disable()  # collecting tests makes a million objects, and none is garbage


def pytest_collection_finish() -> None:
    """What imports and tests are made of is never looked through again, and the rest less often."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()
