"""A colour for each class, where nobody names one."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]
_TURN = 0.618033988749895
"""Of the circle of hues (the golden ratio): however many follow one another, they lie far apart."""


def colour_of(label: int) -> Colour:
    """Red, green and blue, 0 to 255. The background is black; neighbours in number differ most."""
    if label == 0:
        return 0, 0, 0
    red, green, blue = colorsys.hsv_to_rgb(label * _TURN % 1, (0.75, 0.5, 0.9)[label % 3], (0.95, 0.85, 0.7)[label % 3])
    return round(255 * red), round(255 * green), round(255 * blue)
