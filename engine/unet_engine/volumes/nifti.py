"""NIfTI 1 and 2, Analyze pairs and FreeSurfer's MGH, by nibabel's headers."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from typing import Any

import numpy as np

from unet_engine.errors import InputError
from unet_engine.paths import absolute
from unet_engine.units import times
from unet_engine.volumes.base import Array, Timing, Volume
from unet_engine.volumes.files import Part, has_ending, listening, opening, package
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
        _check_others(path)
        with opening(path, "NIfTI file"):
            _check_extensions(nibabel, path)
            with listening(nibabel.imageglobals.logger) as heard:
                image = nibabel.load(absolute(path))  # of its own it takes a ~ for somebody's home
            said = _described(path, image)
            notes = (*said.notes, *(f"{path}: {message}" for message in heard))
            return volume_of(self, path, replace(said, notes=notes), axes)


def _check_others(path: str) -> None:
    """Raise `InputError` where a file that belongs to the one at `path`, by its name, is none: nibabel opens them."""
    if not path.lower().endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        return
    folder, name = os.path.split(path)
    stem = name.lower().removesuffix(".gz")[: -len("hdr")]
    others = {f"{stem}{ending}{packed}" for ending in ("hdr", "img", "mat") for packed in ("", ".gz", ".bz2", ".zst")}
    for found in os.listdir(folder or "."):  # noqa: PTH208
        if found.lower() in others:
            Part.of(os.path.join(folder, found))  # noqa: PTH118


_HEADS = {348: (108, "f"), 540: (168, "q")}
"""By the length of a header of NIfTI: where it says at which byte the voxels begin, and in which type."""
_LONGEST_EXTENSION = 2**26
"""Bytes of what lies between a header and the voxels."""


def _check_extensions(nibabel: Any, path: str) -> None:
    """Raise `ValueError` where what lies between header and voxels is longer than any is: nibabel reads it whole, and
    of a packed file it may be gigabytes."""
    with nibabel.openers.ImageOpener(path) as file:
        head = file.read(max(_HEADS) + 4)
        order = next((o for o in "<>" if len(head) > 4 and struct.unpack_from(f"{o}i", head)[0] in _HEADS), None)
        if order is None:
            return
        length = struct.unpack_from(f"{order}i", head)[0]
        if len(head) < length + 4 or not head[length]:
            return
        at, kind = _HEADS[length]
        begin, place = struct.unpack_from(order + kind, head, at)[0], length + 4
        file.seek(place)
        while place + 16 <= begin and len(sizes := file.read(8)) == 8:
            size = struct.unpack(f"{order}ii", sizes)[0]
            place += size
            if size < 8 or place > _LONGEST_EXTENSION:
                raise ValueError(f"an extension of its header has {size:,} bytes")
            file.read(size - 8)


def _described(path: str, image: Any) -> Described:
    proxy = image.dataobj
    shape, dtype = tuple(int(n) for n in proxy.shape), np.dtype(proxy.dtype)
    axes, shape = _axes(path, shape)
    if dtype.names:  # RGB: three numbers side by side
        axes, shape, dtype = axes + "c", (*shape, len(dtype.names)), dtype[0]
    files = {holder.filename for holder in image.file_map.values() if holder.filename}
    data = str(image.file_map["image"].filename)
    if "header" not in image.file_map and int(proxy.offset) < getattr(image.header, "sizeof_hdr", 0):
        raise ValueError(f"it says that its voxels begin at byte {int(proxy.offset)}, inside the header")
    unit, notes = _unit(path, image)
    affine = np.asarray(image.affine, np.float64)
    spatial = sum(a in "zyx" for a in axes)
    return Described(
        data=(data,),
        offset=int(proxy.offset),
        packing="gzip" if data.lower().endswith((".gz", ".mgz")) else "bzip2" if data.lower().endswith(".bz2") else "",
        shape=shape,
        axes=axes,
        dtype=dtype,
        slope=float(proxy.slope),
        intercept=float(proxy.inter),
        frame=Frame.of(affine[:3].tolist(), "RAS") if spatial == 3 else _in_plane(image, affine),
        spacing=tuple(float(v) for v in image.header.get_zooms()[:2][::-1]) if spatial == 2 else None,
        unit=unit,
        notes=notes,
        timing=_timing(image) if "t" in axes else None,
        channel_names=tuple(proxy.dtype.names or ()),
        parts=tuple(Part.of(file) for file in sorted(files)),
        supposed="t" * ("t" in axes),  # by its place alone, at which many tools store channels
    )


def _timing(image: Any) -> Timing | None:
    """Of its fourth axis. 1 of no unit is what tools write who know nothing."""
    unit = image.header.get_xyzt_units()[1] if hasattr(image.header, "get_xyzt_units") else "unknown"
    step, start = (
        float(image.header.get_zooms()[3]),
        float(image.header["toffset"]) if "toffset" in image.header else 0.0,
    )
    if not np.isfinite([step, start]).all() or step <= 0 or (unit not in _TIMES and (step, start) == (1.0, 0.0)):
        return None
    return Timing(step, start, _TIMES.get(unit))


_TIMES = {"sec": "second", "msec": "millisecond", "usec": "microsecond"}


def _in_plane(image: Any, affine: Array) -> Frame | None:
    """Where a single plane lies, where the header says it, and it lies in the plane of x and y."""
    codes = [int(image.header[key]) for key in ("sform_code", "qform_code") if key in image.header]
    (a, b, _, x), (d, e, _, y) = affine[:2].tolist()
    tilted = np.abs([*affine[:2, 2], *affine[2, :2]]).max() > 1e-5 * np.abs(affine[:2, :2]).max()
    if not any(codes) or tilted or not np.isfinite(affine).all() or a * e == b * d:
        return None
    return Frame.of([[a, b, x], [d, e, y]])


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
