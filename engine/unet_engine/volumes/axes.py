"""What the axes of a stored array are called, and whether it is a volume at all. The same words for every format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.units import brief, times

_BY_RANK = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}
_COLOURED = {3: "yxc", 4: "zyxc", 5: "tzyxc"}
COLOURS, SIDES = (3, 4), range(32, 2**30)
"""Sizes of a last axis that may be colours, and those that all others have then: no volume is so thin along x, and no
picture larger."""
LARGEST = 2**42
"""Voxels along an axis, more than any volume has."""
_MOST_CHANNELS = 2**20


def check_sizes(path: str, shape: Sequence[int], chunks: Sequence[int]) -> None:
    """Raises `InputError` where the array at `path` cannot have this `shape` or these `chunks`: what its metadata say
    is wrong, or there to do harm."""
    if any(n > LARGEST for n in shape):
        shown = times([n if n <= LARGEST else f"10^{len(str(n)) - 1 if n < 10**4000 else '4000'}" for n in shape])
        raise InputError(f"{path} says that its shape is {shown}, which no volume has; correct its metadata")
    if any(not 0 < n <= LARGEST for n in chunks) and 0 not in shape:
        shown = times([n if n <= LARGEST else "over 10^12" for n in chunks])
        raise InputError(f"{path} says that its chunks are {shown}, which none can be; correct its metadata")


def supposed(said: Sequence[str] | None, names: str) -> str:
    """Of `names`, which `checked_axes` made of what is `said`, those that may be something else where nothing is: the
    planes of a stack may be channels, and x may come first."""
    return "" if said else names.replace("c", "")


def checked_axes(path: str, shape: Sequence[int], dtype: np.dtype[Any], axes: Sequence[str] | None) -> str:
    """The axes of the array at `path`: `axes`, a name for each, or what is usual where nobody names them.

    Raises `InputError` where the array is no volume: no numbers, axes that are not understood, no voxels.
    """
    if dtype.kind not in "buif":
        raise InputError(f"{path} holds {dtype}; convert it to integers or floating point numbers")
    long = [name for name in axes or () if len(name) != 1]
    if long:
        raise InputError(
            f"{path} calls its axes {', '.join(map(brief, axes or ()))}, and {', '.join(map(brief, long))} may be anything; "
            "say what they are with --axes, one letter of t, c, z, y, x each, e.g. --axes cyx"
        )
    names = "".join(axes or _BY_RANK.get(len(shape), ""))
    if len(shape) < 2:
        raise InputError(f"{path} has {len(shape)} axes ({times(shape)}); give a volume with 2 or 3 spatial axes")
    channels = dict(zip(names, shape, strict=False)).get("c", 1)
    if channels > _MOST_CHANNELS:  # which are listed, and read together
        raise InputError(
            f"{path} has {channels:,} channels along the axis c of {names}, and at most {_MOST_CHANNELS:,} are read; say "
            "with --axes what the axes are, or correct its header"
        )
    if len(names) != len(shape):
        fit = f"which {names!r} does not fit" if names else "and nothing says which"
        raise InputError(f"{path} has {len(shape)} axes ({times(shape)}), {fit}; use --axes, e.g. czyx")
    if len(set(names)) != len(names) or not set(names) <= set("tczyx") or not {"y", "x"} <= set(names):
        raise InputError(
            f"axes {names!r} of {path} are not understood; name each of t, c, z, y, x at most once, y and x always"
        )
    if not axes and len(shape) in _COLOURED and shape[-1] in COLOURS and all(n in SIDES for n in shape[:-1]):
        raise InputError(
            f"{path} has the shape {times(shape)}, and nothing says what its axes are: the last may be colours; say --axes "
            f"{_COLOURED[len(shape)]}, or --axes {names} where it is x"
        )
    if 0 in shape:
        raise InputError(f"{path} is empty, its shape is {times(shape)}; give a volume with voxels")
    return names
