"""DICOM segmentations (SEG) as labels, by highdicom: read by slice, each segment by its number."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.paths import inside, is_local
from unet_engine.volumes.axes import check_sizes, checked_axes
from unet_engine.volumes.base import Array, Selection, Volume
from unet_engine.volumes.deflated import check_deflated
from unet_engine.volumes.dicom_files import SEGMENTATIONS, header_of, located, segmentations_in, uid_meant
from unet_engine.volumes.files import FileVolume, Part, check_pieces, grouped, has_ending, opening, package
from unet_engine.volumes.frame import Frame

ENDINGS = (".dcm", ".dicom")


class DicomSegFormat:
    def recognises(self, path: str) -> bool:
        if is_local(path) and Path(inside(path)[0]).is_dir():
            return self._fills(path)
        if not has_ending(path, *ENDINGS):
            return False
        with suppress(Exception), warnings.catch_warnings():  # whatever it is, DICOM's own reader tells
            warnings.simplefilter("ignore")
            import pydicom

            Part.of(path)
            check_deflated(path)
            return (
                pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).SOPClassUID
                in SEGMENTATIONS
            )
        return False

    def _fills(self, path: str) -> bool:
        """Whether a folder, or the series of it that is meant, is nothing but segmentations."""
        found, count = segmentations_in(inside(path)[0])
        if not found or uid_meant(path) is None:
            return 0 < len(found) == count
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(_of_series(path, found))
        return False

    def located(self, path: str, image: str | None, level: int | None) -> str:
        return located(path, image, level)

    def open(self, path: str, axes: str | None) -> Volume:
        return replace(self._of_file(file_of(path), axes), path=path)

    def _of_file(self, path: str, axes: str | None) -> DicomSegVolume:
        part = Part.of(path)
        hd = package(path, "a DICOM segmentation", "highdicom", "seg")
        with opening(path, "DICOM segmentation"):
            _check_frames(path, part)
            reader = _Reader(hd, path)
            data = reader.data
            if str(data.SegmentationType) == "FRACTIONAL":
                raise InputError(f"{path} holds fractions, one for each segment, and no labels; convert it to labels")
            geometry = reader.call(data.get_volume_geometry)
            if geometry is None:
                raise InputError(f"{path}: its frames are no regular stack of slices; convert it to one")
            return _volume(path, part, reader, geometry, axes)


def file_of(path: str) -> str:
    """`path`, or the file that is meant where it is a folder of nothing else. Raises `InputError` where there are
    several."""
    if not Path(inside(path)[0]).is_dir():
        return path
    package(path, "a DICOM segmentation", "highdicom", "seg")
    files = _of_series(path, segmentations_in(inside(path)[0])[0])
    if len(files) > 1:
        names = ", ".join(Path(file).name for file in files[:8])
        raise InputError(f"{path} holds {len(files)} segmentations ({names}); give one of these files")
    return files[0]


class _Reader:
    """An open segmentation, whose tables are of one thread alone: it does all that is asked, one after the other."""

    def __init__(self, hd: Any, path: str) -> None:
        self._thread = ThreadPoolExecutor(1, "segmentation")
        weakref.finalize(self, self._thread.shutdown, wait=False)
        self.data = self.call(hd.seg.segread, path, lazy_frame_retrieval=True)

    def call(self, do: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self._thread.submit(do, *args, **options).result()


def _of_series(path: str, files: list[str]) -> list[str]:
    """Those of the series that is meant; all where none is."""
    import pydicom

    uid = uid_meant(path)
    if uid is None:
        return files
    return [f for f in files if str(header_of(pydicom, f, ["SeriesInstanceUID"]).get("SeriesInstanceUID") or "") == uid]


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


def _volume(path: str, part: Part, reader: _Reader, geometry: Any, axes: str | None) -> DicomSegVolume:
    shape = tuple(int(n) for n in geometry.spatial_shape)
    check_sizes(path, shape, shape)
    affine = np.asarray(geometry.affine, np.float64)
    backwards = float(np.linalg.det(affine[:3, :3])) > 0  # of z, y, x: z runs against row × column
    if backwards:
        affine = affine @ [[-1, 0, 0, shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    frame = Frame(tuple(tuple(row) for row in affine[:3, :3].tolist()), tuple(affine[:3, 3].tolist()), "LPS")
    dtype = np.dtype("u1" if max(reader.data.segment_numbers) < 2**8 else "u2")
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
        reader=reader,
        backwards=backwards,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class DicomSegVolume(FileVolume):
    reader: _Reader
    backwards: bool
    """Whether highdicom has slices in the other order than that of a series: see `dicom_order.ordered`."""

    def stored(self, selection: Selection) -> Array:
        (z, y, x) = ((part.indices(n)[:2]) for part, n in zip(selection, self.stored_shape, strict=True))
        if self.backwards:
            z = self.stored_shape[0] - z[1], self.stored_shape[0] - z[0]
        found = self.reader.call(
            self.reader.data.get_volume,
            slice_start=z[0], slice_end=z[1], row_start=y[0], row_end=y[1], column_start=x[0], column_end=x[1],
            as_indices=True, combine_segments=True, dtype=self.stored_dtype,
        )  # fmt: skip
        voxels = np.asarray(found.array)
        return voxels[::-1] if self.backwards else voxels
