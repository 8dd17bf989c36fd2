"""From the sums of a block to what is written: the last step of every pipeline, on the host and on a device.

    sums (channels, *write) float32  --reduction-->  labels (*write), or probabilities or logits (channels, *write)

A reduction is whatever turns finished sums into voxels of the output. Bringing them back to the grid of the scan,
putting the members of an ensemble together, or masking are reductions, too, or wrap one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.model.spec import Activation
from unet_engine.plan.box import Box
from unet_engine.stitching import operations
from unet_engine.stitching.interpolation import Taps

ROWS = 16
"""Of the output that are interpolated together, as many as `cpp_ext/interpolate.hpp` lays side by side."""

Kind = Literal["labels", "masks", "probabilities", "logits"]


@dataclass(frozen=True)
class Merging:
    """What a device does in the same pass: halos that are added to the core before it is reduced. Arrays as
    `Device.array` makes them."""

    parts: Sequence[Any]
    corners: Sequence[tuple[int, ...]]
    """Where each part begins in the core."""
    nonfinite: Any
    """int32 of length 1, set where any sum is NaN or Inf."""


@dataclass(frozen=True)
class Reduction(ABC):
    """What is written for sums of the network's output."""

    activation: Activation
    dtype: str
    regions: tuple[int, ...] | None = None
    """See `ModelSpec.regions`."""
    kind: ClassVar[Kind]

    @property
    def on_host_alone(self) -> bool:
        """Whether no kernel does it."""
        return False

    def shape(self, sums: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what is written for sums of the shape `sums`, (channels, *write)."""
        return sums

    def on_host(self, sums: Array) -> Array:
        """Voxels for `sums`, (channels, *write) float32, which may be changed."""
        out = np.empty(self.shape(sums.shape), self.dtype)
        self._reduce(sums, out)
        return out

    def on_grid(self, sums: Array, grid: Sequence[Taps]) -> Array:
        """Voxels on another grid, which `grid` says for each axis how to make of `sums`: first the sums are
        interpolated, then reduced, a few rows of the output at a time, so that they stay in the cache and never are
        there as a whole."""
        shape = tuple(axis.size for axis in grid)
        out = np.empty(self.shape((len(sums), *shape)), self.dtype)
        scratch = np.empty((len(sums), *(1,) * (len(shape) - 2), min(ROWS, shape[-2]), shape[-1]), np.float32)
        for tile in Box.of_shape(shape).cells((*scratch.shape[1:-1], max(1, shape[-1]))):
            rows = scratch[(slice(None), *(slice(0, n) for n in tile.shape))]
            part = [axis.part(lo, hi) for axis, lo, hi in zip(grid, tile.lo, tile.hi, strict=True)]
            operations.interpolate(rows, sums, part)
            place: tuple[Any, ...] = (..., *tile.slices())
            self._reduce(rows, out[place])
        return out

    @abstractmethod
    def _reduce(self, sums: Array, out: Array) -> None:
        """Write the voxels for `sums` to `out`."""

    def on_device(self, kernels: Any, core: Any, out: Any, merging: Merging, stream: int) -> None:
        """Queue the same on `stream`: `core` (channels, z, y, x) to `out`, both in the memory of the device; halos are
        added first."""
        kernels.commit(
            core, out, self.kind, self.activation, merging.parts, merging.corners, merging.nonfinite, stream=stream
        )


class Labels(Reduction):
    """The most likely class; of a sigmoid the most likely one that reaches a half, counted from 1, else 0; of regions
    what `operations.regions` says."""

    kind = "labels"

    @property
    def on_host_alone(self) -> bool:
        return self.regions is not None

    def shape(self, sums: tuple[int, ...]) -> tuple[int, ...]:
        return sums[1:]

    def _reduce(self, sums: Array, out: Array) -> None:
        if self.regions is None:
            operations.labels(sums, out, self.activation)
        else:
            operations.regions(sums, out, self.regions, self.activation)


class Masks(Reduction):
    """Of each channel on its own: 1 where it reaches a half, else 0. uint8."""

    kind = "masks"

    def _reduce(self, sums: Array, out: Array) -> None:
        operations.masks(sums, out, self.activation)


class Probabilities(Reduction):
    kind = "probabilities"

    def _reduce(self, sums: Array, out: Array) -> None:
        operations.probabilities(sums, out, self.activation)


class Logits(Reduction):
    kind = "logits"

    def _reduce(self, sums: Array, out: Array) -> None:
        operations.logits(sums, out)


REDUCTIONS: dict[Kind, type[Reduction]] = {c.kind: c for c in (Labels, Masks, Probabilities, Logits)}
"""What a run can write, by the name that users give."""
