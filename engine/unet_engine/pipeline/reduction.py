"""From the sums of a block to what is written: the last step of every pipeline, on the host and on a device.

    sums (channels, *write) float32  --reduction-->  labels (*write), or probabilities or logits (channels, *write)

A reduction is whatever turns finished sums into voxels of the output. Bringing them back to the grid of the scan,
putting the members of an ensemble together, or masking are reductions, too, or wrap one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal

import numpy as np

from unet_engine.backends.base import Array
from unet_engine.model.last_layer import LastLayer
from unet_engine.model.spec import Activation
from unet_engine.plan.box import Box
from unet_engine.stitching import operations
from unet_engine.stitching.interpolation import Taps

TILE = (4, 16, 64)
"""Voxels of the output that are made together where sums are interpolated: rows in sixteens, as
`cpp_ext/interpolate.hpp` lays so many side by side."""
IN_CACHE = 2**20
"""Bytes of outputs that are made of features together."""
MOST_REGIONS = 64
"""That a device's kernel numbers (`kMostRegions` in ``cpp_ext/kernels.hpp``)."""
CLEAR = 1e-5
"""Part of the largest sum by which another one has to lie below it, so that rounding cannot make them equal."""

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
    channels: int
    """Of the core."""


@dataclass(frozen=True)
class Finish:
    """What a device's kernel makes of finished sums, as `commit` and `interpolate` of ``_halo_cuda.pyi`` take it."""

    kind: str
    activation: str
    above: float | None = None
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tables:
    """Along z, y and x what voxels of another grid are made of, as a device's kernel takes it; None for an axis where it
    is the sum at their own place."""

    first: Sequence[Any]
    weights: Sequence[Any]
    begin: Sequence[int]
    """What `first` is counted from."""


@dataclass(frozen=True)
class Reduction(ABC):
    """What is written for sums of the network's output."""

    activation: Activation
    dtype: str
    regions: tuple[int, ...] | None = None
    """See `ModelSpec.regions`."""
    threshold: float | None = None
    """See `ModelSpec.threshold`."""
    of: Literal["outputs", "probabilities"] = "outputs"
    """What is interpolated, see `Resampling.of`."""
    last: LastLayer | None = None
    """What makes outputs of the sums, where features were summed in place of them."""
    kept: tuple[int, ...] | None = None
    """See `ModelSpec.kept_labels`."""
    kind: ClassVar[Kind]

    @property
    def on_host_alone(self) -> bool:
        """Whether no kernel does it."""
        return False

    def shape(self, sums: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what is written for sums of the shape `sums`, (channels, *write)."""
        return sums

    def room(self, sums: Array) -> Array:
        """Memory for the voxels that are written for `sums`, (channels, *write)."""
        channels = self.last.outputs if self.last else len(sums)
        return np.empty(self.shape((channels, *sums.shape[1:])), self.dtype)

    def on_host(self, sums: Array) -> Array:
        """Voxels for `sums`, (channels, *write) float32, which may be changed."""
        out = self.room(sums)
        self.into(sums, out)
        return out

    def into(self, sums: Array, out: Array) -> None:
        """The same, to `out`. Of features some rows at a time, whose outputs stay in the cache and never are there as a
        whole."""
        last = self.last
        if last is None:
            self._reduce(sums, out)
            return
        shape = sums.shape[1:]
        rows = max(1, IN_CACHE // (4 * last.outputs * shape[-1]))
        tile = (*(1,) * (len(shape) - 2), min(rows, shape[-2]), shape[-1])
        scratch = np.empty(last.outputs * prod(tile), np.float32)
        for box in Box.of_shape(shape).cells(tile):
            place: tuple[Any, ...] = (..., *box.slices())
            self._reduce(_outputs(sums[place], last, scratch), out[place])

    def on_grid(self, sums: Array, grid: Sequence[Taps]) -> Array:
        """Voxels on another grid, which `grid` says for each axis how to make of `sums`: first the sums are
        interpolated, then reduced, a small part of the output at a time, so that they stay in the cache and never are
        there as a whole."""
        if self.settled is not self:
            self._activate(sums)
            return self.settled.on_grid(sums, grid)
        shape = tuple(axis.size for axis in grid)
        out = np.empty(self.shape((self.last.outputs if self.last else len(sums), *shape)), self.dtype)
        tile = tuple(min(n, t) for n, t in zip(shape, TILE[-len(shape) :], strict=True))
        scratch = np.empty((len(sums), prod(tile)), np.float32)
        for box in Box.of_shape(shape).cells(tile):
            place: tuple[Any, ...] = (..., *box.slices())
            part, source = _part(sums, grid, box)
            self._reduce_tile(source, part, scratch, out[place])
        return out

    @property
    def settled(self) -> Reduction:
        """What is left to do once sums are what is interpolated: where that is probabilities, of these."""
        if self.of == "outputs" or self.kind == "logits":
            return self
        into: dict[str, Activation] = {"softmax": "probabilities", "sigmoid": "probabilities_each"}
        return replace(self, of="outputs", activation=into.get(self.activation, self.activation))

    def _activate(self, sums: Array) -> None:
        """Make probabilities of `sums` where they lie, layer by layer, where they are none."""
        if self.activation not in ("softmax", "sigmoid"):
            return
        for k in range(sums.shape[1]):
            layer = np.ascontiguousarray(sums[:, k : k + 1])
            made = np.empty_like(layer)
            operations.probabilities(layer, made, self.activation)
            sums[:, k : k + 1] = made

    def _reduce_tile(self, sums: Array, grid: Sequence[Taps], scratch: Array, out: Array) -> None:
        """Write the voxels that `grid` makes of `sums` to `out`. scratch: as many rows as there are channels."""
        there = scratch[: len(sums)].ravel()[: len(sums) * prod(axis.size for axis in grid)]
        there = there.reshape(len(sums), *(axis.size for axis in grid))
        operations.interpolate(there, sums, grid)
        if self.last is not None:
            there = _outputs(there, self.last, np.empty(self.last.outputs * prod(there.shape[1:]), np.float32))
        self._reduce(there, out)

    @abstractmethod
    def _reduce(self, sums: Array, out: Array) -> None:
        """Write the voxels for `sums` to `out`."""

    def as_kernel(self, channels: int) -> Finish:
        """The same as a device's kernel does it, of sums of so many channels."""
        return Finish(self.kind, self.activation)

    def on_device(self, kernels: Any, core: Any, out: Any, merging: Merging, stream: int) -> None:
        """Queue the same on `stream`: `core` (channels, z, y, x) to `out`, both in the memory of the device; halos are
        added first."""
        _commit(kernels, core, out, merging, self.as_kernel(merging.channels), stream)

    def settle_on_device(self, kernels: Any, core: Any, merging: Merging, stream: int) -> None:
        """Queue what comes before `core` is interpolated, where it lies: halos are added, and probabilities made where
        those are what is interpolated."""
        activates = self.settled is not self and self.activation in ("softmax", "sigmoid")
        made = Finish("probabilities", self.activation) if activates else Finish("logits", "none")
        _commit(kernels, core, core, merging, made, stream)

    def on_grid_on_device(self, kernels: Any, core: Any, out: Any, tables: Tables, channels: int, stream: int) -> None:
        """Queue the rest: voxels of `out` on another grid, of `core` as `settle_on_device` left it."""
        as_is = self.settled.as_kernel(channels)
        kernels.interpolate(
            core, out, tables.first, tables.weights, tables.begin, as_is.kind, as_is.activation,
            above=as_is.above, order=as_is.order, stream=stream,
        )  # fmt: skip


def _commit(kernels: Any, core: Any, out: Any, merging: Merging, finish: Finish, stream: int) -> None:
    kernels.commit(
        core, out, finish.kind, finish.activation, merging.parts, merging.corners, merging.nonfinite,
        above=finish.above, order=finish.order, stream=stream,
    )  # fmt: skip


class Labels(Reduction):
    """The most likely class; of a sigmoid the most likely one that reaches a half, or the threshold, counted from 1,
    else 0; of regions what `operations.regions` says. Labels that are not kept become 0 once all of them are there: parts
    of the output number classes by those that can be the largest."""

    kind = "labels"

    @property
    def on_host_alone(self) -> bool:
        return self.kept is not None or (self.regions is not None and len(self.regions) > MOST_REGIONS)

    def as_kernel(self, channels: int) -> Finish:
        kind, alone = ("labels", channels) if self.regions is None else ("regions", 1)
        above = operations.label_threshold(self.activation, alone, self.threshold)
        return Finish(kind, self.activation, above, self.regions or ())

    def shape(self, sums: tuple[int, ...]) -> tuple[int, ...]:
        return sums[1:]

    def into(self, sums: Array, out: Array) -> None:
        super().into(sums, out)
        if self.kept is not None:
            operations.keep(out, self.kept)

    def on_grid(self, sums: Array, grid: Sequence[Taps]) -> Array:
        out = super().on_grid(sums, grid)
        if self.kept is not None:
            operations.keep(out, self.kept)
        return out

    def _reduce(self, sums: Array, out: Array) -> None:
        if self.regions is None:
            operations.labels(sums, out, self.activation, threshold=self.threshold)
        else:
            operations.regions(sums, out, self.regions, self.activation, threshold=self.threshold)

    def _reduce_tile(self, sums: Array, grid: Sequence[Taps], scratch: Array, out: Array) -> None:
        """Without the classes that cannot be the largest anywhere in the tile: between voxels nothing is above the
        larger or below the smaller one, so those lie below another class throughout. Regions do not exclude one
        another: none is left out."""
        ordered = len(sums) >= 3 and all(axis.weights.min() >= 0 for axis in grid)
        if self.last is not None or self.regions is not None or not ordered:
            super()._reduce_tile(sums, grid, scratch, out)
            return
        sums = np.ascontiguousarray(sums)
        flat = sums.reshape(len(sums), -1)
        low, high = flat.min(axis=1), flat.max(axis=1)
        with np.errstate(invalid="ignore"):
            possible = np.flatnonzero(high >= low.max() - CLEAR * max(abs(low.min()), abs(high.max())))
        if len(possible) in (0, len(sums)):  # none where sums are not finite, which is told elsewhere
            super()._reduce_tile(sums, grid, scratch, out)
            return
        above = operations.label_threshold(self.activation, len(sums), self.threshold)
        if len(possible) == 1 and above is None:
            out[...] = possible[0]
            return
        super()._reduce_tile(sums[possible], grid, scratch, out)
        numbers = possible if above is None else np.concatenate([[0], possible + 1])
        out[...] = numbers.astype(out.dtype)[out]


class Masks(Reduction):
    """Of each channel on its own: 1 where it reaches a half, or the threshold, else 0. uint8."""

    kind = "masks"

    def as_kernel(self, channels: int) -> Finish:
        return Finish(self.kind, self.activation, operations.label_threshold(self.activation, 1, self.threshold))

    def _reduce(self, sums: Array, out: Array) -> None:
        operations.masks(sums, out, self.activation, threshold=self.threshold)


class Probabilities(Reduction):
    kind = "probabilities"

    def _reduce(self, sums: Array, out: Array) -> None:
        operations.probabilities(sums, out, self.activation)


class Logits(Reduction):
    kind = "logits"

    def _reduce(self, sums: Array, out: Array) -> None:
        operations.logits(sums, out)


def _outputs(features: Array, last: LastLayer, scratch: Array) -> Array:
    """The outputs for `features`, (channels, *spatial), in the memory of `scratch`."""
    shape = features.shape[1:]
    there: Array = scratch[: last.outputs * prod(shape)].reshape(last.outputs, *shape)
    operations.linear(there, features, last.weights, last.bias)
    return there


def _part(sums: Array, grid: Sequence[Taps], box: Box) -> tuple[list[Taps], Array]:
    """How to make the voxels of `box`, and the sums that it takes."""
    parts, spans = [], []
    for axis, lo, hi in zip(grid, box.lo, box.hi, strict=True):
        part = axis.part(lo, hi)
        first, last = int(part.first.min()), int(part.first.max()) + part.weights.shape[1]
        parts.append(Taps(part.first - first, part.weights))
        spans.append(slice(first, last))
    place: tuple[Any, ...] = (slice(None), *spans)
    return parts, sums[place]


REDUCTIONS: dict[Kind, type[Reduction]] = {c.kind: c for c in (Labels, Masks, Probabilities, Logits)}
"""What a run can write, by the name that users give."""
