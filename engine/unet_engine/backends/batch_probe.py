"""Whether a network gives the same bits in batches of another size: libraries may choose other algorithms, which add up
in another order.

One window of noise is put into every row of a batch, and the answers of the first and the last row are told by their
hashes. Where all rows of two batches give one and the same hash, windows may go through either. Noise reaches nearly
every value that a network computes, and one sum in another order shows; still it is a test and no proof.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.backends.device_tensor import DeviceTensor
from unet_engine.devices.base import Device, Stream
from unet_engine.devices.pinned import PinnedPool

PROBE_BYTES = 2**24
"""Bytes of a row's answer that are compared, at most."""


def answers(
    device: Device, stream: Stream, run: Callable[[int], None], tensors: tuple[DeviceTensor, DeviceTensor], batch: int
) -> frozenset[str]:
    """Hashes of what the rows of one batch answer to the same window. The host waits for it.

    run: queues the network on a stream; tensors: its input and its output for `batch` windows.
    """
    device.use()
    (asked, given), pool, done = tensors, PinnedPool(device, "probe"), device.event()
    try:
        question = pool.take(asked.region.size)
        device.touch(question.region, "w")
        _fill(question.array((question.region.size,), "uint8"), asked)
        device.copy(stream, asked.region, question.region)
        device.run(stream, "probe", run, [asked.region], [given.region])
        row = given.region.size // batch
        count = min(row, PROBE_BYTES)
        told = [pool.take(count) for _ in range(2)]
        for piece, start in zip(told, (0, row * (batch - 1)), strict=True):
            device.copy(stream, piece.region, given.region.part(start, count))
        device.record(done, stream)
        device.synchronize(done)
        for piece in told:
            device.touch(piece.region, "r")
        return frozenset(
            blake2b(piece.array((count,), "uint8").tobytes(), digest_size=16).hexdigest() for piece in told
        )
    finally:
        pool.close()


def agree(first: frozenset[str], second: frozenset[str]) -> bool:
    """Whether batches of which `answers` told these may stand for one another."""
    return first == second and len(first) == 1


def _fill(memory: Array, tensor: DeviceTensor) -> None:
    """The same noise in every row of a batch, in the tensor's own type and memory order."""
    noise = np.random.default_rng(0).standard_normal(tensor.shape[1:], np.float32)
    if tensor.dtype == "bfloat16":  # NumPy has none: the upper half of a float32
        bits = (noise.view(np.uint32) >> 16).astype(np.uint16)
    else:
        bits = noise.astype(tensor.dtype).view(np.uint32 if tensor.dtype == "float32" else np.uint16)
    memory[...] = 0
    size = bits.itemsize
    whole = memory[: memory.size // size * size].view(bits.dtype)
    strides = tuple(size * s for s in tensor.strides)
    np.lib.stride_tricks.as_strided(whole, tensor.shape, strides)[...] = bits
