"""A colour for each class, named by the model or by nobody."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

Colour = tuple[int, int, int]
_TURN = 0.618033988749895
"""Of the circle of hues (the golden ratio): however many follow one another, they lie far apart."""


def colour_of(label: int, named: Sequence[str] = ()) -> Colour:
    """Red, green and blue, 0 to 255: of `named`, as ``#RRGGBB``, where there is one for `label`; else the background is
    black, and neighbours in number differ most."""
    if label < len(named):
        red, green, blue = bytes.fromhex(named[label].removeprefix("#"))
        return red, green, blue
    if label == 0:
        return 0, 0, 0
    shade = label % 3
    found = colorsys.hsv_to_rgb(label * _TURN % 1, (0.75, 0.5, 0.9)[shade], (0.95, 0.85, 0.7)[shade])
    return round(255 * found[0]), round(255 * found[1]), round(255 * found[2])
