"""What files that this engine wrote say beside what their format has a place for: JSON under one key. A format has its
own place for a text; where a volume's place in the world has none of its own, it is read from here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from unet_engine.volumes.frame import Frame
from unet_engine.volumes.nodata import Missing

KEY = "unet_engine"
TIFF_TAG = 65000
"""Of a TIFF's private tags, the one that the text is in."""


@dataclass(frozen=True)
class Account:
    """Tuples per axis follow z, y, x."""

    axes: str
    spacing: tuple[float, ...] | None = None
    translation: tuple[float, ...] | None = None
    unit: str | None = None
    frame: Frame | None = None
    channel_names: tuple[str, ...] = ()
    nodata: tuple[float, ...] = ()
    nodata_of: Missing = ()

    def along(self, names: str, values: Sequence[float] | None, other: float) -> list[float] | None:
        """`values` for each of the axes `names`; None where there are none, or for other axes."""
        spatial = [a for a in "zyx" if a in names]
        if values is None or len(values) != len(spatial):
            return None
        of = dict(zip(spatial, values, strict=True))
        return [of.get(a, other) for a in names]


def read(text: object, shape: Sequence[int], names: str | None = None) -> Account | None:
    """What `text` says of an array of this shape, whose axes it names; None where it is none of ours, or was written of
    another array, as of one that was cropped since. names: of the axes, where the format tells; those that are one long
    may then be missing, or be there in addition."""
    try:
        facts: dict[str, Any] = json.loads(str(text))[KEY]
        axes = str(facts["axes"])
        written = [int(n) for n in facts["shape"]]
        if len(axes) != len(written) or _long(axes, written) != _long(names or axes, shape):
            return None
        if names is None and written != list(shape):
            return None
        frame = Frame.from_facts(facts["frame"]) if facts.get("frame") else None
        spatial = sum(a in "zyx" for a in axes)
        spacing, translation = facts.get("spacing"), facts.get("translation") or [0.0] * spatial
        numbers = [*(spacing or ()), *translation, *(frame.origin if frame else ())]
        numbers += [v for row in frame.matrix for v in row] if frame else []
        if (frame and len(frame.matrix) != spatial) or not all(map(isfinite, numbers)) or 0 in (spacing or ()):
            return None
        return Account(
            axes=axes,
            spacing=tuple(map(float, spacing)) if spacing else None,
            translation=tuple(map(float, translation)),
            unit=str(facts["unit"]) if facts.get("unit") else None,
            frame=frame,
            channel_names=tuple(map(str, facts.get("channel_names") or ())),
            nodata=tuple(map(float, facts.get("nodata") or ())),
            nodata_of=_nodata_of(facts, dict(zip(axes, written, strict=True)).get("c", 1)),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _nodata_of(facts: Mapping[str, Any], channels: int) -> Missing:
    """Of each channel, where there are as many."""
    found = tuple(tuple(map(float, own)) for own in facts.get("nodata_of") or ())
    return found if len(found) == channels else ()


def _long(names: str, shape: Sequence[int]) -> dict[str, int]:
    return {a: n for a, n in zip(names, shape, strict=True) if n > 1}


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Of the array that begins at the place of an open ``.npy`` file: shape, whether its first axis is the fastest,
    type, and where the numbers begin."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype, file.tell()


def npy_text(path: str) -> str | None:
    """The text that a second array in the ``.npy`` file is, as bytes; None where there is none."""
    with Path(path).open("rb") as file:
        shape, _, dtype, offset = npy_header(file)
        end = offset + prod(shape) * dtype.itemsize
        length = file.seek(0, 2) - end
        if not 0 < length <= _LONGEST:
            return None
        file.seek(end)
        try:
            found = npy.read_array(file, allow_pickle=False)
        except Exception:  # whatever it is, it is none of ours
            return None
    return bytes(found).decode("utf-8", "replace") if found.dtype == np.uint8 and found.ndim == 1 else None


_LONGEST = 2**24
"""Bytes of text behind the numbers."""
