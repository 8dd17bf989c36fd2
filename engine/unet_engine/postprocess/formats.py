"""The formats that are written. A new one is a file in `writers`, a line in `WRITERS`, and its endings in
`unet_engine.endings`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unet_engine.errors import OutputError
from unet_engine.paths import inside, is_local
from unet_engine.postprocess.writers.base import Writer
from unet_engine.postprocess.writers.dicom_seg import DicomSegWriter
from unet_engine.postprocess.writers.hdf5 import Hdf5Writer
from unet_engine.postprocess.writers.metaimage import MetaImageWriter
from unet_engine.postprocess.writers.nifti import NiftiWriter
from unet_engine.postprocess.writers.npy import NpyWriter
from unet_engine.postprocess.writers.nrrd import NrrdWriter
from unet_engine.postprocess.writers.ome_tiff import OmeTiffWriter
from unet_engine.postprocess.writers.ome_zarr import OzxWriter, ZarrWriter
from unet_engine.postprocess.writers.tiff import TiffWriter
from unet_engine.storage.remote_files import RemoteFile, copied
from unet_engine.volumes.formats import segmentation_of

WRITERS: tuple[Writer, ...] = (
    ZarrWriter(),
    OzxWriter(),
    NiftiWriter(),
    NrrdWriter(),
    MetaImageWriter(),
    NpyWriter(),
    Hdf5Writer(),
    OmeTiffWriter(),
    TiffWriter(),
    DicomSegWriter(),
)


def writer_of(path: str) -> Writer:
    """What writes a file called like `path`. Raises `OutputError` where nothing does."""
    for writer in _called(path):
        if path.lower().startswith(("http://", "https://")):
            raise OutputError(
                f"{path}: a web server can be read, not written to; give a place on a disk or in a bucket"
            )
        if "::" in path:
            raise OutputError(
                f"{path}: {writer.name} is written to a place of a plain name; leave out what is before ::"
            )
        return writer
    known = ", ".join(ending for writer in WRITERS for ending in writer.endings)
    raise OutputError(f"{path}: nothing says which format is meant; let the name end in one of {known}")


def is_one_file(path: str) -> bool:
    """Whether the volume at `path`, on this machine, is one file, or a folder that holds but one segmentation."""
    return is_local(path) and (Path(inside(path)[0]).is_file() or segmentation_of(path) is not None)


def is_remote_file(path: str) -> bool:
    """Whether it is one behind a URL, by its name."""
    return not is_local(path) and any(not writer.folder for writer in _called(inside(path)[0]))


def account_of(path: str) -> Mapping[str, Any] | None:
    """What the run that made the file at `path` said of itself; None where nothing is found in it."""
    if not is_local(path):
        return _account_behind(path)
    path = segmentation_of(path) or path
    for writer in _called(path):
        try:
            if found := writer.account(path):
                return found
        except Exception:  # whatever it is, it is none of ours
            continue
    return None


def _account_behind(url: str) -> Mapping[str, Any] | None:
    if not is_remote_file(url):
        return None
    file = RemoteFile(url)
    if not file.exists():
        return None
    copy = copied(file, file.about())
    try:
        return account_of(str(copy.path))
    finally:
        copy.release()


def _called(path: str) -> Iterator[Writer]:
    """The writers of files that are called so."""
    name = path.rstrip("/").rpartition("/")[2].lower()
    return (w for w in WRITERS if any(name.endswith(ending) and name != ending for ending in w.endings))
