"""HDF5: a dataset called ``data``, in chunks packed with gzip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.postprocess.content import Content
from unet_engine.postprocess.writers.base import account_in, account_text, chunks_of, library, lost_mask
from unet_engine.volumes.account import KEY
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.nodata import as_attribute, same

NAME = "data"


class Hdf5Writer:
    name = "an HDF5 file"
    endings = (".h5", ".hdf5")
    folder = False

    def require(self, path: str, frame: Frame | None) -> None:
        library(path, self.name, "h5py", "hdf5")

    def check(self, path: str, content: Content) -> None:
        self.require(path, content.frame)

    def losses(self, content: Content) -> list[str]:
        return lost_mask(content, "HDF5")

    def write(self, place: Path, content: Content) -> None:
        import h5py

        chunks = chunks_of(content)
        with h5py.File(place, "w") as file:
            data = file.create_dataset(
                NAME,
                shape=content.shape,
                dtype=content.dtype,
                chunks=chunks,
                compression="gzip",
                compression_opts=1,
                shuffle=content.dtype.itemsize > 1,
                fillvalue=0,
            )
            for dimension, axis in zip(data.dims, content.axes, strict=True):
                dimension.label = axis
            data.attrs.update(_attributes(content))
            file.create_dataset(KEY, data=account_text(content), dtype=h5py.string_dtype())
            for cell in content.aligned(chunks):
                voxels = content.read(cell)
                if np.any(voxels):
                    data[cell] = voxels

    def account(self, path: str) -> Mapping[str, Any] | None:
        import h5py

        with h5py.File(path, "r") as file:
            return account_in(file[KEY].asstr()[()])


def _attributes(content: Content) -> dict[str, Any]:
    """As they are read by others, too: sizes and place per spatial axis, in the order of the axes, where these say
    where voxels lie. Of axes that run backwards they do not: there a size is taken for a slip."""
    said: dict[str, Any] = {}
    if content.spacing is not None and min(content.spacing) > 0:
        said |= {
            "resolution": list(content.spacing),
            "offset": list(content.translation or (0.0,) * len(content.spatial)),
        }
    if content.unit:
        said["units"] = content.unit
    if same(content.missing):  # of each channel, the account says it
        said["nodatavals"] = as_attribute(content.missing)
    return said
