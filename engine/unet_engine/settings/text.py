"""How values of settings are written as text: windows, tilings, values, mirrors and turns, parts."""

from __future__ import annotations

import re
from math import inf, prod
from typing import Literal, cast

from unet_engine.units import MOST, MOST_VOXELS, times

EvenBlend = Literal["gaussian", "constant", "crop"]
"""How windows that are spread evenly are put together."""

WINDOW = "give one positive size per axis, e.g. 64,64,64"
"""How sizes of a window are written."""


def parse_window(text: str) -> tuple[int, ...]:
    """``64,64,64`` as sizes. Raises `ValueError` where it is none."""
    if not re.fullmatch(r"\s*[0-9]{1,18}\s*(,\s*[0-9]{1,18}\s*)*", text):
        raise ValueError(WINDOW)
    return plausible_window(tuple(int(part) for part in text.split(",")))


def plausible_window(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes that a window can have. Raises `ValueError` for all others."""
    if len(sizes) not in (2, 3):
        raise ValueError(f"it has {len(sizes)} sizes; give one per axis, e.g. 64,64,64")
    if min(sizes) < 1:
        raise ValueError(WINDOW)
    if max(sizes) > MOST or prod(sizes) > MOST_VOXELS:
        raise ValueError(f"no machine holds a window of {times(sizes)}; {WINDOW}")
    return sizes


TILING = "give window, voxels shared and blend, e.g. 136,144,144:16,16,16:crop"


def parse_tiling(text: str) -> tuple[tuple[int, ...], tuple[int, ...], EvenBlend]:
    """``136,144,144:16,16,16:crop`` as window, least voxels that neighbours share, and blend. Raises `ValueError` where
    it is none."""
    match = re.fullmatch(r"([0-9, ]+):([0-9, ]+):\s*(gaussian|constant|crop)\s*", text)
    if not match:
        raise ValueError(TILING)
    window = parse_window(match[1])
    if not re.fullmatch(r"\s*[0-9]{1,18}\s*(,\s*[0-9]{1,18}\s*)*", match[2]):
        raise ValueError(TILING)
    shared = tuple(int(part) for part in match[2].split(","))
    if len(shared) != len(window):
        raise ValueError(f"{len(window)} sizes and {len(shared)} that are shared; {TILING}")
    if any(s >= w > 1 for s, w in zip(shared, window, strict=True)):
        raise ValueError("neighbours share all of a window; let them share less")
    return window, shared, cast("EvenBlend", match[3])


def parse_values(text: str) -> tuple[float, ...]:
    """``-9999`` or ``0,nan`` as numbers. Raises `ValueError` where it is none, or without end."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("give a number, nan, or none") from None
    if any(value in (inf, -inf) for value in values):
        raise ValueError("give a finite number, or nan")
    return values


TTA = "give none, mirror, mirror:AXES, turns, or mirrors and turns joined by +, e.g. mirror:z+turns"


def parse_tta(text: str) -> tuple[str | None, bool]:
    """``mirror:yx+turns`` as the axes that are mirrored along (None: those that the model names) and whether windows
    are turned. Raises `ValueError` where it is none of these."""
    if text.strip() == "none":
        return "", False
    match = re.fullmatch(r"\s*(?:(mirror)(?::([zyx]{1,3}))?)?\s*(?:(\+?)\s*(turns))?\s*", text)
    if not match or bool(match[3]) != bool(match[1] and match[4]) or not (match[1] or match[4]):
        raise ValueError(TTA)
    axes = match[2] or ""
    if len(set(axes)) < len(axes):
        raise ValueError(TTA)
    return (match[2] if match[1] else ""), bool(match[4])


def parse_part(text: str) -> tuple[int, int]:
    """``i/n`` as two numbers, 1 <= i <= n. Raises `ValueError` where it is none."""
    match = re.fullmatch(r"\s*([0-9]{1,10})\s*/\s*([0-9]{1,10})\s*", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= MOST:
        raise ValueError("give the number of the part and how many there are, e.g. 1/4 to 4/4")
    return int(match[1]), int(match[2])
