"""``unet-engine run`` in a process of its own, exactly as a user would start it, with its memory watched from
outside."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from unet_engine.errors import UnetEngineError, first_line
from unet_engine.threads.beside import beside

LOOK_EVERY = 0.05
"""Seconds between looks at the memory."""
_COMMAND = [sys.executable, "-c", "from unet_engine.commands.cli import main; main()"]


@dataclass(frozen=True)
class Whole:
    """One run from end to end."""

    facts: dict[str, Any]
    """What ``--json`` says: fields of `unet_engine.api.Result`."""
    seconds: float
    """Of the process, start and planning included."""
    memory: tuple[tuple[float, int], ...]
    """Seconds since the start, and bytes resident then."""


def run_whole(options: Sequence[str]) -> Whole:
    """Run with these options of ``run``, profiled, into a temporary folder. Raises the engine's own message where it
    fails."""
    with tempfile.TemporaryDirectory(prefix="unet-engine-bench-") as folder:
        command = [*_COMMAND, "run", *options, "--out", str(Path(folder, "out.zarr")), "--profile", folder, "--json"]
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seen: list[tuple[float, int]] = []
        with beside(partial(_watch, process.pid, begun, seen)):
            try:
                out, err = process.communicate()
            except BaseException:
                process.kill()
                process.wait()
                raise
        seconds = time.perf_counter() - begun
    if process.returncode:
        said = err.strip().splitlines()[-1].removeprefix("unet-engine: ") if err.strip() else "it said nothing"
        raise UnetEngineError(
            f"one of the runs that are measured failed: {said}; try `unet-engine run` with these settings"
        )
    try:
        facts = json.loads(out.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise UnetEngineError(
            f"one of the runs that are measured did not tell its figures ({first_line(error)}); run it by hand to see why"
        ) from error
    return Whole(facts, seconds, tuple(seen))


def _watch(pid: int, begun: float, seen: list[tuple[float, int]], over: threading.Event) -> None:
    try:
        process = psutil.Process(pid)
        while not over.wait(LOOK_EVERY):
            seen.append((time.perf_counter() - begun, int(process.memory_info().rss)))
    except psutil.Error:
        return
