"""DICOM segmentations (SEG) as labels, by highdicom: read by slice, each segment by its number."""

from __future__ import annotations

import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.volumes.axes import check_sizes, checked_axes
from unet_engine.volumes.base import Array, Selection, Volume
from unet_engine.volumes.deflated import check_deflated
from unet_engine.volumes.files import FileVolume, Part, check_pieces, grouped, has_ending, opening, package
from unet_engine.volumes.frame import Frame

ENDINGS = (".dcm", ".dicom")
_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage, and Label Map Segmentation Storage."""


class DicomSegFormat:
    def recognises(self, path: str) -> bool:
        if not has_ending(path, *ENDINGS):
            return False
        with suppress(Exception), warnings.catch_warnings():  # whatever it is, DICOM's own reader tells
            warnings.simplefilter("ignore")
            import pydicom

            Part.of(path)
            check_deflated(path)
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).SOPClassUID in _CLASSES
        return False

    def open(self, path: str, axes: str | None) -> Volume:
        part = Part.of(path)
        hd = package(path, "a DICOM segmentation", "highdicom", "seg")
        with opening(path, "DICOM segmentation"):
            _check_frames(path, part)
            data = hd.seg.segread(path, lazy_frame_retrieval=True)
            if str(data.SegmentationType) == "FRACTIONAL":
                raise InputError(f"{path} holds fractions, one for each segment, and no labels; convert it to labels")
            geometry = data.get_volume_geometry()
            if geometry is None:
                raise InputError(f"{path}: its frames are no regular stack of slices; convert it to one")
            return _volume(path, part, data, geometry, axes)


def _check_frames(path: str, part: Part) -> None:
    """Raises `ValueError` where a file says that it has more frames than it can have, or describes: tables are made of
    them as it is opened. `InputError` where one does not fit into memory."""
    import pydicom

    tags = ["NumberOfFrames", "Rows", "Columns", "PerFrameFunctionalGroupsSequence"]
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)  # deflated ones were looked at
    frames, described = (
        int(header.get("NumberOfFrames") or 1),
        len(header.get("PerFrameFunctionalGroupsSequence") or ()),
    )
    if not 0 < frames <= part.length or (described and described != frames):
        raise ValueError(
            f"it says that it has {frames:,} frames, describes {described:,} and has {part.length:,} bytes"
        )
    sides = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    check_pieces(path, (frames, *sides), (1, *sides), _WIDEST)


_WIDEST = 4
"""Bytes of a voxel of a frame, as it is unpacked, at most."""


def _volume(path: str, part: Part, data: Any, geometry: Any, axes: str | None) -> Volume:
    shape = tuple(int(n) for n in geometry.spatial_shape)
    check_sizes(path, shape, shape)
    affine = np.asarray(geometry.affine, np.float64)
    frame = Frame(tuple(tuple(row) for row in affine[:3, :3].tolist()), tuple(affine[:3, 3].tolist()), "LPS")
    dtype = np.dtype("u1" if max(data.segment_numbers) < 2**8 else "u2")
    names = checked_axes(path, shape, dtype, axes or "zyx")
    if names != "zyx":
        raise InputError(f"{path} is a stack of slices, which lie along z; leave out --axes")
    return DicomSegVolume(
        path=path,
        axes=names,
        stored_shape=shape,
        stored_chunks=grouped(names, shape, (1, *shape[1:]), dtype.itemsize),
        stored_dtype=dtype,
        stored_spacing=frame.spacing,
        stored_translation=frame.translation,
        unit="millimeter",
        frame=frame,
        opened_by=DicomSegFormat(),
        files=(part,),
        data=data,
        lock=threading.Lock(),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class DicomSegVolume(FileVolume):
    data: Any
    lock: threading.Lock
    """Frames are read from one open file."""

    def stored(self, selection: Selection) -> Array:
        (z, y, x) = ((part.indices(n)[:2]) for part, n in zip(selection, self.stored_shape, strict=True))
        with self.lock:
            found = self.data.get_volume(
                slice_start=z[0], slice_end=z[1], row_start=y[0], row_end=y[1], column_start=x[0], column_end=x[1],
                as_indices=True, combine_segments=True, dtype=self.stored_dtype,
            )  # fmt: skip
        return np.asarray(found.array)
