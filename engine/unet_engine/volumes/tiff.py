"""TIFF, OME-TIFF, ImageJ's stacks and what else tifffile takes: read by tile or strip, or in place where nothing is
compressed."""

from __future__ import annotations

import itertools
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from unet_engine.errors import DataError, InputError
from unet_engine.paths import chosen, inside, said
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.units import times
from unet_engine.volumes import account, alpha, pictures, tiff_files
from unet_engine.volumes.base import Array, Selection, Volume
from unet_engine.volumes.files import (
    FileVolume,
    Kept,
    Part,
    PlainVolume,
    check_pieces,
    grouped,
    has_ending,
    listening,
    opening,
    package,
    plain_chunks,
)
from unet_engine.volumes.tiff_images import Image, image_of, listed, named_axes, names_of, unnamed
from unet_engine.volumes.tiff_tags import Placed, alphas, channels_of, nodata_of, placed, timing_of

ENDINGS = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".svs", ".ndpi", ".stk", ".qptiff", ".scn")


class TiffFormat:
    def recognises(self, path: str) -> bool:
        return has_ending(inside(path)[0], *ENDINGS, tiff_files.COMPANION)

    def located(self, path: str, image: str | None, level: int | None) -> str:
        return chosen(path, image=image, level=level or None)

    def images(self, path: str) -> list[str]:
        whole = inside(path)[0]
        if "image" in said(path):
            return []
        tifffile = package(path, "a TIFF file", "tifffile", "tiff")
        with opening(path, "TIFF file"):
            file, _, _ = tiff_files.opened(whole, tifffile)
            try:
                return names_of(file)
            finally:
                file.close()

    def open(self, path: str, axes: str | None) -> Volume:
        whole, wanted = inside(path)[0], said(path)
        Part.of(whole)
        tifffile = package(path, "a TIFF file", "tifffile", "tiff")
        with opening(path, "TIFF file"), listening(tifffile.logger()) as heard:
            file, parts, notes = tiff_files.opened(whole, tifffile)
            try:
                image = image_of(whole, file, wanted.get("image"), wanted.get("level", "0"))
                found = _volume(path, parts, image, axes)
                _check_whole(path, heard)
                return replace(found, notes=(*notes, *found.notes))
            except BaseException:
                file.close()
                raise


_BROKEN = re.compile(
    r"invalid page offset|ImageJ series metadata invalid|TiffTag (\d{1,4}|[12]\d{4}) .*invalid value offset"
)
"""What tifffile only logs of a file that lacks pages or their own tags, to make of the rest what it can: another image
than was meant. Tags from 30000 on are private, and no loss."""


def _check_whole(path: str, heard: Sequence[str]) -> None:
    """Raise `DataError` where tifffile, which was `heard`, found that the file breaks off."""
    if broken := next((line for line in heard if _BROKEN.search(line)), None):
        raise DataError(f"{path} breaks off: {broken.rpartition('> ')[2][:120]}; restore it, or give another --in")


def _volume(path: str, parts: tuple[Part, ...], image: Image, axes: str | None) -> FileVolume:
    series = image.series
    names = named_axes(path, series, axes)
    found = {page.parent.filehandle.path for page in listed(series) if page is not None}
    homes = list({os.path.realpath(place) for place in found})
    if len(homes) == 1 and series.dataoffset is not None and series.dtype.kind in "buif":
        home = next(part for part in parts if os.path.realpath(part.path) == homes[0])
        made: FileVolume = _in_place(path, home, parts, image, names)
    else:
        made = _by_piece(path, parts, image, names)
    return replace(made, supposed="") if axes and made.supposed else made


def _facts(path: str, parts: tuple[Part, ...], image: Image, names: str) -> dict[str, Any]:
    series = image.series
    where: Placed = placed(image.full, names)
    if series is not image.full:
        where = where.coarser(image.full.shape, series.shape)
    tag = series.keyframe.tags.get(account.TIFF_TAG)
    own = account.read(tag.value, series.shape, names) if tag else None
    channels = series.shape[names.index("c")] if "c" in names else 1
    seen = alphas(series, names) or (alpha.named(own.channel_names, {}, channels) if own else ())
    of_alpha, doubts = alpha.settled(path, seen, channels)
    if own:
        where = Placed(own.along(names, own.spacing, 1.0), own.along(names, own.translation, 0.0), own.unit)
    return {
        "path": path,
        "axes": names,
        "supposed": "" if own else unnamed(series),
        "stored_shape": tuple(series.shape),
        "stored_spacing": where.spacing,
        "stored_translation": where.translation,
        "unit": where.unit,
        "frame": own.frame if own else None,
        "channel_names": own.channel_names if own else channels_of(image.full, names),
        "notes": (*image.told, *_missing(path, series), *doubts, *_meant(path, series), *where.notes),
        "alpha": of_alpha,
        "timing": timing_of(image.full) if "t" in names else None,
        "nodata": own.nodata if own else nodata_of(series.keyframe, np.dtype(series.dtype)),
        "nodata_of": own.nodata_of if own else (),
        "opened_by": TiffFormat(),
        "files": parts,
        "overviews": tuple(times(one.shape) for one in image.full.levels[1:]) if series is image.full else (),
    }


def _missing(path: str, series: Any) -> tuple[str, ...]:
    """A note where planes are described that are in no file: they are refused once they are read."""
    gone = [number for number, page in enumerate(listed(series)) if page is None]
    if not gone:
        return ()
    return (f"{path} describes {len(series):,} planes, and {len(gone):,} are in no file, the first is {gone[0]}",)


_MEANT = {0: "MINISWHITE, where low values are shown bright", 3: "a picture of a palette, whose values number colours"}
"""By PhotometricInterpretation: what a network may have seen otherwise."""


def _meant(path: str, series: Any) -> tuple[str, ...]:
    meant = _MEANT.get(int(series.keyframe.photometric))
    told = [f"{path} is {meant}: voxels are taken as they are stored"] if meant else []
    turned = series.keyframe.tags.get(_ORIENTATION)
    if turned is not None and turned.value not in (0, 1):
        told.append(f"{path} asks to be shown turned or mirrored: it is read as it is stored, and so is the result")
    return tuple(told)


_ORIENTATION = 274
"""The tag that says where the first row and column are shown."""


def _in_place(path: str, home: Part, parts: tuple[Part, ...], image: Image, names: str) -> FileVolume:
    """home: the one of its files that holds all planes."""
    series = image.series
    dtype = np.dtype(series.dtype).newbyteorder(series.keyframe.parent.byteorder)
    check_pieces(path, series.shape, plain_chunks(names, series.shape), dtype.itemsize)
    home.check_length(series.dataoffset + prod(series.shape) * dtype.itemsize)
    found = PlainVolume(
        **_facts(path, parts, image, names),
        stored_chunks=plain_chunks(names, series.shape),
        stored_dtype=dtype,
        data=home.path,
        offset=series.dataoffset,
        numbers=dtype,
    )
    series.parent.close()
    return found


def _by_piece(path: str, parts: tuple[Part, ...], image: Image, names: str) -> FileVolume:
    series = image.series
    page = series.keyframe
    inside = tuple(n for a, n in zip(page.axes, page.shape, strict=True) if a in _axes_of(page))
    pages = tuple(series.shape[: len(series.shape) - len(inside)])
    if (*pages, *inside) != tuple(series.shape) or len(series) != prod(pages):
        raise InputError(
            f"{path}: its pages of {times(inside)} do not make up an image of {times(series.shape)} "
            f"({series.axes}); save it as a plain stack"
        )
    pieces = tuple(len(span) for span in _piece(page))
    _check_alike(path, inside, series)
    return TiffVolume(
        **_facts(path, parts, image, names),
        stored_chunks=grouped(names, series.shape, (1,) * len(pages) + pieces, page.dtype.itemsize),
        stored_dtype=np.dtype(page.dtype),
        series=series,
        handle=_Handle(series.parent),
        pages=pages,
        homes={os.path.realpath(part.path): part for part in parts},
    )


def _check_alike(path: str, inside: tuple[int, ...], series: Any) -> None:
    """Raise `InputError` where pages of other files are of another shape or type, or any is stored in pieces that are
    too large."""
    first = series.keyframe
    for key in {id(page.keyframe): page.keyframe for page in listed(series) if page is not None}.values():
        if (key.shape, key.axes, key.dtype) != (first.shape, first.axes, first.dtype):
            raise InputError(
                f"{path}: pages of {key.parent.filehandle.name} are {times(key.shape)} {key.dtype}, and others "
                f"{times(first.shape)} {first.dtype}; give files that are alike"
            )
        check_pieces(path, inside, tuple(len(span) for span in _piece(key)), key.dtype.itemsize)


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
    homes: dict[str, Part]
    """The files that pages lie in, by where they are after links."""
    kept: Kept[Any] = field(default_factory=Kept)
    """Pieces, each with where its first voxel lies: strips are as wide as the image."""

    @property
    def pieces(self) -> tuple[int, ...] | None:
        return self.along((1,) * len(self.pages) + tuple(len(span) for span in _piece(self.series.keyframe)))

    def keep(self, most: int, reads: Fetching | None) -> None:
        self.kept.allow(most)

    def parts(self, box: Box) -> Iterable[Part]:
        if len(self.files) == 1:
            return self.files
        spans = [range(*s.indices(n)) for s, n in zip(self._selection(box), self.stored_shape, strict=True)]
        numbers = (int(np.ravel_multi_index(i, self.pages)) for i in itertools.product(*spans[: len(self.pages)]))
        pages = (self.series[number] for number in numbers) if self.pages else (self.series[0],)
        return {id(home): home for page in pages if page is not None for home in [self._home(page)]}.values()

    def confirm(self) -> None:
        """The first and the last file stand for all: asked of every block, of thousands of files."""
        for part in {self.files[0], self.files[-1]}:
            part.confirm(self.path)

    def _home(self, page: Any) -> Part:
        path = page.parent.filehandle.path
        return self.homes.get(path) or self.homes[os.path.realpath(path)]

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
                f"plane {number} is described, but not in the file; save the planes that are there as a file of their own"
            )
        key = page.keyframe
        five = _five(key, spans)
        target = out.reshape([len(span) for span in five])
        for piece in _meeting(key, five):
            self._place(target, five, page, number, piece)

    def _place(self, target: Array, spans: Sequence[range], page: Any, number: int, piece: int) -> None:
        voxels, corner = self.kept.get((self.path, number, piece), lambda: self._decoded(page, piece))
        from_, to = [], []
        shape = (1, *voxels.shape)
        for span, start, length in zip(spans, corner, shape, strict=True):
            lo, hi = max(span.start, start), min(span.stop, start + length)
            from_.append(slice(lo - start, hi - start))
            to.append(slice(lo - span.start, hi - span.start))
        target[tuple(to)] = voxels[np.newaxis][tuple(from_)]

    def _decoded(self, page: Any, piece: int) -> tuple[Array, tuple[int, ...]]:
        """A piece of a page, and where its first voxel lies."""
        key = page.keyframe
        start, length = page.dataoffsets[piece], page.databytecounts[piece]
        file = self._home(page)
        if len(self.files) > 1:
            file.confirm(self.path)
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
