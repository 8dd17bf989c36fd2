"""NumPy's own files (``.npy``), read in place."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from unet_engine.volumes.axes import check_sizes, checked_axes
from unet_engine.volumes.base import Volume
from unet_engine.volumes.files import Part, PlainVolume, has_ending, opening, plain_chunks


class NpyFormat:
    """Objects, which would be unpickled, are refused: they are no numbers."""

    def recognises(self, path: str) -> bool:
        return has_ending(path, ".npy")

    def open(self, path: str, axes: str | None) -> Volume:
        part = Part.of(path)
        with opening(path, ".npy file"):
            shape, fortran, dtype, offset = _header(path)
        check_sizes(path, shape, shape)
        names = checked_axes(path, shape, dtype, axes)
        part.check_length(offset + prod(shape) * dtype.itemsize)
        return PlainVolume(
            path=path,
            axes=names,
            stored_shape=shape,
            stored_chunks=plain_chunks(names, shape),
            stored_dtype=dtype,
            opened_by=self,
            files=(part,),
            data=path,
            offset=offset,
            numbers=dtype,
            order="F" if fortran else "C",
        )


def _header(path: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether its first axis is the fastest, type, and where the numbers begin."""
    with Path(path).open("rb") as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        return shape, fortran, dtype, file.tell()
