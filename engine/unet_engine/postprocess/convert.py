"""A volume of one format as a file of another, by the same readers and writers as runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unet_engine.errors import OutputError
from unet_engine.output.completion import refuse_incomplete
from unet_engine.output.header import Header, read_header
from unet_engine.paths import inside, is_local, plain
from unet_engine.postprocess.content import content_of
from unet_engine.postprocess.deliver import check_place, deliver
from unet_engine.postprocess.formats import account_of, is_one_file, writer_of
from unet_engine.postprocess.working import is_file
from unet_engine.storage import stores
from unet_engine.units import Tell, silent
from unet_engine.volumes.formats import located, open_stored
from unet_engine.volumes.pick import ALL, Pick


def convert(
    source: str,
    out: str,
    *,
    axes: str | None = None,
    image: str | None = None,
    level: int | None = None,
    pick: Pick = ALL,
    images: str | None = None,
    overwrite: bool = False,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Write the volume at `source` to `out`, in the format that its name says; returns what was written.

    Voxels and their type are kept; coordinates as far as the format holds them, and `tell` hears what it does not.
    images: the series that labels were made of, for formats that name it; default: what a run says.

    Raises `InputError` for what cannot be read, and `OutputError` for what cannot be written, or not in this format.
    """
    source, out = plain(source), plain(out)
    writer = writer_of(out)
    check_place(out, overwrite=overwrite)
    volume = open_stored(located(source, image, level), axes)
    if stores.nested(out, source):
        raise OutputError(f"{out} overlaps the input {source}; choose a place of its own")
    for note in volume.notes:
        tell(note)
    content = content_of(volume, pick, _header(source))
    if images:
        content = replace(content, source=images, labels=content.dtype.kind in "biu")
    for loss in deliver(content, out, overwrite=overwrite):
        tell(loss)
    volume.release()
    return {
        "in": source, "out": out, "format": writer.name, "axes": content.axes, "shape": list(content.shape),
        "dtype": str(content.dtype), "unit": content.unit,
        "spacing": None if content.spacing is None else list(content.spacing),
    }  # fmt: skip


def _header(source: str) -> Mapping[str, Any]:
    """What a run says of the volume at `source`: which classes, made of what. Raises `OutputError` for an output that
    is not complete: what is missing in it would be taken for background."""
    if is_one_file(source) if is_local(source) else is_file(inside(source)[0]):
        return account_of(source) or {}
    folder = source.rstrip("/")
    header = read_header(folder) or read_header(folder.rpartition("/")[0]) or {}
    if header.get("digest") and header.get("complete") is False:
        refuse_incomplete(Header.of(folder if read_header(folder) else folder.rpartition("/")[0]))
    return header
