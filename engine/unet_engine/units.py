"""What people write and read: sizes, durations and lengths as text, and the way to tell them something."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite

Tell = Callable[[str], None]
"""Told to the user, one line at a time: what takes long, what is done otherwise than expected."""


_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_MICROMETERS = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
    "picometer": 1e-6,
    "decimeter": 1e5,
    "kilometer": 1e9,
    "inch": 25_400.0,
    "foot": 304_800.0,
    "yard": 914_400.0,
    "mile": 1_609_344_000.0,
}
_SHORT = {
    "a": "angstrom", "å": "angstrom", "nm": "nanometer", "um": "micrometer", "µm": "micrometer", "μm": "micrometer",
    "micron": "micrometer", "mm": "millimeter", "cm": "centimeter", "m": "meter", "pm": "picometer", "dm": "decimeter",
    "km": "kilometer", "in": "inch", "inches": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile",
}  # fmt: skip
_OF_NO_LENGTH = ("pixel", "voxel", "degree", "radian", "arcminute", "arcsecond")
"""What sizes of voxels are measured in, too, and stays as it is."""


MOST = 2**31 - 1
"""The largest count or size along an axis that is believed: what is larger is a slip, and overflows in some library."""
MOST_VOXELS = 2**48
"""Voxels of a window, likewise."""
MOST_BYTES = 2**60
"""Bytes of memory, likewise."""


def silent(_: str) -> None:
    """The `Tell` of those who have nobody to tell."""


def size(n: float) -> str:
    """Bytes with three digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:.3g} TiB"


def span(seconds: float) -> str:
    """A duration."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def times(sizes: Sequence[int | str]) -> str:
    """A shape: 64×64×64."""
    return "×".join(map(str, sizes))


def brief(value: object) -> str:
    """What somebody gave, as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…"


def printable(text: str) -> str:
    """`text` without characters that steer a terminal or turn its direction round: names may have any."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def parse_bytes(text: str) -> int:
    """``8GiB``, ``500MB``, ``2e9`` or a bare number of bytes. Raises ValueError where it is none of these."""
    match = re.fullmatch(r"\s*([0-9]{1,30}(?:\.[0-9]{0,30})?(?:e[0-9]{1,2})?)\s*([a-z]*?)b?\s*", text.lower())
    if not match or match[2] not in _FACTORS:
        raise ValueError("give a number of bytes, e.g. 8GiB")
    return int(float(match[1]) * _FACTORS[match[2]])


def finite(text: str) -> float:
    """The number that `text` is. Raises `ValueError` where it is none, or NaN or infinite: no setting means anything
    by those, and comparisons with NaN pass or fail whatever was meant."""
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def unit_name(text: str) -> str:
    """A unit as OME-Zarr names it, from that or a usual short form; what is not known stays as it is."""
    name = text.strip()
    plain = name.lower().replace("metre", "meter")
    for candidate in (plain, plain.removesuffix("s")):
        if candidate in _MICROMETERS or candidate in _SHORT:
            return _SHORT.get(candidate, candidate)
    return name


def micrometers(length: float, unit: str | None) -> float | None:
    """`length` in `unit` (as OME-Zarr names them) in micrometres; None where the unit is unknown."""
    factor = _MICROMETERS.get(unit_name(unit or ""))
    return None if factor is None else length * factor


def doubtful_unit(unit: str) -> str | None:
    """What people are told of a unit that voxels are measured in; None where it is one that is known."""
    name = unit_name(unit)
    if name in _MICROMETERS or name.lower().removesuffix("s") in _OF_NO_LENGTH:
        return None
    return f"{brief(unit)} is no unit that is known: the size of its voxels is kept as it is, and compared with nothing"


def shared_unit(units: Mapping[str, str]) -> tuple[str | None, dict[str, float]]:
    """One unit for lengths that are said in `units`, by axis, the smallest of them; and by axis what lengths are
    multiplied by to be in it. Raises `ValueError` naming the units where there is none."""
    named = {axis: unit_name(unit) for axis, unit in units.items()}
    if len(set(named.values())) < 2:
        return next(iter(named.values()), "") or None, dict.fromkeys(named, 1.0)
    lengths = {axis: _MICROMETERS.get(unit, 0.0) for axis, unit in named.items()}
    if not all(lengths.values()):
        said = ", ".join(f"{axis} in {brief(unit) if unit else 'none'}" for axis, unit in named.items())
        raise ValueError(f"axes of different units: {said}")
    least = min(lengths.values())
    unit = next(named[axis] for axis, length in lengths.items() if length == least)
    return unit, {axis: length / least for axis, length in lengths.items()}


def unit_along(said: Mapping[str, str]) -> tuple[str | None, dict[str, float], tuple[str, ...]]:
    """The same; where there is none, the sizes are numbers, and so the user is told."""
    try:
        return *shared_unit(said), ()
    except ValueError as error:
        return None, {}, (f"{error}; sizes of voxels are kept as numbers without a unit",)


def unit_of_length(text: str) -> str:
    """The name of the unit that somebody wrote, or ``pixel``. Raises `ValueError` where it is none that is known."""
    name = unit_name(text)
    if name not in _MICROMETERS and name != "pixel":
        raise ValueError(f"{brief(text)} is no unit of length that is known; give {', '.join(_MICROMETERS)} or pixel")
    return name
