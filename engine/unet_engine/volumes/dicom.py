"""DICOM: a folder with the slices of one series, or a file of one or several frames. Where each slice lies is what its
file says, never its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.paths import inside, is_local
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.units import times
from unet_engine.volumes import dicom_times
from unet_engine.volumes.axes import checked_axes
from unet_engine.volumes.base import Array, Selection
from unet_engine.volumes.dicom_files import (
    dicom_files,
    found_of,
    has_image,
    header_of,
    located,
    series_files,
    shown,
    uid_meant,
    uids_in,
)
from unet_engine.volumes.dicom_order import Slice, ordered
from unet_engine.volumes.files import FileVolume, Kept, Part, check_pieces, grouped, has_ending, opening, package
from unet_engine.volumes.linear import Linear

ENDINGS = (".dcm", ".dicom", ".ima")
_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID", "SeriesDescription", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated",
    "PixelRepresentation", "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "RescaleSlope", "RescaleIntercept", "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "Modality", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "ModalityLUTSequence", "GridFrameOffsetVector", "DoseGridScaling",
    *dicom_times.TAGS,
]  # fmt: skip
_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
"""RT Dose Storage: its numbers stand for doses by DoseGridScaling."""
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
"""Whose numbers of 32 bits are floating point, DICOM part 3, A.75."""
_LOOKED_AT = 8
"""Files of a folder that are looked at to tell whether it is DICOM."""


class DicomFormat:
    def recognises(self, path: str) -> bool:
        if has_ending(path, *ENDINGS):
            return True
        folder = inside(path)[0]
        return is_local(path) and Path(folder).is_dir() and bool(dicom_files(folder, _LOOKED_AT))

    def located(self, path: str, image: str | None, level: int | None) -> str:
        return located(path, image, level)

    def images(self, path: str) -> list[str]:
        return uids_in(path)

    def open(self, path: str, axes: str | None) -> DicomVolume:
        pydicom = package(path, "DICOM", "pydicom", "dicom")
        folder = inside(path)[0]
        files = series_files(folder) if Path(folder).is_dir() else [path]
        parts = {file: Part.of(file) for file in files}
        with opening(path, "DICOM series"):
            headers = [(file, header_of(pydicom, file, _TAGS)) for file in files]
            headers = [(file, header) for file, header in headers if has_image(file, header)]
            if (uid := uid_meant(path)) is not None:
                headers = [one for one in headers if str(one[1].get("SeriesInstanceUID") or "") == uid]
            notes = _one_series(path, headers)
            for syntax, file in {one.file_meta.get("TransferSyntaxUID"): file for file, one in headers}.items():
                _check_unpacked(file, syntax)
            slices = [one for file, header in headers for one in _slices(file, header, parts[file].length)]
            return _volume(path, headers[0][1], ordered(path, slices), parts, notes, axes)


def _check_unpacked(file: str, syntax: Any) -> None:
    """Raise `InputError` where nothing that is installed unpacks voxels of this transfer syntax."""
    from pydicom.pixels import get_decoder

    if syntax is None or not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        missing = not get_decoder(syntax).is_available
    except NotImplementedError:
        raise InputError(f"{file} is packed as {syntax.name}, which nothing unpacks; convert it with dcmconv") from None
    if missing:
        raise InputError(
            f"{file} is packed as {syntax.name}, and nothing that is installed unpacks it; pip install pylibjpeg "
            "pylibjpeg-openjpeg pylibjpeg-libjpeg"
        )


def _one_series(path: str, headers: Sequence[tuple[str, Any]]) -> list[str]:
    """Raises `InputError` where there is no image, or more than one series; what is to be known is returned."""
    if not headers:
        raise InputError(f"{path} holds no DICOM image; give another --in")
    found = found_of([header for _, header in headers])
    if len(found) > 1:
        raise InputError(
            f"{path} holds {len(found)} series ({shown(found)}); choose one by its number from 0, e.g. --image 0, or put "
            "its files in a folder of their own"
        )
    notes = []
    if not found[0].uid and len(headers) > 1:
        notes.append(f"{path}: its files name no series (their UIDs are empty): all {len(headers)} are taken as one")
    table = next((file for file, header in headers if header.get("ModalityLUTSequence")), None)
    if table:
        raise InputError(
            f"{table} says by a table what its numbers stand for (Modality LUT), which is not read; write a series of what "
            "they stand for, by pydicom's apply_modality_lut"
        )
    pictures = {header.get("PhotometricInterpretation") for _, header in headers}
    if "PALETTE COLOR" in pictures:
        notes.append(f"{path} has a palette, and its values number colours: voxels are taken as they are stored")
    if headers[0][1].get("SOPClassUID") == _DOSE and headers[0][1].get("DoseGridScaling"):
        notes.append(f"{path} is a dose of radiotherapy: voxels are doses, by its DoseGridScaling")
    if "MONOCHROME1" in pictures:
        notes.append(f"{path} is MONOCHROME1, where low values are shown bright: voxels are taken as they are stored")
    return notes


def _slices(file: str, header: Any, length: int) -> list[Slice]:
    """Those in one file of so many bytes, with all that must agree among them."""
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > length:
        raise ValueError(f"{file} says that it has {frames} frames, and has {length:,} bytes")
    shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or [None] * frames
    if len(per_frame) != frames:
        raise ValueError(f"{file} says that it has {frames} frames, and describes {len(per_frame)}")
    kind = tuple(
        header.get(key) for key in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PixelRepresentation")
    )
    found, offsets, times_of = [], _offsets(file, header, frames), dicom_times.of_frames(header)
    for number, of_frame in enumerate(per_frame):
        said = _Said(header, shared, of_frame)
        position = said.numbers("PlanePositionSequence", "ImagePositionPatient", 3)
        orientation = said.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        if offsets and position and orientation:
            normal = np.cross(orientation[:3], orientation[3:])
            position = tuple(p + offsets[number] * float(n) for p, n in zip(position, normal, strict=True))
        found.append(
            Slice(
                file=file,
                frame=number if frames > 1 else None,
                kind=kind,
                position=position,
                orientation=orientation,
                pixel=said.numbers("PixelMeasuresSequence", "PixelSpacing", 2),
                slope=said.number("PixelValueTransformationSequence", "RescaleSlope")
                or (said.number("", "DoseGridScaling") if header.get("SOPClassUID") == _DOSE else None)
                or 1.0,
                intercept=said.number("PixelValueTransformationSequence", "RescaleIntercept") or 0.0,
                time=times_of(of_frame),
                taken=dicom_times.taken(header, of_frame),
            )
        )
    return found


def _offsets(file: str, header: Any, frames: int) -> list[float] | None:
    """How far frames of a dose of radiotherapy lie from the first one, along what is across them, DICOM part 3,
    C.8.8.3.2; None of other files."""
    said = header.get("GridFrameOffsetVector")
    if header.get("SOPClassUID") != _DOSE or said is None or frames < 2:
        return None
    found = [float(offset) for offset in said]
    if len(found) != frames or not np.isfinite(found).all():
        raise ValueError(f"{file} says where {len(found)} of its {frames} frames lie")
    if found[0]:
        raise InputError(
            f"{file} says where its frames lie by places of the patient (GridFrameOffsetVector begins with {found[0]:g}), "
            "which is not read; write it with distances from the first frame, which begin with 0"
        )
    return found


@dataclass(frozen=True)
class _Said:
    """What is said of a frame: by itself, by all frames of its file, or by the file."""

    header: Any
    shared: Any
    frame: Any

    def _value(self, group: str, key: str) -> Any:
        for place in (self.frame, self.shared):
            inside = (place.get(group) or [None])[0] if place is not None else None
            if inside is not None and inside.get(key) is not None:
                return inside.get(key)
        return self.header.get(key)

    def numbers(self, group: str, key: str, count: int) -> tuple[float, ...] | None:
        value = self._value(group, key)
        if value is None or value == "":
            return None
        found = tuple(float(v) for v in value)
        if len(found) != count or not np.isfinite(found).all():
            raise ValueError(f"{key} is {list(value)}")
        return found

    def number(self, group: str, key: str) -> float | None:
        value = self._value(group, key)
        if value is None or value == "":
            return None
        if not np.isfinite(float(value)):
            raise ValueError(f"{key} is {value}")
        return float(value)


def _volume(
    path: str, header: Any, series: Any, parts: dict[str, Part], notes: list[str], axes: str | None
) -> DicomVolume:
    slices: tuple[Slice, ...] = series.slices
    rows, columns, samples, bits, signed = (int(v or 0) for v in slices[0].kind)
    if bits not in (8, 16, 32):
        raise InputError(f"{path} has {bits} bits a voxel; convert it to 8, 16 or 32")
    is_float = header.get("SOPClassUID") == _PARAMETRIC_MAP and bits == 32
    stored = np.dtype(f"{'f' if is_float else 'i' if signed else 'u'}{bits // 8}")
    plane, names = ((rows, columns, samples), "yxc") if samples > 1 else ((rows, columns), "yx")
    count = len(slices) // series.times
    lead = [(a, n) for a, n in (("t", series.times), ("z", count)) if n > 1]
    shape, names = (*(n for _, n in lead), *plane), "".join(a for a, _ in lead) + names
    named, names = names, checked_axes(path, shape, stored, axes or names)
    if (axes and axes != names) or (lead and names != named):
        raise InputError(f"{path} is a series of slices, which lie along {named[: len(lead)]}; leave out --axes")
    check_pieces(path, plane, plane, stored.itemsize)
    linears = [Linear.of(stored, one.slope, one.intercept) for one in slices]
    dtype = np.result_type(*{linear.dtype for linear in linears})
    frame = series.frame if count > 1 else None
    # of slices that nothing says the distance of, the size of a voxel is not known
    spacing = frame.spacing if frame else slices[0].pixel if count == 1 else None
    used = dict.fromkeys(one.file for one in slices)
    return DicomVolume(
        path=path,
        axes=names,
        stored_shape=shape,
        stored_chunks=grouped(names, shape, (*(1 for _ in lead), *plane), dtype.itemsize),
        stored_dtype=dtype,
        stored_spacing=_along(names, spacing, 1.0),
        stored_translation=_along(names, frame.translation, 0.0) if frame else None,
        unit="millimeter" if spacing else None,
        notes=(*notes, *series.notes, *_padded(path, header, stored, linears)),
        frame=frame,
        timing=dicom_times.timing([of_time.taken for of_time in slices[::count]]) if series.times > 1 else None,
        opened_by=DicomFormat(),
        files=tuple(parts[file] for file in used),
        slices=slices,
        linears=tuple(replace(linear, dtype=dtype) for linear in linears),
        plane=plane,
        numbers=stored,
    )


def _padded(path: str, header: Any, kind: np.dtype[Any], linears: Sequence[Linear]) -> tuple[str, ...]:
    """A note where values stand for no measurement, with the option that leaves them out: as voxels are read, of slices
    that are scaled otherwise each its own. Nobody is done a favour by that unasked: networks saw padding, too."""
    said = [header.get(key) for key in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if not isinstance(said[0], int):
        return ()
    # signed numbers may be said as if they were not
    ends = [int(np.array([one]).astype(kind)[0]) for one in said if isinstance(one, int)]
    values = [dict.fromkeys(one.values([end])[0] for one in linears) for end in ends]
    if max(map(len, values)) > _LISTED:
        return (f"{path}: {ends[0]} is padding as it is stored (PixelPaddingValue), which differs from slice to slice",)
    low, *high = (",".join(f"{value:.9g}" for value in of_end) for of_end in values)
    if high and high[0] != low:
        return (f"{path}: voxels from {low} to {high[0]} are padding (PixelPaddingValue), and are read like others",)
    return (f"{path}: voxels of {low} are padding (PixelPaddingValue), and read like others without --nodata {low}",)


_LISTED = 4
"""Values of padding that are told."""


def _source(file: str) -> Any:
    """What pydicom takes voxels from: of a file that is deflated as a whole, which it reads otherwise without them, all
    that is in it."""
    import pydicom

    deflated = pydicom.uid.DeflatedExplicitVRLittleEndian
    return pydicom.dcmread(file) if _syntax(file) == deflated else file


def _syntax(file: str) -> Any:
    from pydicom.filereader import read_file_meta_info

    return read_file_meta_info(file).get("TransferSyntaxUID")


def _along(names: str, values: Sequence[float] | None, other: float) -> list[float] | None:
    """`values` of z, y, x for each of the stored axes."""
    if values is None:
        return None
    of = dict(zip([a for a in "zyx" if a in names], values, strict=True))
    return [of.get(a, other) for a in names]


def _steps(stack: tuple[int, ...]) -> list[int]:
    """Per axis in front of a plane's own, how many slices on the next one along it lies."""
    return [prod(stack[i + 1 :]) for i in range(len(stack))]


@dataclass(frozen=True, eq=False, kw_only=True)
class DicomVolume(FileVolume):
    """Read by slice."""

    slices: tuple[Slice, ...]
    linears: tuple[Linear, ...]
    plane: tuple[int, ...]
    numbers: np.dtype[Any]
    """As they lie in the files."""
    kept: Kept[Array] = field(default_factory=Kept)

    @property
    def pieces(self) -> tuple[int, ...] | None:
        lead = (1,) * (len(self.stored_shape) - len(self.plane))
        return self.along(lead + self.plane)

    def keep(self, most: int, reads: Fetching | None) -> None:
        self.kept.allow(most)

    def parts(self, box: Box) -> Iterable[Part]:
        if len(self.files) != len(self.slices) or len(self.slices) == 1:
            return self.files
        z = box.slices()[0] if "z" in self.axes else slice(0, 1)
        first = self.time * (len(self.slices) // self.timepoints)
        return self.files[first + z.start : first + z.stop]

    def confirm(self) -> None:
        """The first and the last file stand for all: asked of every block, of thousands of files."""
        for part in (self.files[0], self.files[-1]):
            part.confirm(self.path)

    def stored(self, selection: Selection) -> Array:
        stack = self.stored_shape[: len(self.stored_shape) - len(self.plane)]
        spans = [range(*span.indices(n)) for span, n in zip(selection, stack, strict=False)]
        inside = selection[len(stack) :]
        found = [self._slice(sum(map(mul, at, _steps(stack))))[inside] for at in product(*spans)]
        return np.stack(found).reshape(*map(len, spans), *found[0].shape)

    def _slice(self, number: int) -> Array:
        return self.kept.get(number, lambda: self._decoded(number))

    def _decoded(self, number: int) -> Array:
        from pydicom.pixels import pixel_array

        one = self.slices[number]
        next(part for part in self.files if part.path == one.file).confirm(self.path)
        with opening(one.file, "DICOM file"):
            voxels = np.asarray(pixel_array(_source(one.file), index=one.frame))
        if (voxels.dtype.kind == "f") != (self.numbers.kind == "f"):
            raise InputError(f"{one.file} holds {voxels.dtype}, and its header says {self.numbers}; correct it")
        if voxels.shape != self.plane:
            raise InputError(
                f"{one.file} holds {times(voxels.shape)}, and its header says {times(self.plane)}; restore it"
            )
        return np.asarray(self.linears[number](voxels), self.stored_dtype)
