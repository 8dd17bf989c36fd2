"""Axes and sizes of a bioimage.io tensor as the engine has them: (batch, channel, [z,] y, x), window sizes, margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any, Literal

import numpy as np

from unet_engine.errors import ModelError
from unet_export.importers.bioimageio.description import Axis, Description, Tensor


@dataclass(frozen=True)
class Order:
    """How an array of the source follows from one of the engine: axes of size 1 that the engine has not are put in,
    those that the source has not are taken out, and the rest is brought into its order."""

    source: tuple[str, ...]
    """Ids of its axes: ``batch``, ``channel``, ``z``, ``y``, ``x``, others of size 1."""
    ours: tuple[str, ...]
    """Of the engine: batch, channel, then space."""

    @property
    def is_plain(self) -> bool:
        return self.source == self.ours

    def leaving(self) -> tuple[int, ...]:
        """Axes of ours that the source lacks, which have the size 1."""
        return tuple(i for i, axis in enumerate(self.ours) if axis not in self.source)

    def entering(self) -> tuple[int, ...]:
        """Axes of the source that we lack, at their places in it."""
        return tuple(i for i, axis in enumerate(self.source) if axis not in self.ours)

    def permutation(self) -> tuple[int, ...]:
        """Of our axes without those that leave: which of them comes where in the source, without those that enter."""
        kept = [axis for axis in self.ours if axis in self.source]
        return tuple(kept.index(axis) for axis in self.source if axis in kept)

    def to_ours(self, array: Any) -> Any:
        """A NumPy array of the source as (channel, [z,] y, x): of its first item in a batch."""
        held = np.squeeze(array, self.entering()) if self.entering() else array
        held = np.transpose(held, np.argsort(self.permutation()))
        for axis in self.leaving():
            held = np.expand_dims(held, axis)
        return held[0]


@dataclass(frozen=True)
class Layout:
    """What the description says of sizes, in the engine's order of the spatial axes."""

    axes: Literal["yx", "zyx"]
    channels_in: int | None
    input: Order
    output: Order
    window_min: tuple[int, ...]
    window_step: tuple[int, ...]
    halo: tuple[int, ...]
    """What of the network's output is not to be trusted at each side, in voxels of the input."""
    scale: tuple[int, ...]
    """How many voxels of the input an output voxel spans, along each axis."""
    spacing: tuple[float, ...] | None
    spacing_unit: str | None


def layout_of(said: Description, given: Tensor, made: Tensor) -> Layout:
    """How input `given` and output `made` of a model lie. Raises `ModelError` for axes and sizes that no windows are
    cut along."""
    names = tuple(axis for axis in "zyx" if any(a.kind == "space" and a.id == axis for a in given.axes))
    others = [a for a in given.axes if a.kind in ("time", "index") and a.size != 1]
    if others:
        raise ModelError(
            f"{said.path}: {said.name} works along {others[0].kind} ({others[0].id}), and windows are cut in space alone; "
            "run it with bioimageio.core"
        )
    if names not in (("y", "x"), ("z", "y", "x")):
        raise ModelError(
            f"{said.path}: {said.name} has the axes {', '.join(a.id for a in given.axes)}; a 2D network has y and x, a 3D "
            "one z, too: run it with bioimageio.core"
        )
    order = tuple(_ordered(given, axis) for axis in names)
    like = tuple(_output_axis(said, made, axis) for axis in names)
    _check_outputs(said, given, made, names)
    least, step = _lattice(said, given, order)
    scale = tuple(_scale(said, a, b) for a, b in zip(order, like, strict=True))
    unit = order[-1].unit
    told = all(a.unit == unit for a in order) and unit is not None
    channel = given.axis("channel")
    spacing = {a: b.scale for a, b in zip(names, order, strict=True)}
    return Layout(
        "yx" if len(names) == 2 else "zyx",
        channel.size if channel else 1,
        _order(given, names),
        _order(made, names),
        least,
        step,
        tuple(axis.halo * s for axis, s in zip(like, scale, strict=True)),
        scale,
        tuple(spacing[a] for a in names) if told else None,
        unit if told else None,
    )


def _ordered(tensor: Tensor, axis: str) -> Axis:
    return next(a for a in tensor.axes if a.kind == "space" and a.id == axis)


def _output_axis(said: Description, tensor: Tensor, axis: str) -> Axis:
    found = next((a for a in tensor.axes if a.kind == "space" and a.id == axis), None)
    if found is None:
        raise ModelError(
            f"{said.path}: its output {tensor.id} has no axis {axis}, and one value for each voxel is needed; run it with "
            "bioimageio.core"
        )
    return found


def _check_outputs(said: Description, given: Tensor, made: Tensor, names: Sequence[str]) -> None:
    strange = [a for a in made.axes if a.kind == "space" and a.id not in names and a.size != 1]
    strange += [a for a in made.axes if a.kind in ("time", "index") and a.size not in (1, None)]
    if strange:
        raise ModelError(
            f"{said.path}: its output {made.id} has the axis {strange[0].id}, which its input {given.id} has not; run it "
            "with bioimageio.core"
        )


def _lattice(said: Description, given: Tensor, order: Sequence[Axis]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Least size and step per axis; an axis that follows another one takes that one's."""
    by_id = {a.id: a for a in given.axes}
    least, step = [], []
    for axis in order:
        leader = by_id.get(axis.like or "", axis)
        if leader.size is None and leader.least is None:
            raise ModelError(
                f"{said.path}: the size of its input along {axis.id} depends on another tensor; run it with bioimageio.core"
            )
        ratio = 1.0 if leader is axis else leader.scale / axis.scale
        offset = axis.offset if leader is not axis else 0
        first = leader.size if leader.size is not None else leader.least or 1
        sizes = first * ratio + offset, (leader.step or 0) * ratio
        if any(n != int(n) for n in sizes):
            raise ModelError(f"{said.path}: its input has no whole sizes along {axis.id}; check its description")
        least.append(int(sizes[0]))
        step.append(int(sizes[1]))
    return tuple(least), tuple(step)


def _scale(said: Description, given: Axis, made: Axis) -> int:
    """Input voxels that an output voxel spans: 1, 2, 3, … Raises `ModelError` where outputs are finer."""
    if made.size is not None and given.size is not None:
        ratio = given.size / made.size
    elif made.like is None:
        ratio = 1.0
    elif said.format.startswith("0.4."):
        ratio = 1 / made.scale if made.scale else 1.0
    else:
        ratio = made.scale / given.scale
    if ratio == int(ratio):
        return int(ratio)
    if made.size is not None and given.size is not None and ratio > 1:
        return 1  # valid convolutions make less of a window: found by running it
    raise ModelError(
        f"{said.path}: {said.name} makes {1 / ratio:g} voxels of each one along {made.id}; outputs that are finer than their "
        "input are not put together: run it with bioimageio.core"
    )


def _order(tensor: Tensor, names: Sequence[str]) -> Order:
    source = tuple(a.kind if a.kind in ("batch", "channel") else a.id for a in tensor.axes)
    return Order(source, ("batch", "channel", *names))


def window_near(least: Sequence[int], step: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """The admissible window that is nearest to `wanted` and not smaller, where there is one."""
    return tuple(
        low + max(0, -(-(size - low) // s)) * s if s else low for low, s, size in zip(least, step, wanted, strict=True)
    )


def on_steps(step: Sequence[int], scale: Sequence[int]) -> tuple[int, ...]:
    """Steps of windows that are whole numbers of output voxels, too."""
    return tuple(lcm(s, n) if s else 0 for s, n in zip(step, scale, strict=True))
