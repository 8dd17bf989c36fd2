"""Alpha channels, as far as an array says what its channels are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ALPHA = ("alpha", "opacity", "transparency")
_KINDS = ("color_interp", "colorinterp", "color_interpretation", "band_names")
"""Attributes in which an array says what its channels are, as rasterio and GDAL do."""


def told(path: str, names: Sequence[str], attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where names of channels say that one is alpha: it is read like others, and no network means it."""
    said = [names, *(v for key in _KINDS if isinstance(v := attributes.get(key), list))]
    found = {i for channels in said for i, name in enumerate(channels) if str(name).lower().split(" ")[0] in _ALPHA}
    return tuple(
        f"{path}: channel {i} is alpha, as its metadata say, and is read like the others; --input-channels leaves it out"
        for i in sorted(found)
    )
