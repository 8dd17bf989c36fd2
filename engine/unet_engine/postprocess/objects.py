"""Which class an object is of: beside the numbers in the output of components, ``objects/class``, an entry for each
number from 0 on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from unet_engine.paths import is_local
from unet_engine.postprocess.base import Array
from unet_engine.storage import stores
from unet_engine.storage.durability import Durability

CLASSES = "objects/class"


def write_classes(path: str, classes: Array, durability: Durability) -> None:
    """classes: of objects 1, 2, …"""
    values = np.concatenate([np.zeros(1, classes.dtype), classes])
    group = stores.open_group(path, "r+")
    group.create_array(CLASSES, data=values, chunks=(min(len(values), 2**20),), overwrite=True)
    if is_local(path):
        places = list(Path(path, "objects").rglob("*"))
        for place in places:
            if place.is_file():
                with place.open("rb") as file:
                    durability.file(file.fileno())
        durability.folders([Path(path), Path(path, "objects"), *(place for place in places if place.is_dir())])


def read_classes(path: str) -> zarr.Array | None:
    """By number of an object its class, not read yet; None where `path` is no output of components."""
    try:
        found = stores.open_group(path, "r")[CLASSES]
    except Exception:  # whatever it is, it does not say
        return None
    return found if isinstance(found, zarr.Array) else None
