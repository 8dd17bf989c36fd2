"""The numbers that the code of a TorchScript calls ``CONSTANTS.c0``, ``CONSTANTS.c1``, …: a tracer keeps factors and
summands there. They are read without running anything of the file."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import numpy as np

_TYPES = {"LongStorage": "<i8", "IntStorage": "<i4", "DoubleStorage": "<f8", "FloatStorage": "<f4"}
LARGEST = 2**20
"""Bytes of their list that are read."""


class _Reader(pickle.Unpickler):
    """Takes tensors apart into (type, file, sizes), and knows nothing else that could be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, sizes, *_: (*storage, sizes)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name.endswith("Storage"):
            return name
        raise ValueError(f"{module}.{name} is no constant")

    def persistent_load(self, held: tuple[Any, ...]) -> tuple[str, str]:
        return held[1], held[2]


def numbers(archive: zipfile.ZipFile, root: str) -> dict[str, float]:
    """By name those that are single numbers; none where the list cannot be read."""
    try:
        info = archive.getinfo(f"{root}/constants.pkl")
        if info.file_size > LARGEST:
            return {}
        held = _Reader(io.BytesIO(archive.read(info))).load()
        tensors = {f"c{i}": one for i, one in enumerate(held) if isinstance(one, tuple) and len(one) == 3}
        return {
            name: float(np.frombuffer(archive.read(f"{root}/constants/{file}"), _TYPES[kind])[0])
            for name, (kind, file, sizes) in tensors.items()
            if kind in _TYPES and sizes == () and archive.getinfo(f"{root}/constants/{file}").file_size <= 8
        }
    except Exception:  # whatever is in it, the code is then followed without
        return {}
