"""The formats that volumes come in. A new one is a file beside this one, and a line in `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from unet_engine.endings import made_readable
from unet_engine.errors import InputError, UnetEngineError, first_line, of_store
from unet_engine.paths import is_local, plain
from unet_engine.volumes import collection, dicom, dicom_seg, hdf5, nifti, picture, raster, slices, tiff
from unet_engine.volumes.base import Format, Listing, Several, Volume
from unet_engine.volumes.dicom import DicomFormat
from unet_engine.volumes.dicom_seg import DicomSegFormat
from unet_engine.volumes.fetched import FetchedFormat
from unet_engine.volumes.hdf5 import Hdf5Format
from unet_engine.volumes.joined import JoinedFormat
from unet_engine.volumes.metaimage import MetaImageFormat
from unet_engine.volumes.n5 import N5Format
from unet_engine.volumes.nifti import NiftiFormat
from unet_engine.volumes.npy import NpyFormat
from unet_engine.volumes.nrrd import NrrdFormat
from unet_engine.volumes.pick import ALL, Pick
from unet_engine.volumes.picture import PictureFormat
from unet_engine.volumes.raster import RasterFormat
from unet_engine.volumes.slices import SlicesFormat
from unet_engine.volumes.tiff import TiffFormat
from unet_engine.volumes.zarr_format import ZarrFormat

T = TypeVar("T")
FILES: list[Format] = [
    NpyFormat(),
    RasterFormat(),
    TiffFormat(),
    Hdf5Format(),
    NiftiFormat(),
    NrrdFormat(),
    MetaImageFormat(),
    DicomSegFormat(),
    DicomFormat(),
    PictureFormat(),
]
"""Of single files, in the order in which they are asked."""
_ENDINGS = (
    *raster.ENDINGS, *tiff.ENDINGS, *hdf5.ENDINGS, *nifti.ENDINGS, *dicom.ENDINGS, *picture.ENDINGS, ".nrrd", ".nhdr", ".mha", ".mhd", ".npy",
)  # fmt: skip
FORMATS: list[Format] = [
    FetchedFormat(FILES, RasterFormat(), _ENDINGS),
    *FILES,
    N5Format(),
    SlicesFormat(),
    ZarrFormat(),
]
"""In the order in which they are asked. Zarr is the last: it takes every folder and every URL."""
OTHERWISE = FORMATS[-1]
"""What takes what no other format recognises."""

READ = "Zarr, N5, TIFF, GeoTIFF, VRT, JPEG 2000, HDF5, NetCDF, NIfTI, DICOM, NRRD, MetaImage, PNG, JPEG, .npy"
"""What people are told that volumes may be."""


def format_of(path: str) -> Format | None:
    """The format that recognises `path`; None where none does."""
    return next((format for format in FORMATS if format.recognises(path)), None)


def located(path: str, image: str | None, level: int | None) -> str:
    """The path of what is meant of `path`: its image called, or numbered from 0, `image`, and of that the one of
    `level`, 0 being the full resolution. Raises `InputError` listing what there is."""
    if image == "all" and not images_of(path):  # it is all of them
        image = None
    if image is None and level is None:
        return path

    def of(format: Format | None) -> str:
        if isinstance(format, Several):
            return format.located(plain(path), image, level)
        return collection.located(path, image, level)

    return _understood(path, of)


def images_of(path: str) -> list[str]:
    """What each image of `path` is called, for `located`; none where there is but one. Raises `InputError`."""

    def of(format: Format | None) -> list[str]:
        if isinstance(format, Listing):
            return format.images(plain(path))
        return collection.images_of(path) if format is OTHERWISE else []

    return _understood(path, of)


def _understood(path: str, read: Callable[[Format | None], T]) -> T:
    """What `read` makes of the format of `path`. Raises `InputError` for whatever it raises."""
    try:
        return read(format_of(plain(path)))
    except UnetEngineError:
        raise
    except Exception as error:  # metadata of the right form may still say anything
        if lost := of_store(error):
            raise InputError(f"{path} cannot be read: {lost.of(path)}; {lost.advice}") from error
        raise InputError(f"{path}: its metadata make no sense: {first_line(error)}; correct them") from error


def is_series(path: str) -> bool:
    """Whether `path` holds DICOM."""
    return isinstance(format_of(path), DicomFormat)


def are_cases(folder: str) -> bool:
    """Whether files of one plane each in `folder` are called as channels of several cases, and no slices."""
    return slices.are_cases(folder)


def case_in(folder: str) -> str | None:
    """The first of the files of one plane each in `folder` where all are called as channels of one case; else None."""
    return slices.case_in(folder)


def segmentation_of(path: str) -> str | None:
    """The file of the segmentation that `path` is, or that is all in a folder; None of other volumes. Raises
    `InputError` where there are several."""
    return dicom_seg.file_of(path) if isinstance(format_of(path), DicomSegFormat) else None


def slices_of(path: str) -> tuple[Volume, tuple[str, ...], tuple[int | None, ...]]:
    """The DICOM series at `path`, the file of each slice in order, and which frame of it. Raises `InputError`."""
    volume = DicomFormat().open(path, None)
    return volume, tuple(one.file for one in volume.slices), tuple(one.frame for one in volume.slices)


def open_stored(path: str, axes: str | None = None) -> Volume:
    """Open the volume at `path`, in whatever format it is, with all time points and channels that are stored. `axes`
    overrides what its metadata say, e.g. ``czyx``.

    Raises `InputError` naming what is missing and what to do.
    """
    path = plain(str(path))
    if format := format_of(path):
        return format.open(path, axes)
    if is_local(path) and not Path(path).exists():
        raise InputError(f"{path} does not exist; give the path of a volume")
    raise InputError(f"{path} is a file of no format that is read here ({READ}); {made_readable(path)}")


def open_volume(path: str, axes: str | None = None, pick: Pick = ALL) -> Volume:
    """The same, of which `pick` says which time point and channels are read."""
    return open_stored(path, axes).picked(pick)


# asked first, as any other may be a part of what it names, which is opened by what is above
FORMATS.insert(0, JoinedFormat(open_stored, located))
