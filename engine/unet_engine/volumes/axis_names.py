"""What people call the axes of an array, as one letter."""

from __future__ import annotations

_CALLED = {
    "x": "x lon longitude long easting col column columns width xc xdim xi projection_x_coordinate grid_longitude",
    "y": "y lat latitude northing row rows height yc ydim yi projection_y_coordinate grid_latitude",
    "z": "z depth plane planes slice slices lev level altitude alt plev elevation zc zdim",
    "c": "c ch channel channels band bands wavelength wavelengths rgb rgba spectral",
    "t": "t time times frame frames timepoint timepoints",
}
_LETTERS = {name: axis for axis, names in _CALLED.items() for name in names.split()}


def letter(name: str) -> str:
    """t, c, z, y or x for a name that says which it is; others as they are, in lower case."""
    return _LETTERS.get(name.strip().lower(), name.strip().lower())
