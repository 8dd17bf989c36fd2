"""Alpha channels, as far as an array says what its channels are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = frozenset({"alpha", "alpha channel", "alpha band", "opacity"})
"""What alpha is called, and nothing else: ``alpha tubulin`` is something that was measured."""
_SHORT = frozenset({"r", "g", "b", "a"})
_KINDS = ("color_interp", "colorinterp", "color_interpretation", "band_names")
"""Attributes in which an array says what its channels are, as rasterio and GDAL do."""


def named(names: Sequence[str], attributes: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """Which of `count` channels are alpha, by what they are called."""
    said = [names, *(v for key in _KINDS if isinstance(v := attributes.get(key), list))]
    return tuple(sorted({i for channels in said if len(channels) == count for i in _among(channels)}))


def _among(channels: Sequence[Any]) -> list[int]:
    words = [str(name).strip().lower() for name in channels]
    short = {"a"} if set(words) == _SHORT and len(words) == len(_SHORT) else set()
    return [i for i, word in enumerate(words) if word in _NAMES | short]


def settled(path: str, found: Sequence[int], count: int) -> tuple[int | None, tuple[str, ...]]:
    """The one that says where something was measured, of `count` channels of which those `found` are alpha; and what
    the user is told where that is not settled."""
    if len(found) == 1 and count > 1:
        return found[0], ()
    listed = " and ".join(map(str, found))
    told = f"{path}: what it says of its channels makes {listed} alpha: they are read like others, or name those that "
    return None, (f"{told}are meant with --input-channels",) if found else ()
