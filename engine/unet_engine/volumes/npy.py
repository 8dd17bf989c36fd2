"""NumPy's own files (``.npy``), read in place."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.volumes import account, alpha
from unet_engine.volumes.axes import check_sizes, checked_axes, supposed
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
        end = offset + prod(shape) * dtype.itemsize
        said = account.read(account.npy_text(path), shape)
        named = axes or (said.axes if said else None)
        names = checked_axes(path, shape, dtype, named)
        part.check_length(end)
        said = said if said and said.axes == names else None
        channels = shape[names.index("c")] if "c" in names else 1
        of_alpha, doubts = alpha.settled(path, alpha.named(said.channel_names if said else (), {}, channels), channels)
        return PlainVolume(
            path=path,
            axes=names,
            supposed=supposed(named, names),
            stored_shape=shape,
            stored_chunks=plain_chunks(names, shape),
            stored_dtype=dtype,
            stored_spacing=said.along(names, said.spacing, 1.0) if said else None,
            stored_translation=said.along(names, said.translation, 0.0) if said else None,
            unit=said.unit if said else None,
            frame=said.frame if said else None,
            channel_names=said.channel_names if said else (),
            nodata=said.nodata if said else (),
            nodata_of=said.nodata_of if said else (),
            alpha=of_alpha,
            notes=doubts,
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
        try:
            return account.npy_header(file)
        except (SyntaxError, ValueError) as error:
            if "_ast" in repr(error) or "ast." in str(error):  # Python's, of a text that is no dictionary
                raise ValueError("its header is not what NumPy writes") from error
            raise
