"""Files of other formats than Zarr behind URLs: rasters with a place on the map are read by parts, all others from a
copy that is fetched once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from unet_engine.errors import InputError, UnetEngineError, reworded
from unet_engine.paths import chosen, inside, is_local
from unet_engine.storage.remote_files import About, RemoteFile, copied, name_of
from unet_engine.storage.remote_raster import RemoteRaster
from unet_engine.units import size
from unet_engine.volumes.base import Format, Volume
from unet_engine.volumes.files import FileVolume

_APART = {".nhdr": ".nrrd", ".mhd": ".mha", ".hdr": ".nii", ".img": ".nii", ".img.gz": ".nii.gz", ".hdr.gz": ".nii.gz"}
"""Headers whose voxels are in another file, and what keeps both in one."""


class InPlace(Format, Protocol):
    """A format that is read by parts through a store."""

    def takes(self, source: RemoteRaster) -> bool:
        """Whether what `source` opens is one of these. Raises `InputError`."""

    def in_place(self, path: str, source: RemoteRaster, axes: str | None, opened_by: Format) -> Volume:
        """Open it; other processes do so by `opened_by`."""


class FetchedFormat:
    def __init__(self, formats: Sequence[Format], raster: InPlace, endings: Sequence[str]) -> None:
        """formats: those that read a copy; raster: what is asked before it is made; endings: of the names of all"""
        self._formats, self._raster, self._endings = tuple(formats), raster, tuple(endings)

    def located(self, path: str, image: str | None, level: int | None) -> str:
        return chosen(path, image=image, level=level or None)

    def recognises(self, path: str) -> bool:
        file = inside(path)[0]
        return not is_local(file) and file.partition("?")[0].lower().endswith(self._endings)

    def open(self, path: str, axes: str | None) -> Volume:
        url, within = inside(path)
        name = name_of(url).lower()
        for ending, better in _APART.items():
            if name.endswith(ending):
                raise InputError(
                    f"{path} keeps its voxels in another file beside it, and one file is fetched; save both as one "
                    f"{better}, or copy them to a disk"
                )
        file = RemoteFile(url)
        about = file.about()
        if about.ranges and about.length:
            source = RemoteRaster(file, about)
            if self._raster.takes(source):
                return self._raster.in_place(path, source, axes, self)
        return self._from_copy(path, url, within, file, about, axes)

    def _from_copy(
        self, path: str, url: str, within: str | None, file: RemoteFile, about: About, axes: str | None
    ) -> Volume:
        copy = copied(file, about)
        here = str(copy.path)
        place = f"{here}:{within}" if within else here
        format = next((one for one in self._formats if one.recognises(place)), None)
        if format is None:
            raise InputError(f"{path} is a file of no format that is read here; convert it to Zarr first")
        try:
            volume = format.open(place, axes)
        except UnetEngineError as error:
            raise reworded(error, str(error).replace(here, url)) from error
        assert isinstance(volume, FileVolume)
        if len(volume.files) > 1:  # a copy lies among those of others
            raise InputError(f"{url} keeps its voxels in several files, and one file is fetched; copy them to a disk")
        told = f"{url} is read from a copy, {here} ({size(copy.path.stat().st_size)}), which goes once a run of it is complete, or after a week"
        notes = tuple(note.replace(here, url) for note in volume.notes)
        return replace(volume, path=path, opened_by=self, notes=(told, *notes), fetched=copy)
