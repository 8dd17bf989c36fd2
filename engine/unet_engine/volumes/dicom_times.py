"""Time points of DICOM: which one a slice or frame is of, and when that was taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC
from math import isfinite
from typing import Any

from unet_engine.volumes.base import Timing
from unet_engine.volumes.timing import even

TAGS = ("DimensionIndexSequence", "TemporalPositionIdentifier", "TemporalResolution")
"""What is read of a header for it."""
_INDEX = 0x00209128
"""Temporal Position Index, by which a dimension of an enhanced file is said to be time."""
_OFFSET = 0x0020930D
"""Temporal Position Time Offset, which is as good a dimension."""


def of_frames(header: Any) -> Callable[[Any], int]:
    """What tells the time point of a frame, by what is said of it alone (None: nothing): its Temporal Position Index,
    else its place along the dimension that is said to be time; of a file of one frame its Temporal Position Identifier.
    0 where nothing says it."""
    pointers = [int(one.get("DimensionIndexPointer") or 0) for one in header.get("DimensionIndexSequence") or ()]
    along = next((i for i, pointer in enumerate(pointers) if pointer in (_INDEX, _OFFSET)), None)
    whole = _number(header.get("TemporalPositionIdentifier"))

    def found(frame: Any) -> int:
        content = _content(frame)
        index = _number(content.get("TemporalPositionIndex")) if content is not None else None
        if index is None and along is not None and content is not None:
            values = content.get("DimensionIndexValues")
            listed = [values] if isinstance(values, int) else list(values or ())
            index = _number(listed[along]) if along < len(listed) else None
        return index if index is not None else whole or 0

    return found


def _content(frame: Any) -> Any:
    return None if frame is None else (frame.get("FrameContentSequence") or [None])[0]


def _number(value: Any) -> int | None:
    with suppress(TypeError, ValueError):
        return int(value)
    return None


def taken(header: Any, frame: Any) -> float | None:
    """Seconds at which a frame was taken, counted from the same beginning in all of a series: its offset in time, else
    when it was acquired; of a file of one frame, what its steps in time come to."""
    with suppress(Exception):  # what makes no sense says nothing
        offset = _first(frame, "TemporalPositionSequence", "TemporalPositionTimeOffset")
        if offset is not None:
            return float(offset)
        if (content := _content(frame)) is not None:
            when = content.get("FrameReferenceDateTime") or content.get("FrameAcquisitionDateTime")
            return _seconds(str(when)) if when else None
        step, index = header.get("TemporalResolution"), _number(header.get("TemporalPositionIdentifier"))
        return None if step is None or index is None else float(step) / 1000 * (index - 1)
    return None


def _first(frame: Any, group: str, key: str) -> Any:
    inside = (frame.get(group) or [None])[0] if frame is not None else None
    return None if inside is None else inside.get(key)


def _seconds(text: str) -> float:
    from pydicom.valuerep import DT

    when = DT(text)
    if when is None:
        raise ValueError("no time")
    return float(when.replace(tzinfo=when.tzinfo or UTC).timestamp())


def timing(when: Sequence[float | None]) -> Timing | None:
    """Of the first slice of each time point, from the first one on: the scanner's clock is no beginning. None where not
    all of them say it, or that is not evenly spaced."""
    known = [one for one in when if one is not None and isfinite(one)]
    if len(known) != len(when) or not known:
        return None
    return even([one - known[0] for one in known], "second")
