"""What a VRT leads to, and what lies beside a raster: looked at before GDAL opens any of it.

A VRT is a text that names other files. Mosaics name theirs wherever they are, so those outside of its folder are told;
but one from elsewhere is not to have a pipe or a device opened, nor bytes of any file read as if they were a raster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from unet_engine.errors import InputError
from unet_engine.paths import check_file, is_local
from unet_engine.units import brief

_LONGEST = 2**26
"""Bytes of a VRT."""
_DEEPEST = 8
"""VRTs that are read in one another."""
_NAMING = ("sourcefilename", "sourcedataset", "filename", "linkedsource")
"""Elements of a VRT that hold the name of another file. GDAL takes them in any case."""


def checked(file: str) -> tuple[str, ...]:
    """Notes about what the VRT `file` leads to outside of its folder.

    Raises `InputError` where that is a pipe or a device, or, of plain bytes, lies outside, or is the VRT itself.
    """
    found = tuple(_checked(file, ()))
    more = f" and {len(found) - 1} others" if len(found) > 1 else ""
    return (f"{file} reads {brief(found[0])}{more}, outside of its folder",) if found else ()


def _checked(file: str, above: tuple[str, ...]) -> dict[str, None]:
    """What `file` names outside of its folder; `above` are the VRTs that lead to it."""
    found: dict[str, None] = {}
    above = (*above, os.path.realpath(file))
    for name, place, plain in _named(file):
        outside = place is None or not _below(os.path.dirname(file) or ".", place)  # noqa: PTH120
        if place is None and ("/vsistdin" in name.lower() or plain):
            raise InputError(f"{file} reads {brief(name)}, which is no file; give a VRT that names files")
        if place is not None:
            _check_regular(place, file)
            if outside and plain:
                raise InputError(
                    f"{file} reads {brief(name)} as plain bytes, which lies outside of its folder; put that file beside it"
                )
        if outside:
            found[name] = None
        if place and place.lower().endswith(".vrt") and Path(place).is_file():
            # GDAL says so, and then takes what is missing in other files as zeros
            if os.path.realpath(place) in above or len(above) > _DEEPEST:
                raise InputError(f"{file} reads {brief(name)}, which leads back to it or too deep; correct it")
            found |= _checked(place, above)
    return found


def check_beside(file: str) -> None:
    """Raise `InputError` where a file that GDAL takes for one of the raster `file`, by its name, is a pipe or a
    device."""
    folder, name = os.path.split(file)
    stem = name.rpartition(".")[0].lower()
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            if entry.name.lower().startswith(stem) and not entry.is_dir():
                _check_regular(entry.path, file)


def _named(file: str) -> Iterator[tuple[str, str | None, bool]]:
    """What the VRT names: as it says it, as a path of this disk or None, and whether it is read as plain bytes."""
    try:
        if check_file(file).st_size > _LONGEST:
            raise InputError(f"{file} is far longer than any VRT; give another --in")
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{file} is no readable raster: {error}; restore it, or give another --in") from error
    waiting = [(root, False)]
    while waiting:
        element, plain = waiting.pop()
        attributes = {key.lower(): value for key, value in element.attrib.items()}
        plain = plain or attributes.get("subclass", "").lower() == "vrtrawrasterband"
        if element.tag.lower() in _NAMING and (name := (element.text or "").strip()):
            relative = next((v for k, v in attributes.items() if k.startswith("relativeto")), "0") == "1"
            yield name, _place(file, name, relative=relative), plain
        waiting.extend((inside, plain) for inside in element)


def _place(file: str, name: str, *, relative: bool) -> str | None:
    """The path that `name` means; None where it is none of this disk: a URL, a place of GDAL's own, a connection."""
    if not is_local(name) or name.lower().startswith("/vsi") or "<" in name:
        return None
    place = os.path.join(os.path.dirname(file), name) if relative else name  # noqa: PTH118, PTH120
    return None if ":" in name and not os.path.lexists(place) else place


def _below(folder: str, file: str) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


def _check_regular(place: str, file: str) -> None:
    try:
        check_file(place)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return  # GDAL says what is missing; some rasters are folders
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{file} has {place} read, which cannot be: {reason}; take that out") from error
