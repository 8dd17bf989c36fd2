"""PNG and JPEG: one plane, which is unpacked as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.paths import inside
from unet_engine.plan.fetching import Fetching
from unet_engine.units import times
from unet_engine.volumes import alpha, packed, pictures
from unet_engine.volumes.axes import checked_axes
from unet_engine.volumes.base import Array, Selection, Volume
from unet_engine.volumes.files import KEPT_BYTES, FileVolume, Kept, Part, check_pieces, has_ending, opening, package

ENDINGS = (".png", ".jpg", ".jpeg")
_CHANNELS = 4
"""The most that either format has."""
_PALETTE = 3
"""A kind of PNG, 11.2.1 of its specification."""


class PictureFormat:
    def recognises(self, path: str) -> bool:
        return has_ending(inside(path)[0], *ENDINGS)

    def open(self, path: str, axes: str | None) -> Volume:
        found = plane(path, axes)
        # larger ones are unpacked to a file: each block would unpack them anew
        if prod(found.stored_shape) * found.stored_dtype.itemsize <= KEPT_BYTES:
            return found
        said = packed.Described(
            data=(path,),
            offset=0,
            packing="picture",
            shape=found.stored_shape,
            axes=found.axes,
            dtype=found.stored_dtype,
            parts=found.files,
        )
        copied = packed.volume_of(self, path, said, axes)
        assert isinstance(copied, FileVolume)
        return replace(copied, alpha=found.alpha, notes=(*found.notes, *copied.notes))


def plane(path: str, axes: str | None) -> PictureVolume:
    """The picture at `path`, of which nothing is kept elsewhere. Raises `InputError`."""
    part = Part.of(path)
    package(path, "a PNG or JPEG", "imagecodecs", "tiff")
    with opening(path, "picture"):
        data = Path(path).read_bytes()
        sides = (*_sides(path, data), _CHANNELS)
        check_pieces(path, sides, sides, _itemsize(data))
        voxels = pictures.decoded(path, data)
    names = checked_axes(path, voxels.shape, voxels.dtype, axes or "yxc"[: voxels.ndim])
    channels = voxels.shape[names.index("c")] if "c" in names else 1
    found, doubts = alpha.settled(path, (channels - 1,) if channels in (2, 4) else (), channels)
    return PictureVolume(
        path=path,
        axes=names,
        stored_shape=voxels.shape,
        stored_chunks=voxels.shape,
        stored_dtype=voxels.dtype,
        alpha=found,
        notes=(*_told(path, data), *doubts),
        opened_by=PictureFormat(),
        files=(part,),
    )


def _sides(path: str, data: bytes) -> pictures.Sides:
    found = pictures.sides(data) if data.startswith((pictures.PNG, pictures.JPEG)) else None
    if not found or 0 in found:
        raise InputError(f"{path} is no PNG or JPEG, though it is called so; give another --in")
    return found


def _itemsize(data: bytes) -> int:
    """Bytes of a number: a PNG has its bits behind its sides."""
    return 2 if data.startswith(pictures.PNG) and data[24] == 16 else 1


def _told(path: str, data: bytes) -> tuple[str, ...]:
    told = []
    if data.startswith(pictures.PNG) and data[25] == _PALETTE:
        told.append(f"{path} is a picture of a palette: its colours are read, not their numbers in the palette")
    if pictures.is_shown_turned(data):
        told.append(
            f"{path} asks to be shown turned or mirrored (Exif): it is read as it is stored, and so is the result"
        )
    return tuple(told)


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureVolume(FileVolume):
    kept: Kept[Any] = field(default_factory=Kept)
    """All of it, once any is read."""

    @property
    def pieces(self) -> tuple[int, ...] | None:
        return self.shape

    def keep(self, most: int, reads: Fetching | None) -> None:
        self.kept.allow(most)

    def stored(self, selection: Selection) -> Array:
        return np.array(self.kept.get(self.path, self._voxels)[tuple(selection)])

    def _voxels(self) -> Array:
        found = pictures.decoded(self.path, Path(self.path).read_bytes())
        if found.shape != self.stored_shape or found.dtype != self.stored_dtype:
            raise InputError(f"{self.path} is another picture now, of {times(found.shape)}; run again with --overwrite")
        return found
