"""NIfTI 1 and 2, Analyze pairs and FreeSurfer's MGH, by nibabel's headers."""

from __future__ import annotations

from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.units import times
from unet_engine.volumes.base import Volume
from unet_engine.volumes.files import Part, has_ending, opening, package
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.packed import Described, volume_of

ENDINGS = (".nii", ".nii.gz", ".nii.bz2", ".hdr", ".img", ".img.gz", ".hdr.gz", ".mgh", ".mgz")
_UNITS = {"mm": "millimeter", "micron": "micrometer", "meter": "meter"}


class NiftiFormat:
    def recognises(self, path: str) -> bool:
        return has_ending(path, *ENDINGS)

    def open(self, path: str, axes: str | None) -> Volume:
        Part.of(path)
        nibabel = package(path, "a NIfTI file", "nibabel", "nifti")
        with opening(path, "NIfTI file"):
            image = nibabel.load(path)
            return volume_of(self, path, _described(path, image), axes)


def _described(path: str, image: Any) -> Described:
    proxy = image.dataobj
    shape, dtype = tuple(int(n) for n in proxy.shape), np.dtype(proxy.dtype)
    axes, shape = _axes(path, shape)
    if dtype.names:  # RGB: three numbers side by side
        axes, shape, dtype = axes + "c", (*shape, len(dtype.names)), dtype[0]
    files = {holder.filename for holder in image.file_map.values() if holder.filename}
    data = str(image.file_map["image"].filename)
    unit, notes = _unit(path, image)
    affine = np.asarray(image.affine, np.float64)
    spatial = sum(a in "zyx" for a in axes)
    return Described(
        data=data,
        offset=int(proxy.offset),
        packing="gzip" if data.lower().endswith((".gz", ".mgz")) else "bzip2" if data.lower().endswith(".bz2") else "",
        shape=shape,
        axes=axes,
        dtype=dtype,
        slope=float(proxy.slope),
        intercept=float(proxy.inter),
        frame=Frame.of(affine[:3].tolist(), "RAS") if spatial == 3 else None,
        spacing=tuple(float(v) for v in image.header.get_zooms()[:2][::-1]) if spatial == 2 else None,
        unit=unit,
        notes=notes,
        parts=tuple(Part.of(file) for file in sorted(files)),
    )


def _axes(path: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """The axes of x, y, z, t and a vector, the slowest first; what is one long beyond z is left out."""
    if len(shape) > 5 and any(n > 1 for n in shape[5:]):
        raise InputError(
            f"{path} has {len(shape)} axes ({times(shape)}), of which x, y, z, t and a vector are known; split it"
        )
    kept = [(a, n) for i, (a, n) in enumerate(zip("xyztc", shape, strict=False)) if i < 3 or n > 1]
    return "".join(a for a, _ in reversed(kept)), tuple(n for _, n in reversed(kept))


def _unit(path: str, image: Any) -> tuple[str, tuple[str, ...]]:
    said = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "mm"
    if said in _UNITS:
        return _UNITS[said], ()
    return "millimeter", (f"{path} names no unit: its voxels are taken as measured in millimetres, as is usual",)
