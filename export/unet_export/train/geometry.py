"""What follows from a U-Net's layout alone: admissible sizes, margin, receptive field, work. No PyTorch needed.

    level 0   conv conv ------------- crop, concat -> conv conv -> 1x1 conv to classes
                 | pool                     ^ up-conv
    level 1   conv conv --------- crop, concat -> conv conv
                 | pool                 ^ up-conv
    level d       +---> conv conv ------+

Every convolution is 3 wide and spans every axis, pooling and up-convolution are 2 wide with stride 2, so all axes obey
the same one-dimensional rule. Layout of Ronneberger et al. 2015 (2D) and Çiçek et al. 2016 (3D).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from unet_engine.errors import SettingsError

Norm = Literal["none", "batch", "instance"]
Padding = Literal["same", "valid"]


@dataclass(frozen=True)
class UNetConfig:
    """Layout of a U-Net.

    dims       2 (axes y, x) or 3 (axes z, y, x)
    classes    output channels (logits)
    base       channels of the first level; they double at each pooling
    depth      number of poolings
    norm       what follows each 3-wide convolution; instance statistics are those of the window
    padding    "same": zero-padded, output as large as input; "valid": unpadded, output smaller by `output_margin`

    Raises `SettingsError` where a value makes no sense.
    """

    dims: Literal[2, 3] = 3
    channels_in: int = 1
    classes: int = 2
    base: int = 16
    depth: int = 4
    norm: Norm = "batch"
    padding: Padding = "same"

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise SettingsError(f"a U-Net has 2 or 3 dimensions, not {self.dims}; set dims to 2 or 3")
        for field in ("channels_in", "classes", "base"):
            if getattr(self, field) < 1:
                raise SettingsError(f"{field} is {getattr(self, field)}; it must be 1 or more")
        if not 0 <= self.depth <= 8:
            raise SettingsError(f"depth is {self.depth}; use 0 to 8 poolings")
        if self.norm not in ("none", "batch", "instance"):
            raise SettingsError(f"norm {self.norm!r} is not known; use none, batch or instance")
        if self.padding not in ("same", "valid"):
            raise SettingsError(f"padding {self.padding!r} is not known; use same or valid")

    @property
    def axes(self) -> Literal["yx", "zyx"]:
        return "yx" if self.dims == 2 else "zyx"

    def channels(self, level: int) -> int:
        return self.base << level


def output_margin(config: UNetConfig) -> int:
    """Voxels that the output lacks at each side of each axis; 0 for "same".

    Two unpadded convolutions cost 2 voxels per side at their level, 2·2^k in input voxels at level k, once on the way
    down and once on the way up: 2·2^d + 2·sum(2·2^k for k < d) = 6·2^d − 4. Depth 4: 92, the classic 572 → 388.
    """
    return 0 if config.padding == "same" else 6 * 2**config.depth - 4


def window_rule(config: UNetConfig) -> tuple[int, int]:
    """(min, step): an axis takes the input sizes min, min + step, min + 2·step, …

    Every pooling must divide its map. For "same" the step is 2^depth and at least two voxels remain at the bottom
    (instance statistics of a single voxel are undefined, and `torch.export` specialises on size 1).
    For "valid", a bottom map that ends with b voxels comes from 2^d·(b + 4) + 4·(2^d − 1) and gives
    2^d·b − 4·(2^d − 1) output voxels, of which one or more must remain.
    """
    step = 2**config.depth
    if config.padding == "same":
        return 2 * step, step
    bottom = max(2, 4 * (step - 1) // step + 1)
    return step * (bottom + 4) + 4 * (step - 1), step


def crop_of_level(config: UNetConfig, level: int) -> int:
    """Voxels cut from each side of the encoder's map at `level` before the concatenation; 0 for "same".

    One level of the U loses 4 voxels below and 4 above the bottom's: the loss over both sides obeys
    loss(d) = 4, loss(k) = 2·loss(k + 1) + 8, and a loss at k + 1 is twice as wide at k, half of it on each side.
    """
    if config.padding == "same":
        return 0
    loss = 4
    for _ in range(config.depth - 1 - level):
        loss = 2 * loss + 8
    return loss


def receptive_radius(config: UNetConfig) -> int | None:
    """How far from an output voxel, per axis, an input voxel can lie and still change it.

    Found by walking the interval of one output voxel back through the deepest path, for each of the 2^depth positions
    that a voxel can have relative to the pooling lattice; the largest is returned, so it is tight for some position.
    None for instance norm, where every output voxel sees the whole window.
    """
    if config.norm == "instance":
        return None
    left = 1 if config.padding == "same" else 0

    def two_convolutions(low: int, high: int) -> tuple[int, int]:
        return low - 2 * left, high + 4 - 2 * left

    radius = 0
    for position in range(2**config.depth):
        low = high = position
        for _ in range(config.depth):
            low, high = two_convolutions(low, high)
            low, high = low // 2, high // 2
        low, high = two_convolutions(low, high)
        for _ in range(config.depth):
            low, high = two_convolutions(2 * low, 2 * high + 1)
        centre = position + output_margin(config)
        radius = max(radius, centre - low, high - centre)
    return radius


def flops(config: UNetConfig, window: tuple[int, ...]) -> int:
    """Floating point operations of one call on one window (input sizes, batch 1).

    Counted: two per multiply-add of the 3-wide convolutions, the up-convolutions and the 1-wide output convolution.
    Not counted: bias, normalisation, ReLU, pooling, concatenation (about 1 % together).
    """
    check_window(config, window)
    return 2 * sum(voxels * weights for voxels, weights in _multiplications(config, window))


def check_window(config: UNetConfig, window: tuple[int, ...]) -> None:
    """Raise `SettingsError` unless the network takes `window` (input sizes per axis)."""
    least, step = window_rule(config)
    if len(window) != config.dims:
        raise SettingsError(f"window {window} has {len(window)} axes; give {config.dims} sizes ({config.axes})")
    for axis, size in zip(config.axes, window, strict=True):
        if size < least or (size - least) % step:
            below = max(least, least + (size - least) // step * step)
            raise SettingsError(
                f"window size {size} along {axis} is not admissible; use {least} + k*{step}, "
                f"e.g. {below} or {below + step}"
            )


def _multiplications(config: UNetConfig, window: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(positions, multiply-adds per position) of every counted layer."""
    taps, corners = 3**config.dims, 2**config.dims
    loss = 0 if config.padding == "same" else 2

    def two_convolutions(size: tuple[int, ...], inputs: int, outputs: int) -> Iterator[tuple[int, int]]:
        yield prod(n - loss for n in size), taps * inputs * outputs
        yield prod(n - 2 * loss for n in size), taps * outputs * outputs

    size, inputs = tuple(window), config.channels_in
    for level in range(config.depth + 1):
        width = config.channels(level)
        yield from two_convolutions(size, inputs, width)
        size, inputs = tuple(n - 2 * loss for n in size), width
        if level < config.depth:
            size = tuple(n // 2 for n in size)
    for level in reversed(range(config.depth)):
        width = config.channels(level)
        yield prod(size), corners * 2 * width * width
        size = tuple(2 * n for n in size)
        yield from two_convolutions(size, 2 * width, width)
        size = tuple(n - 2 * loss for n in size)
    yield prod(size), config.base * config.classes
