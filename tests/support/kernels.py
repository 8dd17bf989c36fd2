"""Arrays for the GPU's kernels: on the host, where they run in loops, and on a GPU if there is one."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
import pytest


class Host:
    """`_halo_loop` on arrays of NumPy."""

    def __init__(self) -> None:
        self.kernels: ModuleType = importlib.import_module("unet_engine.devices._halo_loop")
        self._kept: list[Any] = []

    def put(self, array: np.ndarray) -> Any:
        self._kept.append(array)
        strides = [s // array.itemsize for s in array.strides]
        return self.kernels.array(array.ctypes.data, array.shape, array.dtype.name, strides)

    def get(self, array: np.ndarray, given: Any) -> np.ndarray:
        return array


class Gpu(Host):
    """`_halo_cuda` on copies of them on the device."""

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")
        self.kernels = importlib.import_module("unet_engine.devices._halo_cuda")

    def put(self, array: np.ndarray) -> Any:
        # the memory around a view goes along, so that strides stay what they are
        name = {"uint16": "int16", "uint32": "int32", "uint64": "int64", "bfloat16": "int16"}.get(array.dtype.name)
        plain = np.ascontiguousarray(array).view(name) if name else np.ascontiguousarray(array)
        tensor = self.torch.from_numpy(plain.copy()).cuda()
        strides = tensor.stride()
        if array.ndim > 3 and not array.flags.c_contiguous:  # channels last
            order = (0, *range(2, array.ndim), 1)
            tensor = tensor.permute(order).contiguous().permute(np.argsort(order).tolist())
            strides = tensor.stride()
        self.tensors = [*getattr(self, "tensors", []), tensor]
        return self.kernels.array(tensor.data_ptr(), array.shape, array.dtype.name, strides)

    def get(self, array: np.ndarray, given: Any) -> np.ndarray:
        self.torch.cuda.synchronize()
        tensor = next(t for t in self.tensors if t.data_ptr() == self.torch.from_dlpack(given).data_ptr())
        return tensor.cpu().numpy().view(array.dtype)


def places() -> list[Any]:
    torch = importlib.util.find_spec("torch") and importlib.import_module("torch")
    no_gpu = not (torch and torch.cuda.is_available() and importlib.util.find_spec("unet_engine.devices._halo_cuda"))
    return [Host, pytest.param(Gpu, marks=pytest.mark.skipif(no_gpu, reason="no CUDA GPU"))]
