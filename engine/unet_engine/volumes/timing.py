"""Steps in time, as formats say them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from unet_engine.volumes.base import SECONDS, Timing

_SHORT = {
    "ns": "nanosecond", "nsec": "nanosecond", "us": "microsecond", "µs": "microsecond", "μs": "microsecond",
    "usec": "microsecond", "ms": "millisecond", "msec": "millisecond", "s": "second", "sec": "second", "m": "minute",
    "min": "minute", "h": "hour", "hr": "hour", "d": "day",
}  # fmt: skip
_EVEN = 1e-3
"""Steps that differ by less of their mean are one step."""


def unit_of_time(text: str) -> str | None:
    """As OME-Zarr names it, from that or a usual short form; what is not known stays as it is, None for nothing."""
    name = text.strip()
    plain = name.lower()
    for candidate in (plain, plain.removesuffix("s")):
        if candidate in SECONDS or candidate in _SHORT:
            return _SHORT.get(candidate, candidate)
    return name or None


def stepped(step: float, start: float = 0.0, unit: str | None = None) -> Timing | None:
    """None for what is no time, and for what is written where nothing is known."""
    if not isfinite(step) or not isfinite(start) or step <= 0 or (step, start, unit) == (1.0, 0.0, None):
        return None
    return Timing(step, start, unit)


def even(values: Sequence[float], unit: str | None) -> Timing | None:
    """Of when each time point was taken; None where that is not evenly spaced."""
    times = np.asarray(values, np.float64)
    steps = np.diff(times)
    if not len(steps) or not np.isfinite(times).all() or abs(steps - steps.mean()).max() > _EVEN * abs(steps.mean()):
        return None
    return stepped(float(steps.mean()), float(times[0]), unit)
