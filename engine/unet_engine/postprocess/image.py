"""The image that labels were made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unet_engine.errors import InputError, first_line
from unet_engine.paths import absolute
from unet_engine.postprocess.source import Source
from unet_engine.postprocess.table import check_image
from unet_engine.units import Tell
from unet_engine.volumes.nodata import same, union


def image_of(source: Source, given: str | None, tell: Tell) -> Source | None:
    """The image named `given`; without a name the one that the labels say they were made of, if it is there and on
    their grid, and else none, which is told. Raises `InputError` where a named one is not there."""
    if given == "none":
        return None
    named = source.header.get("input")
    if given is not None:
        return _as_read(given, source.header) if named == absolute(given) else Source.of(given)
    if not isinstance(named, str):
        return None
    try:
        image = _as_read(named, source.header)
        check_image(source, image)
    except InputError as error:
        tell(f"no intensities, as the image that the labels were made of is not to be had: {first_line(error)}")
        return None
    return image


def _as_read(path: str, header: dict[str, Any]) -> Source:
    """The image at `path` as the run read it whose labels have that header: by the axes that it was told, and also
    without the values that it was told of (``--nodata``), those of all channels."""
    axes, outside = header.get("input_axes"), header.get("outside")
    image = Source.of(path, axes if isinstance(axes, str) else None)
    said = outside.get("nodata") if isinstance(outside, dict) and "nodata_of" not in outside else None
    own = same(image.open().missing)
    return replace(image, nodata=union((own, tuple(map(float, said))))) if said and own is not None else image
