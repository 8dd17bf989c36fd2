"""The native functions behind `unet_engine.stitching.operations`. Arrays have four axes (channels, z, y, x), per-axis
arguments three."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def gather(
    out: NDArray[np.float32],
    block: NDArray[np.generic],
    type: str,
    index: Sequence[NDArray[np.int64]],
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    limits: NDArray[np.float64] | None,
    fill: float,
    threads: int,
    /,
) -> None: ...
def add(
    sums: NDArray[np.float32],
    window: NDArray[np.generic],
    type: str,
    weights: Sequence[NDArray[np.float32]],
    at: Sequence[int],
    lo: Sequence[int],
    hi: Sequence[int],
    threads: int,
    floor: float = 0.0,
    /,
) -> None: ...
def add_constant(
    sums: NDArray[np.float32],
    values: NDArray[np.float32],
    weights: Sequence[NDArray[np.float32]],
    at: Sequence[int],
    lo: Sequence[int],
    hi: Sequence[int],
    threads: int,
    floor: float = 0.0,
    /,
) -> None: ...
def divide(sums: NDArray[np.float32], covers: Sequence[NDArray[np.float32]], floor: float, threads: int, /) -> None: ...
def merge(sums: NDArray[np.float32], halo: NDArray[np.float32], at: Sequence[int], threads: int, /) -> None: ...
def labels_uint8(sums: NDArray[np.float32], out: NDArray[np.uint8], above: float | None, threads: int, /) -> None: ...
def labels_uint16(sums: NDArray[np.float32], out: NDArray[np.uint16], above: float | None, threads: int, /) -> None: ...
def probabilities_uint8(
    sums: NDArray[np.float32], out: NDArray[np.uint8], activation: str, threads: int, /
) -> None: ...
def probabilities_float16(
    sums: NDArray[np.float32], out: NDArray[np.uint16], activation: str, threads: int, /
) -> None: ...
def probabilities_float32(
    sums: NDArray[np.float32], out: NDArray[np.float32], activation: str, threads: int, /
) -> None: ...
def logits_float32(sums: NDArray[np.float32], out: NDArray[np.float32], threads: int, /) -> None: ...
def logits_float16(sums: NDArray[np.float32], out: NDArray[np.uint16], threads: int, /) -> None: ...
def linear(
    out: NDArray[np.float32],
    features: NDArray[np.float32],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    threads: int,
    /,
) -> None: ...
def interpolate(
    out: NDArray[np.float32],
    block: NDArray[np.float32],
    first: Sequence[NDArray[np.int64]],
    weights: Sequence[NDArray[np.float32]],
    threads: int,
    /,
) -> None: ...
def is_constant(
    block: NDArray[np.generic], type: str, lo: Sequence[int], hi: Sequence[int], value: NDArray[np.generic], /
) -> bool: ...
