"""How fast the network is in windows of other sizes, beside the model's own: a tiling that computes fewer voxels may
still take longer.

Both are open at once and take turns, each with as many windows at a time as the run infers, so that what else the
machine does meets both alike. On a CPU seconds are those that cores worked. What was timed is kept: the next run
chooses alike, and does not time again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod

from pydantic import ValidationError

from unet_engine.backends import engine_cache
from unet_engine.backends.base import Array, Backend
from unet_engine.errors import BackendError
from unet_engine.prepare.tiling_choice import Point, Timed
from unet_engine.prepare.tiling_proof import Networks

ROUNDS = 3
"""How often windows are timed, at most, after one round to warm up."""
APART = 1.5
"""By how much a voxel may take longer, or less long, in windows that were not timed."""


@dataclass(frozen=True)
class Race:
    """The model's own windows, and what others are timed with."""

    own: tuple[int, ...]
    threads: int
    key: Mapping[str, object]
    """Of what was timed before: model, library, precision, threads."""
    networks: Networks
    cut: Callable[[tuple[int, ...]], Array]
    """A window of this size for the network."""

    def known(self) -> dict[tuple[int, ...], Timed]:
        """What was timed before, by window."""
        with suppress(BackendError, ValueError, ValidationError):
            entries = json.loads(engine_cache.load("tiling-speed", self._key) or b"[]")
            return {found.window: found for found in map(Timed.model_validate, entries) if found.beside}
        return {}

    def tried(self, question: Mapping[str, object]) -> list[tuple[int, ...]] | None:
        """The windows that were tried when this was asked before; None where it was not. What is known by now must not
        change the choice for the same volume."""
        with suppress(BackendError, ValueError, TypeError):
            data = engine_cache.load("tiling-tried", {**self._key, **question})
            return [tuple(map(int, window)) for window in json.loads(data)] if data else None
        return None

    def remember(self, question: Mapping[str, object], tried: Sequence[tuple[int, ...]]) -> None:
        with suppress(BackendError):
            engine_cache.store("tiling-tried", {**self._key, **question}, json.dumps(list(map(list, tried))).encode())

    def rounds(self, windows: Sequence[tuple[int, ...]], budget: float) -> int:
        """In how many rounds all of these can be timed for so many voxels; one if that is too much for all."""
        each = sum(self.cost(window, 1) for window in windows) / 2
        return max(1, min(ROUNDS, int(budget / each) - 1)) if each else 1

    def cost(self, window: tuple[int, ...], rounds: int) -> int:
        """Voxels of input that timing these computes."""
        return (1 + rounds) * self.threads * (prod(window) + prod(self.own))

    def run(self, window: tuple[int, ...], rounds: int) -> Timed:
        """These and the model's own, in turn."""
        with self.networks.opened(self.own) as own, self.networks.opened(window) as other:
            hosts = {self.own: own, window: other}
            contents = {size: self.cut(size) for size in hosts}
            took: dict[tuple[int, ...], list[float]] = {size: [] for size in hosts}
            for _ in range(1 + rounds):
                for size, host in hosts.items():
                    took[size].append(_nanoseconds(host, contents[size]))
        found = Timed(
            window=window,
            nanoseconds=statistics.median(took[window][1:]),
            beside=statistics.median(took[self.own][1:]),
        )
        values = [entry.model_dump(mode="json") for entry in {**self.known(), window: found}.values()]
        with suppress(BackendError):
            engine_cache.store("tiling-speed", self._key, json.dumps(values).encode())
        return found

    @property
    def _key(self) -> dict[str, object]:
        return {**self.key, "threads": self.threads, "beside": list(self.own)}


def _nanoseconds(host: Backend, content: Array) -> float:
    """Of a voxel, with as many windows at once as the run infers."""
    clock = time.process_time if host.setup.device == "cpu" else time.perf_counter
    slots = range(min(host.slots, max(1, host.setup.threads)))
    begun = clock()
    for slot in slots:
        host.input(slot)[...] = content
        host.start(slot)
    for slot in slots:
        host.result(slot)
    return 1e9 * (clock() - begun) / (len(slots) * max(1, host.setup.batch) * prod(host.setup.window))


@dataclass(frozen=True)
class Speeds:
    """How long a voxel takes in windows of some sizes, of what it takes in the model's own."""

    relative: Mapping[tuple[int, ...], float]
    otherwise: float = APART
    """In windows that were not timed."""

    def time(self, point: Point) -> float:
        """What a tiling of the volume takes, in voxels of the model's own windows for one of the volume."""
        return point.lasts * self.relative.get(point.window, self.otherwise)

    def ranked(self, points: Sequence[Point], own: float) -> list[Point]:
        """Those that take less than `own`, the fastest first."""
        return sorted((p for p in points if self.time(p) < own), key=self.time)
