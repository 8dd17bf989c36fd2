"""Batches in the memory of a device."""

from __future__ import annotations

from dataclasses import dataclass

from unet_engine.devices.base import Region


@dataclass(frozen=True)
class DeviceTensor:
    """A batch in device memory: (batch, channels, *spatial), of any memory order."""

    region: Region
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements."""
    dtype: str
    """``float32``, ``float16`` or ``bfloat16``."""


@dataclass(frozen=True)
class Borrowed:
    """Memory that a library allocated and keeps."""

    address: int
    size: int


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an array in C order, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))
