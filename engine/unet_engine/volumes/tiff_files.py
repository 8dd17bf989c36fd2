"""The files that a TIFF leads to, looked at before tifffile opens any of them: an OME-TIFF whose planes lie in several
files, its companion, stacks of Micro-Manager."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from unet_engine import machine
from unet_engine.errors import InputError
from unet_engine.paths import check_file
from unet_engine.units import brief, size
from unet_engine.volumes.files import Part
from unet_engine.volumes.packed import beside

COMPANION = ".companion.ome"
"""A text that describes the planes of TIFFs beside it."""
_LONGEST = 2**26
"""Bytes of a companion."""
_COUNTS = {"Pixels": ("SizeZ", "SizeC", "SizeT"), "TiffData": ("PlaneCount", "NumPlanes")}
_MOST_PLANES = 2**22
_OWN_UUID = re.compile(r"<(?:\w+:)?OME\b[^>]*?\bUUID\s*=\s*[\"']([^\"']*)[\"']")


def opened(path: str, tifffile: Any) -> tuple[Any, tuple[Part, ...], tuple[str, ...]]:
    """The TIFF or companion at `path` as tifffile opens it, all files that its planes may lie in, and notes.

    Raises `InputError` where what it leads to is missing, lies outside of its folder, or is no file.
    """
    real = os.path.realpath(path)  # names are those of the folder that a link leads to, as tifffile has it
    if path.lower().endswith(COMPANION):
        return *_by_companion(path, real, tifffile), ()
    file = tifffile.TiffFile(path)
    try:
        root = _described(path, file)
        outer = None if root is None else next((e for e in root if _kind(e) == "BinaryOnly"), None)
        if root is None or outer is None:
            return file, (Part.of(path), *_others(path, real, file, root)), ()
        named = beside(real, outer.get("MetadataFile", ""))
        if not os.path.lexists(named):
            note = f"{path} is a part of what {Path(named).name} describes, which is missing: its own planes are read"
            return file, (Part.of(path),), (note,)
    except BaseException:
        file.close()
        raise
    file.close()
    if named.lower().endswith((".tif", ".tiff", ".btf", ".tf2", ".tf8")):
        return *_by_main(named, tifffile), ()
    return *_by_companion(named, named, tifffile), ()


def _by_main(path: str, tifffile: Any) -> tuple[Any, tuple[Part, ...]]:
    """By the TIFF at `path`, which describes the planes of others."""
    Part.of(path)
    file = tifffile.TiffFile(path)
    try:
        root = _described(path, file)
        if root is None or any(_kind(e) == "BinaryOnly" for e in root):
            raise InputError(f"{path} does not describe the planes that it is said to describe; restore it")
        return file, (Part.of(path), *_others(path, path, file, root))
    except BaseException:
        file.close()
        raise


def _by_companion(path: str, real: str, tifffile: Any) -> tuple[Any, tuple[Part, ...]]:
    """By the text at `path`."""
    if check_file(path).st_size > _LONGEST:
        raise InputError(f"{path} is far longer than any description of planes; give another --in")
    text = Path(path).read_text("utf-8", "strict").strip()
    root = ElementTree.fromstring(text)
    if any(e.find("{*}UUID") is None for e in root.iter() if _kind(e) == "TiffData"):
        raise InputError(f"{path} does not say in which file its planes lie; correct it")
    files = tuple(_files(path, real, len(text), root, None))
    if not files:
        raise InputError(f"{path} names no file with planes; give the TIFF itself")
    file = tifffile.TiffFile(files[0].path, omexml=text)
    try:
        _check_opened(path, real, file, root)
    except BaseException:
        file.close()
        raise
    return file, (Part.of(path), *files)


def _described(path: str, file: Any) -> ElementTree.Element | None:
    """What OME says in `file`; None where that is nothing, and tifffile goes by its pages."""
    if not file.is_ome:
        return None
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:
        return None
    _check_counts(path, root)
    return root


def _check_counts(path: str, root: ElementTree.Element) -> None:
    """Raise `InputError` for more planes than any image has: tifffile would list them."""
    for element in root.iter():
        said = element.attrib
        planes = [
            abs(int(said[key])) for key in _COUNTS.get(_kind(element), ()) if said.get(key, "").lstrip("-").isdecimal()
        ]
        if prod(map(max, planes, itertools.repeat(1))) > _MOST_PLANES:
            raise InputError(f"{path} describes more planes than {_MOST_PLANES:,}, the most that are read; correct it")


def _others(path: str, real: str, file: Any, root: ElementTree.Element | None) -> tuple[Part, ...]:
    """The files beside the one that was opened that tifffile opens as well."""
    found = {}
    if file.is_ndtiff and os.path.lexists(index := f"{file.filehandle.dirname}/NDTiff.index"):
        found = {part.path: part for part in _of_index(real, index)}
    if "_MMStack" in file.filename:  # all that are called so
        for other in sorted(Path(real).parent.glob("*_MMStack*.tif*")):
            if file.filename.startswith(other.name.partition("_MMStack")[0]):
                found[str(other)] = Part.of(str(other))
    if root is not None:
        found |= {part.path: part for part in _files(path, real, len(file.ome_metadata), root, file.filename)}
        _check_opened(path, real, file, root)
    return tuple(part for place, part in found.items() if place != real)


def _of_index(real: str, index: str) -> Iterator[Part]:
    """Those that an index of NDTiff names."""
    from tifffile.tifffile import read_ndtiff_index

    yield Part.of(index)
    for name in dict.fromkeys(str(one[1]) for one in read_ndtiff_index(index)):
        yield Part.of(beside(real, name))


def _files(path: str, real: str, length: int, root: ElementTree.Element, own: str | None) -> Iterator[Part]:
    """Those that a description of so many characters names. Raises `InputError` where one is missing or none."""
    names = _named(path, root, own)
    if len(names) * length > machine.available_memory():
        raise InputError(
            f"{path} names {len(names):,} files, each of which describes all, which takes {size(len(names) * length)} of "
            "memory; save it as one file"
        )
    places = [beside(real, name) for name in names.values()]
    missing = [Path(place).name for place in places if not os.path.lexists(place)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{path} says that planes of it lie in {brief(missing[0])}{more}, missing in its folder; put them beside it"
        )
    for place in places:
        yield Part.of(place)


def _named(path: str, root: ElementTree.Element, own: str | None) -> dict[str, str]:
    """The names of other files by their UUIDs, as tifffile counts them. Raises `InputError` where one name or UUID
    stands for several."""
    of_own, found = root.get("UUID"), dict[str, str]()
    for element in root.iter():
        if _kind(element) != "UUID":
            continue
        uuid, name = (element.text or "").strip(), element.get("FileName", "")
        if of_own is None and own and name.lower() == own.lower():
            of_own = uuid
        if own is not None and uuid == of_own:
            continue
        if not uuid or not name or element.text != uuid:
            raise InputError(f"{path} names a file of its planes by name or by UUID alone; both are needed, correct it")
        if found.setdefault(uuid, name) != name:
            raise InputError(f"{path} has one UUID for {brief(name)} and {brief(found[uuid])}; correct it")
    if len(set(found.values())) < len(found):
        raise InputError(f"{path} has several UUIDs for one file; correct it")
    return found


def _check_opened(path: str, real: str, file: Any, root: ElementTree.Element) -> None:
    """Raise `InputError` where a file that is named is none of TIFF, which tifffile takes for zeros, or another one
    than is meant."""
    _check_counts(path, root)
    names = _named(path, root, file.filename)
    kinds = {series.kind for series in file.series}
    if not names or "mmstack" in kinds:
        return
    if kinds != {"ome"}:
        raise InputError(f"{path} describes planes in other files, which do not make up an image; save it as one file")
    for uuid, name in names.items():
        if uuid not in file._files:
            raise InputError(f"{beside(real, name)} is no readable TIFF file, and {path} has planes there; restore it")
        page = file._files[uuid].pages.first
        said = _OWN_UUID.search(page.description[:4096])
        if said and said[1] != uuid:
            raise InputError(
                f"{beside(real, name)} is another file than the one of this name that {path} describes (their UUIDs "
                "differ); restore it"
            )
        if page.description:  # each describes all of them
            page.description = ""
            del page.tags[270]


def _kind(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
