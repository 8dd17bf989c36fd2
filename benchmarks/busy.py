"""When the windows of a run were in its network: for benchmarks of the network that takes time and no processor."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

_WATCHED = """
import atexit, json, sys, time
place = sys.argv.pop(1)
from unet_engine.backends.fake import FakeBackend
spans, run = [], FakeBackend._run
def watched(self, slot):
    begun = time.perf_counter()
    try:
        return run(self, slot)
    finally:
        spans.append((begun, time.perf_counter()))
FakeBackend._run = watched
def keep():
    with open(place, "w") as file:
        json.dump(spans, file)
atexit.register(keep)
from unet_engine.commands.cli import main
main()
"""


def watched(place: Path) -> list[str]:
    """A command that does what `unet-engine` does, and leaves at `place` when each window was in the network."""
    return [sys.executable, "-c", _WATCHED, str(place)]


def told(place: Path, threads: int) -> dict[str, float]:
    """From the first window that a run inferred to its last: seconds, the part of them that the network works (all of
    its threads), and the longest that it does nothing at all. The windows that it was warmed up with are left out."""
    spans = sorted(json.loads(place.read_text()))[threads + 2 :]
    begun, ended = spans[0][0], max(end for _, end in spans)
    worked = sum(end - begin for begin, end in spans)
    return {"seconds": ended - begun, "works": worked / threads / (ended - begun), "longest pause": _pause(spans)}


def _pause(spans: Sequence[tuple[float, float]]) -> float:
    longest, until = 0.0, spans[0][1]
    for begin, end in spans:
        longest, until = max(longest, begin - until), max(until, end)
    return longest
