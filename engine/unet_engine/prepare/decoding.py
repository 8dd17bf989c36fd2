"""Whether reading keeps up with the device: GB/s of decoded voxels that a run needs, what there is, and so how many
threads decode."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from unet_engine import machine
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Plan, middle_span
from unet_engine.volumes.base import Volume

SPARE = 1.5
"""Threads that decode, over what would just do: blocks come in bursts."""
TRIAL_BYTES = 2**26
"""Voxels that are read to see how fast that is, at most."""


@dataclass(frozen=True)
class Reading:
    """Rates in bytes of decoded voxels per second, of all devices of this process together."""

    needed: float
    found: float
    threads: int
    """That decode at the same time."""
    cores: int

    @property
    def keeps_up(self) -> bool:
        return self.needed <= self.found


def needed(plan: Plan, volume: Volume, seconds_per_window: float, devices: int) -> float:
    """Bytes per second that must be decoded for the devices never to wait: windows/s x new voxels per window x bytes
    per voxel.

    A block reads the voxels of its windows once, in whole chunks, so new voxels per window are what a block decodes
    over its windows.
    """
    spans, windows = [], 1
    for axis, step, chunk in zip(plan.axes, plan.block, volume.chunks, strict=True):
        lo, hi = middle_span(axis, step, plan.padding)
        spans.append(min(axis.size, -(-hi // chunk) * chunk) - lo // chunk * chunk)
        windows *= min(step, axis.count)
    seconds = windows * plan.calls * seconds_per_window
    return math.prod(spans) * volume.voxel_bytes * devices / max(1e-9, seconds)


def found(plan: Plan, volume: Volume, read: Callable[[Box], object]) -> float:
    """Bytes per second of the volume that reading a block from its middle gives, on all cores, decoded in whole
    chunks."""
    lo, hi = [], []
    room = TRIAL_BYTES // max(1, volume.voxel_bytes)
    for axis, step, chunk in zip(plan.axes, plan.block, volume.chunks, strict=True):
        start, stop = middle_span(axis, step, plan.padding)
        start, stop = start // chunk * chunk, min(axis.size, -(-stop // chunk) * chunk)
        length = max(min(chunk, stop - start), min(stop - start, room // chunk * chunk))
        lo.append(start)
        hi.append(start + length)
        room = max(1, room // length)
    box = Box(tuple(lo), tuple(hi))
    begun = time.perf_counter()
    read(box)
    return box.size * volume.voxel_bytes / max(1e-9, time.perf_counter() - begun)


def reading(
    plan: Plan, volume: Volume, read: Callable[[Box], object], seconds_per_window: float, devices: int
) -> Reading:
    """Reads some of the volume by `read`. Raises `DataError` as reading does."""
    cores = machine.cpu_count()
    wanted, rate = needed(plan, volume, seconds_per_window, devices), found(plan, volume, read)
    return Reading(wanted, rate, threads_for(wanted, rate, cores), cores)


def threads_for(wanted: float, rate: float, cores: int) -> int:
    """Threads that decode `wanted` bytes per second with room to spare, where `cores` threads decode `rate`; at most
    one per core."""
    return max(1, min(cores, math.ceil(SPARE * cores * wanted / max(1.0, rate))))
