"""The image that labels were made of."""

from __future__ import annotations

from dataclasses import replace

from unet_engine.errors import InputError, first_line
from unet_engine.postprocess.source import Source
from unet_engine.postprocess.table import check_image
from unet_engine.units import Tell
from unet_engine.volumes.nodata import same, union


def image_of(source: Source, given: str | None, tell: Tell) -> Source | None:
    """The image named `given`; without a name the one that the labels say they were made of, if it is there and on
    their grid, and else none, which is told. Raises `InputError` where a named one is not there."""
    if given is not None:
        return None if given == "none" else Source.of(given)
    named = source.header.get("input")
    if not isinstance(named, str):
        return None
    try:
        image = Source.of(named)
        check_image(source, image)
    except InputError as error:
        tell(f"no intensities, as the image that the labels were made of is not to be had: {first_line(error)}")
        return None
    return _as_read(image, source.header.get("outside"))


def _as_read(image: Source, outside: object) -> Source:
    """`image` without the values, too, that its run was told of (``--nodata``), as the header of the labels has them:
    those of all channels."""
    said = outside.get("nodata") if isinstance(outside, dict) and "nodata_of" not in outside else None
    own = same(image.open().missing)
    return replace(image, nodata=union((own, tuple(map(float, said))))) if said and own is not None else image
