"""Windows of the host into a network's input on a device, and what it makes of them back, without memory of the device
for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from unet_engine.backends.device_tensor import DeviceTensor
from unet_engine.devices.base import Device, Stream
from unet_engine.devices.pinned import PinnedPool

Array = npt.NDArray[np.float32]
MOST_BYTES = 2**27
"""Of page-locked memory for a batch; larger ones are left alone."""


def fill(device: Device, stream: Stream, tensor: DeviceTensor, windows: Sequence[Array]) -> None:
    """Put `windows`, each of a row's shape, into the rows of `tensor` in turn. The host waits for it."""
    if tensor.region.size > MOST_BYTES:
        return
    device.use()
    pool, done = PinnedPool(device, "trial"), device.event()
    piece = pool.take(tensor.region.size)
    device.touch(piece.region, "w")
    flat = piece.array((tensor.region.size,), "uint8")
    flat[...] = 0
    target = _strided(flat, tensor)
    for row in range(tensor.shape[0]):
        window = np.ascontiguousarray(windows[row % len(windows)], np.float32)
        if tensor.dtype == "bfloat16":  # NumPy has none: the upper half of a float32
            target[row] = (window.view(np.uint32) >> 16).astype(np.uint16)
        else:
            target[row] = window
    device.copy(stream, tensor.region, piece.region)
    device.record(done, stream)
    device.synchronize(done)
    del target, flat, piece
    pool.close()


def rows(device: Device, stream: Stream, tensor: DeviceTensor, count: int) -> Iterator[Array]:
    """The first `count` rows of `tensor` as float32, one after the other; none of a batch that is too large."""
    if tensor.region.size > MOST_BYTES:
        return
    pool, done = PinnedPool(device, "trial"), device.event()
    piece = pool.take(tensor.region.size)
    device.copy(stream, piece.region, tensor.region)
    device.record(done, stream)
    device.synchronize(done)
    device.touch(piece.region, "r")
    flat = piece.array((tensor.region.size,), "uint8")
    batch = _strided(flat, tensor)
    for row in range(count):
        values = batch[row]
        if tensor.dtype == "bfloat16":
            yield (values.astype(np.uint32) << 16).view(np.float32)
        else:
            yield values.astype(np.float32)
    del values, batch, flat, piece
    pool.close()


def _strided(flat: npt.NDArray[np.uint8], tensor: DeviceTensor) -> npt.NDArray[np.generic]:
    """Pinned bytes as the tensor has them, bfloat16 as its bits."""
    dtype = np.dtype("uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
    whole = flat[: flat.size // dtype.itemsize * dtype.itemsize].view(dtype)
    return np.lib.stride_tricks.as_strided(whole, tensor.shape, tuple(dtype.itemsize * s for s in tensor.strides))
