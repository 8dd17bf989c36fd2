"""A DICOM segmentation (SEG) of labels, by highdicom: a segment for each class, on the slices of the series that they
were made of, which it refers to. It is made whole in memory: nothing writes one by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine import machine
from unet_engine.errors import InputError, OutputError
from unet_engine.output.colours import colour_of
from unet_engine.postprocess.content import Content
from unet_engine.postprocess.writers.base import account_in, account_text, check_axes, library
from unet_engine.units import size, times
from unet_engine.version import our_version
from unet_engine.volumes.base import Array
from unet_engine.volumes.dicom_files import SEGMENTATIONS
from unet_engine.volumes.formats import is_series, slices_of
from unet_engine.volumes.frame import Frame

_GROUP, _CREATOR = 0x00E9, "unet-engine"
"""Of the private element that holds the account."""
_NEAR = 1e-3
"""Part of a voxel by which places may differ: files round."""
_MOST_SEGMENTS = 65535
_LONGEST_LABEL = 64


class DicomSegWriter:
    name = "a DICOM segmentation"
    endings = (".dcm",)
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        library(path, self.name, "highdicom", "seg")
        library(path, self.name, "pydicom", "seg")

    def check(self, path: str, content: Content) -> None:
        self.require(path, content.frame)
        if not content.labels:
            raise OutputError(
                f"{path}: {self.name} holds labels, and {content.origin} is not known to be any; use --output labels, or "
                "name the series that they belong to with convert --images"
            )
        check_axes(path, content, self.name, "zyx")
        if content.dtype.kind not in "biu":
            raise OutputError(
                f"{path}: {self.name} cannot hold {content.dtype}; give labels as whole numbers, or choose another format for --out"
            )
        series = _series(path, content)
        series.check_headers(path)
        series.start_of(path, content)
        # labels once as they are, once in the order of frames; then packed segment by segment, and strung together
        needed = prod(series.shape) * (2 * content.dtype.itemsize + 1 + 2 * max(1, len(content.classes)) / 8)
        if needed > machine.available_memory():
            raise OutputError(
                f"{path}: {self.name} is made whole, for which {size(needed)} of memory are needed and "
                f"{size(machine.available_memory())} are free; write .nii.gz, or run where there is more"
            )

    def losses(self, content: Content) -> list[str]:
        return []

    def write(self, place: Path, content: Content) -> None:
        series = _series(str(place), content)
        labels = _on_series(content, series, series.start_of(str(place), content))
        _segmentation(series, labels, content).save_as(place)

    def account(self, path: str) -> Mapping[str, Any] | None:
        import pydicom

        found = pydicom.dcmread(path, stop_before_pixels=True)
        try:
            return account_in(str(found.private_block(_GROUP, _CREATOR)[1].value))
        except KeyError:
            return _said_by_segments(found) if found.SOPClassUID in SEGMENTATIONS else None


def _said_by_segments(found: Any) -> Mapping[str, Any]:
    """What the segments of another tool's segmentation say, as our accounts have it."""
    from highdicom.color import CIELabColor

    segments = {int(segment.SegmentNumber): segment for segment in found.SegmentSequence}
    numbers = range(max([0, *segments]) + 1)
    names = [str(segments[i].SegmentLabel) if i in segments else f"class {i}" if i else "background" for i in numbers]
    colours = [colour_of(i) for i in numbers]
    for i, segment in segments.items():
        with suppress(AttributeError, ValueError, TypeError):
            red, green, blue = CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb(clip=True)
            colours[i] = int(red), int(green), int(blue)
    return {"output": "labels", "classes": names, "colours": ["#{:02x}{:02x}{:02x}".format(*one) for one in colours]}


@dataclass(frozen=True)
class _Series:
    path: str
    files: tuple[str, ...]
    """In the order of the slices."""
    frames: tuple[int | None, ...]
    """Of a file of several, counted from 0."""
    frame: Frame | None
    shape: tuple[int, ...]
    """z, y, x."""

    def headers(self) -> list[Any]:
        """Of each file; what the standard lets be empty is, where it is missing."""
        import pydicom

        found = [pydicom.dcmread(file, stop_before_pixels=True) for file in dict.fromkeys(self.files)]
        for header in found:
            for key in _MAY_BE_EMPTY:
                if key not in header:
                    setattr(header, key, "")
            if "NumberOfFrames" not in header and not header.get("SliceThickness"):
                header.SliceThickness = self.frame.sizes[0] if self.frame else 1.0
        return found

    def check_headers(self, path: str) -> None:
        """Raise `OutputError` where the files do not say what a segmentation must say of them."""
        import pydicom

        for file in dict.fromkeys(self.files):
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_NEEDED))
            for key in _NEEDED:
                if not header.get(key):
                    raise OutputError(
                        f"{path}: a DICOM segmentation refers to its images by UIDs, and {file} has no {key}; give a "
                        "series that has them, or write .nii.gz"
                    )

    def start_of(self, path: str, content: Content) -> tuple[int, ...]:
        """The voxel of the series that the first one of `content` lies on. Raises `OutputError` where it does not lie
        on voxels of the series."""
        mine, theirs = content.place, self.frame
        shape = (1,) * (3 - len(content.spatial)) + content.spatial_shape
        if theirs is None:  # nothing tells the place of a single slice
            if shape == self.shape:
                return (0, 0, 0)
            raise OutputError(
                f"{path}: {content.origin} is {times(shape)}, and {self.path} {times(self.shape)}; name its own series"
            )
        matrix = np.array(theirs.matrix)
        if len(mine.matrix) == 3:
            mine = mine.seen_in(theirs.space)
            steps = np.linalg.solve(matrix, np.array(mine.matrix))
            start = np.linalg.solve(matrix, np.array(mine.origin) - np.array(theirs.origin))
            first = np.rint(start)
            far = np.abs(steps - np.eye(3)) * np.array(shape)
            fits = (first >= 0).all() and (first + shape <= self.shape).all()
            if fits and far.max() < _NEAR * max(shape) and np.abs(start - first).max() < 10 * _NEAR:
                return tuple(int(v) for v in first)
        raise OutputError(
            f"{path}: {content.origin} does not lie on the voxels of {self.path}, which a segmentation refers to; leave "
            "out --grid model, or write .nii.gz"
        )


_NEEDED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")

_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip


def _series(path: str, content: Content) -> _Series:
    source = content.source
    if source is None or not is_series(source):
        raise OutputError(
            f"{path}: a DICOM segmentation belongs to a DICOM series, and {content.origin} was made of "
            f"{source or 'nothing that is known'}; write .nii.gz, or name the series with convert --images"
        )
    try:
        volume, files, frames = slices_of(source)
    except InputError as error:
        raise OutputError(f"{path}: the series that it belongs to cannot be read: {error}") from error
    if volume.timepoints > 1:
        raise OutputError(
            f"{path}: {source} has {volume.timepoints} time points, of which a segmentation refers to no single one here; "
            "write .nii.gz"
        )
    shape = (1,) * (3 - len(volume.spatial)) + volume.shape
    return _Series(source, files, frames, volume.frame, shape)


def _on_series(content: Content, series: _Series, start: tuple[int, ...]) -> Array:
    """Labels of all slices, 0 where the content does not reach."""
    dtype = np.dtype("u1") if content.dtype.itemsize == 1 else np.dtype("u2")
    labels = np.zeros(series.shape, dtype)
    inside = labels[tuple(slice(lo, lo + n) for lo, n in zip(start, _three(content.spatial_shape), strict=True))]
    for cell in content.cells():
        voxels = content.read(cell)
        if voxels.size and (int(voxels.max()) > _MOST_SEGMENTS or int(voxels.min()) < 0):
            raise OutputError(
                f"{content.origin} has labels beyond 0 to {_MOST_SEGMENTS}; number them again, with unet-engine components"
            )
        spans = {a: s for a, s in zip(content.axes, cell, strict=True) if a in "zyx"}
        target = inside[tuple(spans.get(a, slice(0, 1)) for a in "zyx")]
        target[...] = voxels.reshape(target.shape)
    return labels


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (3 - len(shape)) + shape


def _segmentation(series: _Series, labels: Array, content: Content) -> Any:
    import highdicom as hd

    headers = series.headers()
    if len(headers) < len(labels):  # frames of one file, in its own order
        order = np.argsort([frame or 0 for frame in series.frames])
        labels = labels[order]
    digest = str(content.said.get("digest") or "")
    made = hd.seg.Segmentation(
        source_images=headers,
        pixel_array=labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_segments(content, _present(labels)),
        series_instance_uid=_uid(digest, "series"),
        series_number=1000,
        sop_instance_uid=_uid(digest, "instance"),
        instance_number=1,
        manufacturer="unet-engine",
        manufacturer_model_name=_model(content),
        software_versions=our_version(),
        device_serial_number=digest or "0",
        content_label="SEGMENTATION",
        series_description=f"Segmentation by {_model(content)}"[:_LONGEST_LABEL],
    )
    made.private_block(_GROUP, _CREATOR, create=True).add_new(1, "UT", account_text(content))
    return made


def _present(labels: Array) -> list[int]:
    found: set[int] = set()
    for plane in labels:
        found.update(np.unique(plane).tolist())
    return sorted(found - {0})


def _uid(digest: str, what: str) -> str:
    """The same for the same run: who makes it again makes the same instance."""
    import pydicom

    return str(pydicom.uid.generate_uid(entropy_srcs=[digest, what] if digest else None))


def _model(content: Content) -> str:
    return str(dict(content.said.get("model") or {}).get("name") or "unknown")[:_LONGEST_LABEL]


def _segments(content: Content, present: Sequence[int]) -> list[Any]:
    """One for each class but the background, also where it was not found; numbers are those of the labels."""
    import highdicom as hd
    from pydicom.sr.coding import Code

    tissue = Code("85756007", "SCT", "Tissue")
    algorithm = hd.AlgorithmIdentificationSequence(
        name=_model(content), family=Code("123110", "DCM", "Artificial Intelligence"), version=our_version()
    )
    count = max([len(content.classes) - 1, *present, 1])
    names = [*content.classes, *(f"class {i}" for i in range(len(content.classes), count + 1))]
    return [
        hd.seg.SegmentDescription(
            segment_number=label,
            segment_label=" ".join(names[label].split())[:_LONGEST_LABEL] or f"class {label}",
            segmented_property_category=tissue,
            segmented_property_type=tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*colour_of(label, content.colours)),
        )
        for label in range(1, count + 1)
    ]
