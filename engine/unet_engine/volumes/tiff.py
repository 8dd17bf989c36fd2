"""TIFF, OME-TIFF, ImageJ's stacks and what else tifffile takes: read by tile or strip, or in place where nothing is
compressed."""

from __future__ import annotations

import glob
import itertools
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from unet_engine.errors import DataError, InputError
from unet_engine.units import times
from unet_engine.volumes import account, alpha, pictures
from unet_engine.volumes.axes import checked_axes
from unet_engine.volumes.base import Array, Selection, Volume
from unet_engine.volumes.files import (
    FileVolume,
    Kept,
    Part,
    PlainVolume,
    check_pieces,
    grouped,
    has_ending,
    opening,
    package,
    plain_chunks,
)
from unet_engine.volumes.tiff_tags import Placed, alphas, nodata_of, placed

ENDINGS = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".svs", ".ndpi", ".stk", ".qptiff", ".scn")
KEPT_BYTES = 2**26
"""Of pieces that were decoded, kept for the next block: strips are as wide as the image."""


class TiffFormat:
    def recognises(self, path: str) -> bool:
        return has_ending(path, *ENDINGS)

    def open(self, path: str, axes: str | None) -> Volume:
        part = Part.of(path)
        tifffile = package(path, "a TIFF file", "tifffile", "tiff")
        with opening(path, "TIFF file"):
            file = tifffile.TiffFile(path)
            try:
                return _volume(path, part, file, axes)
            except BaseException:
                file.close()
                raise


def _volume(path: str, part: Part, file: Any, axes: str | None) -> Volume:
    _check_named(path, file)
    series = _series(path, file)
    names = _named(path, series, axes)
    if series.dataoffset is not None and series.dtype.kind in "buif":
        return _in_place(path, part, series, names)
    return _by_piece(path, part, series, names)


def _several(path: str) -> InputError:
    return InputError(f"{path} is one of several files of an OME-TIFF; join them to one, or give a folder of slices")


def _check_named(path: str, file: Any) -> None:
    """Raise `InputError` where a file's own description leads to other files, which tifffile would open, whatever they
    are, or to more planes than any has, which it would list."""
    if "_MMStack" in file.filename:
        for other in Path(path).parent.glob(f"{glob.escape(file.filename.rpartition('_MMStack')[0])}_MMStack*"):
            Part.of(str(other))
    if not file.is_ome:
        return
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:  # tifffile goes by the pages then
        return
    for element in root.iter():
        kind, said = element.tag.rpartition("}")[2], element.attrib
        planes = [abs(int(said[key])) for key in _COUNTS.get(kind, ()) if said.get(key, "").lstrip("-").isdecimal()]
        if prod(map(max, planes, itertools.repeat(1))) > _MOST_PLANES:
            raise InputError(f"{path} describes more planes than {_MOST_PLANES:,}, the most that are read; correct it")
        own = element.text == root.get("UUID") or (
            root.get("UUID") is None and said.get("FileName", "").lower() == file.filename.lower()
        )
        if kind == "UUID" and "FileName" in said and not own:
            raise _several(path)


_COUNTS = {"Pixels": ("SizeZ", "SizeC", "SizeT"), "TiffData": ("PlaneCount", "NumPlanes")}
_MOST_PLANES = 2**22


def _series(path: str, file: Any) -> Any:
    """The image that is meant: the only one, or one that is larger than all others. Raises `InputError` listing
    them."""
    found = sorted(file.series, key=lambda s: -prod(s.shape))
    if not found:
        raise InputError(f"{path} holds no image; give another --in")
    if len(found) > 1 and prod(found[0].shape) == prod(found[1].shape):
        listed = ", ".join(f"{times(s.shape)} {s.axes}" for s in file.series[:8])
        raise InputError(
            f"{path} holds {len(found)} images, and nothing says which is meant ({listed}); save the one as a file"
        )
    if found[0].is_multifile:
        raise _several(path)
    return found[0]


def _named(path: str, series: Any, axes: str | None) -> str:
    """The axes of `series`, one letter each. What tells nothing (I, Q: any sequence) is z, samples are channels."""
    if axes is None:
        names = series.axes.lower()
        if "c" not in names:
            names = names.replace("s", "c")
        for anything in "iq":
            names = names.replace(anything, "z") if "z" not in names else names
        axes = names
    return checked_axes(path, series.shape, series.dtype, axes)


def _facts(path: str, part: Part, series: Any, names: str) -> dict[str, Any]:
    where: Placed = placed(series, names)
    tag = series.keyframe.tags.get(account.TIFF_TAG)
    said = account.read(tag.value, series.shape, names) if tag else None
    channels = series.shape[names.index("c")] if "c" in names else 1
    of_alpha, doubts = alpha.settled(path, alphas(series, names), channels)
    if said:
        where = Placed(said.along(names, said.spacing, 1.0), said.along(names, said.translation, 0.0), said.unit)
    return {
        "path": path,
        "axes": names,
        "stored_shape": tuple(series.shape),
        "stored_spacing": where.spacing,
        "stored_translation": where.translation,
        "unit": where.unit,
        "frame": said.frame if said else None,
        "channel_names": said.channel_names if said else (),
        "notes": (*_others(path, series), *doubts, *_meant(path, series), *where.notes),
        "alpha": of_alpha,
        "nodata": nodata_of(series.keyframe, np.dtype(series.dtype)),
        "opened_by": TiffFormat(),
        "files": (part,),
    }


def _others(path: str, series: Any) -> tuple[str, ...]:
    """A note where the file holds smaller images beside the one that is read: a thumbnail, a label."""
    count = len(series.parent.series)
    return (f"{path} holds {count} images; the largest is read, {times(series.shape)}",) if count > 1 else ()


_MEANT = {0: "MINISWHITE, where low values are shown bright", 3: "a picture of a palette, whose values number colours"}
"""By PhotometricInterpretation: what a network may have seen otherwise."""


def _meant(path: str, series: Any) -> tuple[str, ...]:
    meant = _MEANT.get(int(series.keyframe.photometric))
    return (f"{path} is {meant}: voxels are taken as they are stored",) if meant else ()


def _in_place(path: str, part: Part, series: Any, names: str) -> Volume:
    dtype = np.dtype(series.dtype).newbyteorder(series.parent.byteorder)
    check_pieces(path, series.shape, plain_chunks(names, series.shape), dtype.itemsize)
    part.check_length(series.dataoffset + prod(series.shape) * dtype.itemsize)
    found = PlainVolume(
        **_facts(path, part, series, names),
        stored_chunks=plain_chunks(names, series.shape),
        stored_dtype=dtype,
        data=path,
        offset=series.dataoffset,
        numbers=dtype,
    )
    series.parent.close()
    return found


def _by_piece(path: str, part: Part, series: Any, names: str) -> Volume:
    page = series.keyframe
    inside = tuple(n for a, n in zip(page.axes, page.shape, strict=True) if a in _axes_of(page))
    pages = tuple(series.shape[: len(series.shape) - len(inside)])
    if (*pages, *inside) != tuple(series.shape) or len(series) != prod(pages):
        raise InputError(
            f"{path}: its pages of {times(inside)} do not make up an image of {times(series.shape)} "
            f"({series.axes}); save it as a plain stack"
        )
    pieces = tuple(len(span) for span in _piece(page))
    check_pieces(path, inside, pieces, page.dtype.itemsize)
    return TiffVolume(
        **_facts(path, part, series, names),
        stored_chunks=grouped(names, series.shape, (1,) * len(pages) + pieces, page.dtype.itemsize),
        stored_dtype=np.dtype(page.dtype),
        series=series,
        handle=_Handle(series.parent),
        pages=pages,
    )


class _Handle:
    """An open file of tifffile's, closed once no volume is left that reads it, picked or not."""

    def __init__(self, file: Any) -> None:
        weakref.finalize(self, file.close)


def _places(page: Any) -> dict[str, int]:
    """Which of the five axes that tifffile counts each of a page's own is."""
    return {"S": 0 if page.axes[0] == "S" else 4, "Z": 1, "Y": 2, "X": 3}


def _sides(page: Any) -> tuple[int, ...]:
    """What a page is stored in, along separate samples, depth, rows, columns and samples side by side."""
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    return 1, max(1, page.tiledepth), rows, columns, page.shaped[4]


def _piece(page: Any) -> list[range]:
    """The same along a page's own axes."""
    place = _places(page)
    return [range(_sides(page)[place[axis]]) for axis in _axes_of(page)]


@dataclass(frozen=True, eq=False, kw_only=True)
class TiffVolume(FileVolume):
    """Read by pieces: tiles, or strips of rows."""

    series: Any
    handle: _Handle
    pages: tuple[int, ...]
    """How many, along the axes that come before those of a page."""
    _kept: Kept[tuple[Array, tuple[int, ...]]] = field(default_factory=lambda: Kept(KEPT_BYTES))

    def stored(self, selection: Selection) -> Array:
        lead = len(self.pages)
        spans = [range(*part.indices(n)) for part, n in zip(selection, self.stored_shape, strict=True)]
        out = np.empty([len(span) for span in spans], self.stored_dtype)
        inside = spans[lead:]
        for index in itertools.product(*(enumerate(span) for span in spans[:lead])):
            number = int(np.ravel_multi_index([i for _, i in index], self.pages)) if lead else 0
            self._fill(out[tuple(i for i, _ in index)], number, inside)
        return out

    def _fill(self, out: Array, number: int, spans: Sequence[range]) -> None:
        """Copy what page `number` holds in `spans` to `out`. A page is taken as tifffile counts: separate samples,
        depth, rows, columns, samples side by side."""
        page = self.series[number]
        if page is None:
            raise DataError(
                f"plane {number} is described, but not in the file; save the planes that are there by themselves"
            )
        key = self.series.keyframe
        five = _five(key, spans)
        target = out.reshape([len(span) for span in five])
        for piece in _meeting(key, five):
            self._place(target, five, page, number, piece)

    def _place(self, target: Array, spans: Sequence[range], page: Any, number: int, piece: int) -> None:
        voxels, corner = self._kept.get((number, piece), lambda: self._decoded(page, piece))
        from_, to = [], []
        shape = (1, *voxels.shape)
        for span, start, length in zip(spans, corner, shape, strict=True):
            lo, hi = max(span.start, start), min(span.stop, start + length)
            from_.append(slice(lo - start, hi - start))
            to.append(slice(lo - span.start, hi - span.start))
        target[tuple(to)] = voxels[np.newaxis][tuple(from_)]

    def _decoded(self, page: Any, piece: int) -> tuple[Array, tuple[int, ...]]:
        """A piece of a page, and where its first voxel lies."""
        key = self.series.keyframe
        start, length = page.dataoffsets[piece], page.databytecounts[piece]
        file = self.files[0]
        if start + length > file.length:
            raise OSError(f"it ends at byte {start + length:,} of {file.length:,}")
        with open(file.path, "rb") as opened:  # noqa: PTH123
            data = os.pread(opened.fileno(), length, start)
        tables = (
            {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
            if key.compression in (6, 7, 34892, 33007)
            else {}
        )
        pictures.check(data, *_sides(key)[2:4])
        voxels, corner, shape = key.decode(data or None, piece, **tables)
        if voxels is None:
            voxels = np.full(shape, key.nodata, self.stored_dtype)
        return voxels, corner


def _axes_of(page: Any) -> str:
    """The axes of a page, as the series has them: it leaves out samples where there is one."""
    return "".join(a for a, n in zip(page.axes, page.shape, strict=True) if a != "S" or n > 1)


def _five(page: Any, spans: Sequence[range]) -> list[range]:
    """`spans` of a page's own axes as those of all five that tifffile counts."""
    place = _places(page)
    found = [range(1)] * 5
    for axis, span in zip(_axes_of(page), spans, strict=True):
        found[place[axis]] = span
    return found


def _meeting(page: Any, spans: Sequence[range]) -> Iterator[int]:
    """The numbers of the pieces of `page` that meet `spans`."""
    sides = _sides(page)[:4]
    grid = [-(-n // side) for n, side in zip(page.shaped, sides, strict=False)]
    wanted = [range(span.start // side, -(-span.stop // side)) for span, side in zip(spans, sides, strict=False)]
    for index in itertools.product(*wanted):
        yield int(np.ravel_multi_index(index, grid))
