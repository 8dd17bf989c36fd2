"""Which files of a folder are DICOM, which series they are of, and which series is meant."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_engine.errors import InputError
from unet_engine.paths import check_file, chosen, inside, said
from unet_engine.units import brief
from unet_engine.volumes.deflated import check_deflated
from unet_engine.volumes.files import opening, package

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Classes of files: Segmentation Storage, and Label Map Segmentation Storage."""
_SEGMENTATION = re.compile("|".join(map(re.escape, SEGMENTATIONS)).encode().join((b"(?:", b")(?![0-9.])")))
_HEAD = 1024
"""Bytes at the beginning of a file, in which it says of which class it is."""
_SERIES = ["SeriesInstanceUID", "SeriesDescription", "Modality", "Rows"]
_LISTED = 8
_ENDINGS = (".dcm", ".dicom", ".ima")


def dicom_files(folder: str, most: int | None = None) -> list[str]:
    """The files in `folder` that are DICOM, by their signature; of a part only of its first `most` files."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())[:most]
    except OSError:
        return []
    return [file for name in names if _head(file := f"{folder.rstrip('/')}/{name}")]


def series_files(folder: str) -> list[str]:
    """As `dicom_files`, of a folder whose slices are read. Raises `InputError` for a file that is named like them and has
    no signature: one that breaks off before it, or was emptied, would be a slice less."""
    files = dicom_files(folder)
    known = {Path(file).name for file in files}
    kinds = {_kind_of_name(name) for name in known}
    for file in sorted(Path(folder).iterdir()):
        named = _kind_of_name(file.name) in kinds or file.name.lower().endswith(_ENDINGS)
        if named and file.name not in known and not file.name.startswith(".") and file.is_file():
            raise InputError(f"{file} is named like a slice and is no DICOM file; restore it, or take it out")
    return files


def _kind_of_name(name: str) -> str:
    """A file's name without its numbers, which differ from slice to slice."""
    return re.sub(r"[0-9.]*[0-9]", "#", name)


def _head(file: str) -> bytes:
    """The beginning of a file of DICOM; empty for others."""
    try:
        check_file(file)
        with Path(file).open("rb") as opened:
            head = opened.read(_HEAD)
    except OSError:
        return b""
    return head if head[128:132] == b"DICM" else b""


def segmentations_in(folder: str) -> tuple[list[str], int]:
    """Those files in `folder` that are segmentations, and how many are DICOM."""
    heads = [(file, _head(file)) for file in dicom_files(folder)]
    return [file for file, head in heads if _SEGMENTATION.search(head)], len(heads)


def header_of(pydicom: Any, file: str, tags: Sequence[str]) -> Any:
    """These `tags` of `file`. Raises `InputError`."""
    try:
        check_deflated(file)
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    except Exception as error:
        raise InputError(f"{file} is no readable DICOM file: {error}; restore it, or take it out") from error


def has_image(file: str, header: Any) -> bool:
    """Whether `file` has one; a DICOMDIR, a report or a plan has none. Raises `InputError` where it is said to be an
    image, or nothing, and describes none: what breaks off in its header would be a slice less."""
    if header.get("Rows"):
        return True
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    if kind is None or "Image Storage" in getattr(kind, "name", ""):
        raise InputError(f"{file} breaks off before it describes its image; restore it, or take it out")
    return False


@dataclass(frozen=True)
class SeriesFound:
    uid: str
    description: str
    files: int

    @property
    def shown(self) -> str:
        return f"{self.files} of {brief(self.description or self.uid or 'no UID')}"


def found_of(headers: Sequence[Any]) -> list[SeriesFound]:
    """The series that files of these headers are of, in their order."""
    groups: dict[str, list[Any]] = {}
    for header in headers:
        groups.setdefault(str(header.get("SeriesInstanceUID") or ""), []).append(header)
    return [SeriesFound(uid, str(g[0].get("SeriesDescription") or ""), len(g)) for uid, g in groups.items()]


def shown(found: Sequence[SeriesFound]) -> str:
    more = f", and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(one.shown for one in found[:_LISTED]) + more


def located(path: str, image: str | None, level: int | None) -> str:
    """The path of a series in the folder at `path`: by its UID, its description, or its number from 0. Raises
    `InputError` listing which there are."""
    if level:
        raise InputError(f"--level {level}: DICOM has one resolution; leave --level out")
    folder = inside(path)[0]
    if image is None:
        return path
    if not Path(folder).is_dir():
        raise InputError(f"--image {brief(image)}: {path} is one file; leave --image out")
    found = _series_in(path)
    named = [one for one in found if image in (one.uid, one.description)]
    if not named and image.isascii() and image.isdigit():
        named = found[int(image[:9]) : int(image[:9]) + 1]
    if len(named) != 1:
        why = "several are called so" if named else "there is none"
        raise InputError(f"--image {brief(image)}: {why} in {path}; it has {shown(found)}, numbered from 0")
    return chosen(path, image=named[0].uid or NO_UID)


def _series_in(path: str) -> list[SeriesFound]:
    """Those of the folder at `path` that have images."""
    pydicom = package(path, "DICOM", "pydicom", "dicom")
    folder = inside(path)[0]
    with opening(folder, "DICOM series"):
        headers = [header_of(pydicom, file, _SERIES) for file in dicom_files(folder)]
    return found_of([header for header in headers if header.get("Rows")])


def uids_in(path: str) -> list[str]:
    """What each series of the folder at `path` is called for `located`; none where there is but one, or it is a file."""
    several = Path(inside(path)[0]).is_dir() and uid_meant(path) is None
    found = _series_in(path) if several else []
    return [one.uid or str(number) for number, one in enumerate(found)] if len(found) > 1 else []


NO_UID = "none"


def uid_meant(path: str) -> str | None:
    """The UID of the series that `path` names; None where it names none."""
    named = said(path).get("image")
    return "" if named == NO_UID else named
