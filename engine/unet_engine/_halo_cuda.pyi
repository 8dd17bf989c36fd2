"""Stitching on the GPU, bit for bit as `unet_engine.halo` does it on the CPU. Present where nvcc was at build time.

`DeviceArray` is anything that speaks DLPack on a CUDA device (torch, CuPy, JAX), channels first with two or three spatial axes,
of any strides. Work is queued on `stream` (a `cudaStream_t` as an integer, 0 the default stream) of the device of `sums`; the
caller keeps the arrays alive until it ran. Wrong shapes, types, devices and ranges raise ValueError before anything is queued; a
failed launch raises RuntimeError with the kernel's name.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DeviceArray = Any

def add_batch(
    sums: DeviceArray,
    windows: DeviceArray,
    weights: Sequence[NDArray[np.float32]],
    at: NDArray[np.int64],
    lo: NDArray[np.int64],
    hi: NDArray[np.int64],
    *,
    stream: int = 0,
) -> None:
    """`halo.add` of windows (N, K, *W) float32, float16 or bfloat16 to sums (K, *S) float32, in the order of the batch.

    On the host: `weights` per axis (N, W[axis]); `at`, `lo`, `hi` (N, axes), as in `halo.add` for each window. N is at most 8192.
    """

def merge(sums: DeviceArray, halo: DeviceArray, at: Sequence[int], *, stream: int = 0) -> None:
    """As `halo.merge`."""

def labels(sums: DeviceArray, out: DeviceArray, activation: str, *, stream: int = 0) -> None:
    """As `halo.labels`: out (*S) uint8 or uint16."""

def probabilities(sums: DeviceArray, out: DeviceArray, activation: str, *, stream: int = 0) -> None:
    """As `halo.probabilities`: out (K, *S) uint8 or float32."""
